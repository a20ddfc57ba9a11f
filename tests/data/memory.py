"""Documents in memory, for tests of what is made of them: every length at will, and tokens that say where they are from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SEPARATOR = 0


class MemoryDocuments:
    def __init__(self, documents: Sequence[np.ndarray]) -> None:
        self._documents = documents
        self.lengths = np.array([len(document) for document in documents], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._documents[index]


class MemoryStore:
    """A store whose domains hold these documents, all for training."""

    separator = SEPARATOR

    def __init__(self, **documents: Sequence[np.ndarray]) -> None:
        self._documents = {name: MemoryDocuments(of_domain) for name, of_domain in documents.items()}
        self.domains = sorted(documents)

    def documents(self, domain: str, split: str) -> MemoryDocuments:
        assert split == "train"
        return self._documents[domain]


def numbered(lengths: Sequence[int], first: int = 1) -> list[np.ndarray]:
    """Documents of these lengths. All their tokens differ, the first ones too, which in a real store would be separators."""
    starts = first + np.concatenate([[0], np.cumsum(lengths)])
    return [np.arange(start, stop) for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]


def origins(documents: Sequence[np.ndarray]) -> dict[int, tuple[int, int]]:
    """For each token of `numbered` documents, its document and its place there."""
    return {int(token): (number, place) for number, document in enumerate(documents) for place, token in enumerate(document)}
