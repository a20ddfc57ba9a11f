"""Prepared documents, read from memory-mapped files: any of them at once, and none before it is asked for.

Those of the built-in corpus lie end to end in one file. Those of a source stay in the shards they were tokenised into; an index says which
of them make a split, so that neither dropping duplicates nor holding documents out rewrites a token:

    FOLDER/DOMAIN/SPLIT/index.npy     one row a document: shard, first token, number of tokens, place in its file
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import numpy as np

INDEX = np.dtype([("shard", "<i4"), ("start", "<i8"), ("tokens", "<i8"), ("place", "<i8")])
LONG_DOCUMENT = 2048  # tokens; the manifest counts the documents that are longer


class Documents:
    """The documents of one domain and split. ``documents[i]`` is uint16 or uint32 [tokens], a view of the file."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self._folder = folder
        self.tokens = np.memmap(folder / "tokens.bin", dtype=dtype, mode="r")
        self.offsets = np.load(folder / "offsets.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def token_count(self) -> int:
        """Tokens of all documents."""
        return len(self.tokens)

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [documents], the separator included."""
        return np.diff(self.offsets)

    @cached_property
    def names(self) -> list[str]:
        """Qualified names of modules, and help topics."""
        return json.loads((self._folder / "names.json").read_text(encoding="utf-8"))

    def name(self, index: int) -> str:
        return self.names[index]


class ShardedDocuments:
    """Like `Documents`, from a source's shards. ``entry`` is the split's in the manifest; ``answered``: whether it is instruction data."""

    def __init__(self, folder: Path, shards: Path, dtype: str, entry: dict, answered: bool = False) -> None:
        self.answered = answered
        self._shards = shards
        self._dtype = dtype
        self._index = np.load(folder / "index.npy", mmap_mode="r")
        self._open: dict[int, np.ndarray] = {}
        self._open_answers: dict[int, np.ndarray] = {}
        self.token_count: int = entry["tokens"]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        row = self._index[index]
        return self._tokens(int(row["shard"]))[row["start"] : row["start"] + row["tokens"]]

    def answers(self, index: int) -> np.ndarray:
        """int64 [answers, 2]: where the answers of a conversation begin and end, in its tokens."""
        row = self._index[index]
        shard, start = int(row["shard"]), int(row["start"])
        if shard not in self._open_answers:
            file = shard_file(self._shards, shard).with_suffix(".answers")
            self._open_answers[shard] = np.fromfile(file, dtype=np.int64).reshape(-1, 2)
        found = self._open_answers[shard]
        first, stop = np.searchsorted(found[:, 0], [start, start + int(row["tokens"])])
        return found[first:stop] - start

    @property
    def lengths(self) -> np.ndarray:
        """int64 [documents], the separator included; a view of the file."""
        return self._index["tokens"]

    def name(self, index: int) -> str:
        """The document's file, and where in it the document begins."""
        row = self._index[index]
        names = json.loads(shard_file(self._shards, int(row["shard"])).with_suffix(".json").read_text(encoding="utf-8"))["names"]
        place = int(row["place"])
        if len(names) > 1:
            return names[place]
        return f"{names[0]}:{place}" if names else f"row {place}"

    def _tokens(self, shard: int) -> np.ndarray:
        if shard not in self._open:
            self._open[shard] = np.memmap(shard_file(self._shards, shard).with_suffix(".tokens"), dtype=self._dtype, mode="r")
        return self._open[shard]


def longest(documents: Documents | ShardedDocuments) -> str:
    """For messages."""
    return f"the longest has {documents.lengths.max()}" if len(documents) else "there is none at all"


def shard_file(folder: Path, number: int) -> Path:
    """The files of a shard, without their suffix."""
    return folder / f"{number:06}"


def counts(lengths: np.ndarray) -> dict:
    """What the manifest says of documents with these ``lengths`` [documents].

    ``histogram`` has a row for every power of two from the shortest document to the longest: [2^k, documents of 2^k to 2^(k+1) - 1 tokens,
    their tokens].
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    powers = np.frexp(lengths.astype(np.float64))[1] - 1  # exact up to 2^53
    rows = []
    for power in range(int(powers.min()), int(powers.max()) + 1) if len(lengths) else ():
        inside = lengths[powers == power]
        rows.append([2**power, len(inside), int(inside.sum())])
    return {
        "documents": len(lengths),
        "documents_over_2048": int((lengths > LONG_DOCUMENT).sum()),
        "tokens": int(lengths.sum()),
        "histogram": rows,
    }
