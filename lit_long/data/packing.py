"""Packing by concatenating and splitting, as pure index arithmetic: sequence i is a function of (seed, i) and nothing
else.

In epoch e the documents of a domain are put end to end in a random order, and the row of tokens is cut every T
tokens. Sequence i reads T + 1 tokens, of which the last is only a target, so that each token of the epoch but the
first, and but the tail that does not fill a sequence, is predicted exactly once. The number of sequences per epoch
depends on T alone. The state of the stream is one integer.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lit_long.config import UserError
from lit_long.data.shuffle import permutation
from lit_long.data.store import Store

ENDLESS = 2**40  # sequences: far more than any run asks for, and mixed by any weight it still fits an index

Sequence = dict[str, np.ndarray]


class PackedDocuments:
    """Training sequences of one domain, as a random-access source.

    ``source[i]`` is a dictionary of int64 [T] arrays: ``tokens``, ``targets``, ``document_ids`` (0, 1, … within the
    sequence) and ``positions`` (from 0 at the sequence's start and, with ``mask_documents``, again at each document's
    start).

    The target of a document's last token is the separator that opens the next document. It has a loss whether
    documents are masked or not: it teaches where documents end.
    """

    def __init__(self, store: Store, domain: str, context: int, seed: int, mask_documents: bool) -> None:
        self._documents = store.documents(domain, "train")
        self._domain = domain
        self._context = context
        self._seed = seed
        self._mask_documents = mask_documents
        self.sequences_per_epoch = (self._documents.token_count - 1) // context
        if self.sequences_per_epoch == 0:
            raise UserError(
                f"context is {context}, but domain '{domain}' has only {self._documents.token_count} training tokens. "
                f"Lower the context, or give it more documents (data.corpus.packages, or the source's path)."
            )
        self._epoch = lru_cache(maxsize=2)(self._epoch)  # neighbouring sequences share an epoch

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Sequence:
        epoch, index_in_epoch = divmod(int(index), self.sequences_per_epoch)
        order, ends = self._epoch(epoch)
        start = index_in_epoch * self._context
        stop = start + self._context + 1
        pieces = []
        place = int(np.searchsorted(ends, start, side="right"))  # the document that token ``start`` lies in
        while start < stop:
            document = self._documents[order[place]]
            piece = document[len(document) - (ends[place] - start) :][: stop - start]
            pieces.append(piece)
            start += len(piece)
            place += 1
        return _sequence(pieces, self._mask_documents)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the documents, and where each of them ends in the epoch's row of tokens."""
        order = permutation(len(self._documents), self._seed, self._domain, epoch)
        return order, np.cumsum(self._documents.lengths[order])


def _sequence(pieces: list[np.ndarray], mask_documents: bool) -> Sequence:
    """T + 1 tokens, given document by document, as the arrays of a sequence of T tokens."""
    tokens = np.concatenate(pieces).astype(np.int64)
    context = len(tokens) - 1
    lengths = [len(piece) for piece in pieces]
    positions = np.concatenate([np.arange(length) for length in lengths]) if mask_documents else np.arange(context)
    return {
        "tokens": tokens[:-1],
        "targets": tokens[1:],
        "document_ids": np.repeat(np.arange(len(pieces)), lengths)[:context],
        "positions": positions[:context],
    }


def single_document(tokens: np.ndarray) -> Sequence:
    """The sequence that ``tokens`` [T + 1], all of one document, make."""
    return _sequence([tokens], mask_documents=False)
