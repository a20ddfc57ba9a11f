"""Building SentencePiece's BPE, as Llama 1 and 2, TinyLlama and many GGUF files use it, for the library `tokenizers`.

The adjacent pair that makes the token with the best score is merged first. Spaces are written ▁, one goes before the text, and a
character that is no token becomes its bytes. The file tokenizer.model is read here, without sentencepiece: transformers 5.23 leaves
out the space before the text when it converts a bare one, and merges a space that the text begins with into it.

The file is a protocol buffer: pieces (field 1: text, score, kind), how it was trained (2) and how text is normalised (3).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from lit_long.config import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # kinds of tokens; 5 is unused
SPACE = "▁"
BPE = 2  # among the kinds of models
BEGIN, END, UNK = "<s>", "</s>", "<unk>"


def read_model(file: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.model. Like transformers' for Llama it begins texts with ``<s>`` when asked for special tokens.

    Raises:
        UserError: not a SentencePiece file (Llama 3's own is not), or a model of another kind.
    """
    pieces: list[tuple[str, float, int]] = []
    trained: dict[int, int | bytes] = {}
    normal: dict[int, int | bytes] = {}
    try:
        for number, value in fields(file.read_bytes()):
            if number == 1:
                piece = {2: bytes(4), 3: NORMAL} | dict(fields(value))
                pieces.append((piece[1].decode(), struct.unpack("<f", piece[2])[0], piece[3]))
            elif number in (2, 3):
                (trained if number == 2 else normal).update(fields(value))
    except (ValueError, TypeError, KeyError, AttributeError, struct.error, OSError):
        pieces = []
    if not pieces:
        raise UserError(
            f"{file}: is not a SentencePiece model (Llama 3's own file is not one); copy tokenizer.json and tokenizer_config.json of the "
            f"same model in the Hugging Face format into {file.parent}"
        )
    if trained.get(3, 1) != BPE or normal.get(2) or normal.get(4, 1):
        raise UserError(
            f"{file}: is not a SentencePiece model of Llama's kind (BPE that leaves the text as it is); copy tokenizer.json of the same "
            f"model into {file.parent}"
        )
    tokens, scores, kinds = (list(column) for column in zip(*pieces, strict=True))
    tokenizer = sentencepiece(tokens, scores, kinds, prefix=bool(normal.get(3, 1)))
    add_special(tokenizer, tokens, kinds)
    if BEGIN in tokens:
        begin = [(BEGIN, tokens.index(BEGIN))]
        tokenizer.post_processor = processors.TemplateProcessing(f"{BEGIN} $A", f"{BEGIN} $A {BEGIN} $B", begin)
    return tokenizer


def sentencepiece(tokens: list[str], scores: list[float], kinds: list[int], prefix: bool) -> Tokenizer:
    """The tokenizer with these tokens; ``prefix``: whether a space goes before the text."""
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN), None)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = list(merges_by_score(tokens, scores, kinds))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def merges_by_score(tokens: list[str], scores: list[float], kinds: list[int]) -> Iterator[tuple[str, str]]:
    """Every way to make a token from two others, the best token first."""
    numbers = [number for number, kind in enumerate(kinds) if kind not in (UNKNOWN, CONTROL, BYTE)]
    mergeable = {tokens[number] for number in numbers}
    for number in sorted(numbers, key=lambda number: (-scores[number], number)):
        token = tokens[number]
        for cut in range(1, len(token)):
            if token[:cut] in mergeable and token[cut:] in mergeable:
                yield token[:cut], token[cut:]


def add_special(tokenizer: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    """Let control and user-defined tokens be found whole in the text; control tokens are left out when decoding."""
    tokenizer.add_special_tokens([AddedToken(tokens[i], normalized=False) for i, kind in enumerate(kinds) if kind == CONTROL])
    tokenizer.add_tokens([AddedToken(tokens[i], normalized=False) for i, kind in enumerate(kinds) if kind == USER_DEFINED])


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protocol buffer. Numbers are whole ones, or the bytes of a fixed-size one."""

    def whole() -> int:
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 128:
                return value

    at = 0
    try:
        while at < len(data):
            key = whole()
            wire = key & 7
            if wire == 0:
                yield key >> 3, whole()
                continue
            length = {1: 8, 5: 4}[wire] if wire != 2 else whole()
            at += length
            if at > len(data):
                raise ValueError("a field reaches beyond the end")
            yield key >> 3, data[at - length : at]
    except IndexError:
        raise ValueError("a number reaches beyond the end") from None
