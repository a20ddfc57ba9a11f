"""A byte-level BPE tokenizer, trained once on the training documents of the corpus it will encode; or that of pretrained weights.

Every byte is a token, so any text survives encoding and decoding. One special token, ``<|endoftext|>``, stands at the
START of each document: it tells the model that nothing before it matters, and predicting it is predicting the
document's end. The string ``<|endoftext|>`` inside a document is ordinary text.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lit_long.config import UserError
from lit_long.data.conversations import ChatTemplate
from lit_long.pretrained import open_pretrained
from lit_long.tokenizers.tokenizer import read_tokenizer_json

SEPARATOR = "<|endoftext|>"
_SMALLEST_VOCABULARY = 257  # the bytes and the separator
SAMPLE_CHARACTERS = 8_000_000
_BATCH_CHARACTERS = 2_000_000  # bounds the memory of the encodings under way


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Train on an even sample of ``texts``; the vocabulary counts the separator.

    Raises UserError if ``vocab_size`` does not even hold the bytes.
    """
    if vocab_size < _SMALLEST_VOCABULARY:
        raise UserError(f"data.corpus.vocab_size is {vocab_size}; the bytes and {SEPARATOR} alone need {_SMALLEST_VOCABULARY}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    stride = max(1, round(sum(map(len, texts)) / SAMPLE_CHARACTERS))
    tokenizer.train_from_iterator(texts[::stride], trainer)
    return _as_plain_text(tokenizer)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read ``tokenizer.json``. Raises UserError if it is missing or not a tokenizer."""
    try:
        return _as_plain_text(read_tokenizer_json(path))
    except UserError as error:
        raise UserError(f"{error}. Prepare the data again.") from None


@functools.cache
def borrow_tokenizer(name: str) -> tuple[Tokenizer, int, int | None]:
    """The tokenizer of the pretrained weights called ``name``, the id that opens a document, and the number of rows of the embeddings.
    Cached: reading a GGUF file's takes a third of a second, planning asks once a stage, and a process sees one version."""
    found = open_pretrained(name).tokenizer()
    return _as_plain_text(found.tokenizer), found.separator, found.embeddings


@functools.cache
def borrowed_digest(name: str) -> str:
    """sha256 of the tokenizer of pretrained weights. Cached, as `borrow_tokenizer`."""
    tokenizer, separator, _ = borrow_tokenizer(name)
    return hashlib.sha256(f"{separator} {tokenizer.to_str()}".encode()).hexdigest()


@functools.cache
def borrowed_template(name: str) -> ChatTemplate | None:
    """The chat template of pretrained weights, if they have one. Cached, as `borrow_tokenizer`."""
    found = open_pretrained(name).tokenizer() if name else None
    return ChatTemplate(found.chat_template, found.special, found.where) if found and found.chat_template else None


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str], separator: int) -> Iterator[np.ndarray]:
    """int64 [tokens] of each text in turn, the separator first. Batches of texts are encoded on all cores."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield from _encode_batch(tokenizer, batch, separator)
            batch, size = [], 0
    yield from _encode_batch(tokenizer, batch, separator)


def _encode_batch(tokenizer: Tokenizer, batch: list[str], separator: int) -> Iterator[np.ndarray]:
    for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
        yield np.array([separator, *encoding.ids], dtype=np.int64)


def _as_plain_text(tokenizer: Tokenizer) -> Tokenizer:
    """Make a special token's name inside a text ordinary text. This setting is not part of tokenizer.json."""
    tokenizer.encode_special_tokens = True
    return tokenizer
