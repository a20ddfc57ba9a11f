"""Chooses a store's tokenizer before its first shard is written: one that exists already, or one trained on a sample of all sources.

The choice depends on the settings and the texts alone, and the file is written in one piece, so any of several processes may do it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from lit_long.config import CorpusConfig, SourceConfig, plain
from lit_long.data.builtin_corpus import Corpus
from lit_long.data.conversations import ChatTemplate, message_text
from lit_long.data.readers import Part, read_part
from lit_long.data.shards import passes
from lit_long.data.sources import list_parts
from lit_long.data.tokenizer import (
    SAMPLE_CHARACTERS,
    SEPARATOR,
    borrow_tokenizer,
    borrowed_template,
    load_tokenizer,
    train_tokenizer,
)
from lit_long.files import write_atomically
from lit_long.pretrained.digests import read_digest

TRAINED = "trained.json"  # which tokenizer.json was trained on what, while the store is not yet complete
_SAMPLED_PARTS = 64  # of a source, at most, spread over it
Report = Callable[[str, float], None]


@dataclass(frozen=True)
class StoreTokenizer:
    """The tokenizer that all sources are written with, as a file, and what belongs to it."""

    file: Path
    digest: str
    separator: int
    dtype: str
    template: ChatTemplate | None = None  # for instruction data, when the tokenizer is borrowed
    embeddings: int | None = None  # of the weights that it is borrowed from; ids beyond them cannot be trained on


def resolve_tokenizer(
    corpus: CorpusConfig,
    folder: Path,
    builtin: Callable[[], Corpus],
    sources: dict[str, SourceConfig],
    inputs: dict,
    report: Report,
) -> tuple[StoreTokenizer, Tokenizer]:
    """The tokenizer, written into ``folder``; one that was trained on the same texts before serves again.

    Args:
        builtin: the built-in corpus, or nothing; asked for only when there is a tokenizer to be trained.
        inputs: what `corpus.fingerprint` says.
    """
    embeddings = None
    file, note = folder / "tokenizer.json", folder / TRAINED
    trained_on = json.dumps([inputs, plain(corpus), {name: plain(source) | {"path": ""} for name, source in sources.items()}])
    if corpus.tokenizer:
        tokenizer, separator, embeddings = borrow_tokenizer(corpus.tokenizer)
        _save(tokenizer, file)
    elif _was_trained(note, file, trained_on):
        tokenizer = load_tokenizer(file)
        separator = tokenizer.token_to_id(SEPARATOR)
    else:
        found = builtin()
        report("training the tokenizer", 0.4 if found else 0.0)
        texts = [document.text for (_, split), documents in found.items() if split == "train" for document in documents]
        tokenizer = train_tokenizer(texts + sample_texts(sources, SAMPLE_CHARACTERS), corpus.vocab_size)
        separator = tokenizer.token_to_id(SEPARATOR)
        _save(tokenizer, file)
        write_atomically(note, json.dumps([read_digest(file), trained_on]))
    dtype = "uint16" if tokenizer.get_vocab_size() <= 65_535 else "uint32"
    instructs = any(source.instruct.schema for source in sources.values())
    template = borrowed_template(corpus.tokenizer) if instructs else None
    return StoreTokenizer(file, read_digest(file), separator, dtype, template, embeddings), tokenizer


def _save(tokenizer: Tokenizer, file: Path) -> None:
    """Written only where it is another one: other processes may be reading it."""
    content = tokenizer.to_str(pretty=True).encode()
    if not file.is_file() or file.read_bytes() != content:
        write_atomically(file, content)


def _was_trained(note: Path, file: Path, trained_on: str) -> bool:
    try:
        return json.loads(note.read_text(encoding="utf-8")) == [read_digest(file), trained_on]
    except (OSError, ValueError):
        return False


def sample_texts(sources: dict[str, SourceConfig], characters: int) -> list[str]:
    """Training texts for a tokenizer: ``characters`` in all, the same from every source as far as it reaches, from all over it."""
    texts = []
    for name, source in sorted(sources.items()):
        found = list_parts(name, source)
        chosen = found[:: -(-len(found) // _SAMPLED_PARTS)] if found else []
        for part in chosen:
            texts += _beginning(name, source, part, characters // len(sources) // len(chosen))
    return texts


def _beginning(name: str, source: SourceConfig, part: Part, characters: int) -> Iterator[str]:
    """Texts from the start of a part; the last one is cut."""
    for text in read_part(f"data.sources.{name}", source, part):
        if passes(source, text, part):
            content = message_text(text.text) if source.instruct.schema else text.text
            yield content[:characters]
            characters -= len(content)
            if characters <= 0:
                return
