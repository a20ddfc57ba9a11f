"""Reading the tokenizer of a Hugging Face folder.

tokenizer.json              the tokenizer itself; else tokenizer.model (SentencePiece), with added_tokens.json
tokenizer_config.json       names of special tokens, whether texts begin with bos, the chat template
special_tokens_map.json     names of special tokens, in older folders
chat_template.jinja         the chat template, in newer folders
generation_config.json      more ids that end a generation
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lit_long.config import UserError
from lit_long.tokenizers.sentencepiece import BEGIN, END, UNK, read_model
from lit_long.tokenizers.tokenizer import ModelTokenizer, check_vocabulary, read_tokenizer_json, separator_of


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a Hugging Face folder that belong to its tokenizer."""
    patterns = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "generation_config.json")
    return sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file())


def read_tokenizer(folder: Path, vocab_size: int) -> ModelTokenizer:
    """The tokenizer in ``folder`` and what belongs to it.

    Raises:
        UserError: there is none, it cannot be read, or words of it have no embedding.
    """
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, vocab_size, str(folder))
    own = {} if (folder / "tokenizer.json").is_file() else {"bos_token": BEGIN, "eos_token": END, "unk_token": UNK}
    config, generation, model = (optional(folder / f"{name}config.json") for name in ("tokenizer_", "generation_", ""))
    special = special_tokens(own | optional(folder / "special_tokens_map.json") | config)
    bos = id_of(tokenizer, special.get("bos_token"), None if config else model.get("bos_token_id"))
    ends = [id_of(tokenizer, special.get("eos_token"), None)]
    for other in (generation.get("eos_token_id"), model.get("eos_token_id")):
        ends += other if isinstance(other, list) else [other]
    eos = tuple(dict.fromkeys(end for end in ends if end is not None and end < vocab_size))
    return ModelTokenizer(
        tokenizer,
        bos=bos,
        eos=eos,
        add_bos=bos is not None and begins_with_bos(tokenizer, bos, config),
        separator=separator_of(tokenizer, bos, eos, vocab_size, str(folder)),
        chat_template=chat_template(folder, config),
        special=special,
        where=str(folder),
        embeddings=vocab_size,
    )


def load_tokenizer(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    if file.is_file():
        return read_tokenizer_json(file)
    file = folder / "tokenizer.model"
    if not file.is_file():
        raise UserError(f"{folder}: has no tokenizer: neither tokenizer.json nor tokenizer.model")
    tokenizer = read_model(file)
    added = optional(folder / "added_tokens.json")
    tokenizer.add_special_tokens(sorted(added, key=added.get))
    for token, number in added.items():
        if tokenizer.token_to_id(token) != number:
            raise UserError(f"{folder / 'added_tokens.json'}: token {token!r} cannot have id {number} beside {file.name}")
    return tokenizer


def special_tokens(named: dict[str, Any]) -> dict[str, str]:
    """Special tokens by name (bos_token …). They are written as text, or as a group with its content."""
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}


def id_of(tokenizer: Tokenizer, token: str | None, default: int | None) -> int | None:
    return default if token is None else tokenizer.token_to_id(token)


def begins_with_bos(tokenizer: Tokenizer, bos: int, config: dict[str, Any]) -> bool:
    """Whether texts begin with bos: as tokenizer_config.json says, else as tokenizer.json itself does it."""
    said = config.get("add_bos_token")
    return said if isinstance(said, bool) else tokenizer.encode("", add_special_tokens=True).ids[:1] == [bos]


def chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The chat template; the one called default where there are several."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        return {entry["name"]: entry["template"] for entry in found}.get("default")
    return found


def optional(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``, empty when there is no such file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: cannot be read as JSON: {error}") from None
    return content if isinstance(content, dict) else {}
