"""Building a tokenizer from the settings of a GGUF file.

A GGUF file holds no tokenizer.json but llama.cpp's view of it: the tokens, their kinds, and merges or scores. Two families are read:
``gpt2``, byte-level BPE, whose split of text into words is known by a name (``tokenizer.ggml.pre``), and ``llama``, SentencePiece's
BPE (sentencepiece.py; the kinds of tokens have the same numbers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from lit_long.config import UserError
from lit_long.tokenizers.sentencepiece import NORMAL, add_special, sentencepiece
from lit_long.tokenizers.tokenizer import ModelTokenizer, check_vocabulary, separator_of

if TYPE_CHECKING:
    from lit_long.pretrained.gguf import Header

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")  # digits one by one
# What cuts text into words, one after the other, as llama.cpp does under each name. A file without a name is of the oldest kind.
WORDS = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (GPT2_WORDS,),
    "smollm": (r"\p{N}", GPT2_WORDS),
    "llama-bpe": (LLAMA3_WORDS,),
    "qwen2": (QWEN2_WORDS,),
}
WHOLE_WORDS = {"llama-bpe"}  # a word that is a token is taken as such, whatever the merges say
USUAL = {"llama": {"bos": 1, "eos": 2}}  # ids that llama.cpp takes where the file names none, by the kind of tokenizer
KEEP_BOS = {"llama-bpe"}  # begins texts with bos unless the file says otherwise


def read_tokenizer(header: Header, vocab_size: int) -> ModelTokenizer:
    """The tokenizer in a GGUF file.

    Raises:
        UserError: a kind of tokenizer that is not known, missing lists, or more tokens than the model has embeddings.
    """
    where, settings = str(header.file), header.settings
    model, pre = settings.get("tokenizer.ggml.model"), settings.get("tokenizer.ggml.pre", "default")
    tokens = need(header, "tokens")
    kinds = header.array("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if model == "gpt2":
        tokenizer = byte_level(tokens, need(header, "merges"), pre, where)
    elif model == "llama":
        prefix = settings.get("tokenizer.ggml.add_space_prefix", True)
        tokenizer = sentencepiece(tokens, need(header, "scores"), kinds, prefix)
    else:
        raise UserError(f"{where}: tokenizer.ggml.model={model} is not known here, only gpt2 (byte-level BPE) and llama")
    add_special(tokenizer, tokens, kinds)
    check_vocabulary(tokenizer, vocab_size, where)

    names, usual = ("bos", "eos", "unknown", "padding", "eot", "eom"), USUAL.get(model, {})
    ids = {name: settings.get(f"tokenizer.ggml.{name}_token_id", usual.get(name)) for name in names}
    for name, number in ids.items():
        if number is not None and number >= len(tokens):
            raise UserError(f"{where}: tokenizer.ggml.{name}_token_id={number} is beyond its {len(tokens):,} tokens")
    eos = tuple(dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None))
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    add_bos = settings.get("tokenizer.ggml.add_bos_token", model == "llama" or pre in KEEP_BOS)
    return ModelTokenizer(
        tokenizer,
        bos=ids["bos"],
        eos=eos,
        add_bos=bool(add_bos) and ids["bos"] is not None,
        separator=separator_of(tokenizer, ids["bos"], eos, vocab_size, where),
        chat_template=settings.get("tokenizer.chat_template"),
        special={token: tokens[ids[name]] for token, name in named.items() if ids[name] is not None},
        where=where,
        embeddings=vocab_size,
    )


def byte_level(tokens: list[str], merges: list[str], pre: str, where: str) -> Tokenizer:
    """GPT-2's BPE over bytes."""
    if pre not in WORDS:
        raise UserError(
            f"{where}: tokenizer.ggml.pre={pre}: how this tokenizer cuts text into words is not known here, only {', '.join(WORDS)}; "
            f"take the model's Hugging Face folder"
        )
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    try:
        model = models.BPE(vocabulary, pairs, ignore_merges=pre in WHOLE_WORDS)
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"{where}: tokenizer.ggml.merges do not fit tokenizer.ggml.tokens: {error}") from None
    tokenizer = Tokenizer(model)
    cuts = [pre_tokenizers.Split(Regex(words), "isolated") for words in WORDS[pre]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def need(header: Header, key: str) -> list[Any]:
    """The array ``tokenizer.ggml.KEY``."""
    found = header.array(f"tokenizer.ggml.{key}")
    if found is None:
        raise UserError(f"{header.file}: has no tokenizer that can be read: the list tokenizer.ggml.{key} is missing")
    return found
