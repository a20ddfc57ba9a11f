"""Held-out sequences for validation and for perplexity: full, one document each, the same tokens at every length.

Of instruction data: held-out conversations, the same ones at every length, a row each: the last tokens that fit, in which answers are predicted.
"""

from __future__ import annotations

import numpy as np
import torch

from lit_long.batch import NO_LOSS, PADDING, Batch
from lit_long.config import Unfit
from lit_long.data.sampling import permutation
from lit_long.data.token_store import ShardedDocuments, Store, describe_longest

_SEED = 0  # not the run's: every run is measured on the same documents


def held_out_sequences(store: Store, domain: str, length: int, count: int, max_length: int, skip: int = 0) -> Batch:
    """Windows of ``max_length`` + 1 tokens from at most ``count`` held-out documents, cut into sequences of ``length``.

    ``skip`` leaves out the documents that ``held_out_sequences(…, count=skip)`` would take, for example those that settings were chosen on.

    Which documents, and the ``max_length`` tokens that are predicted in each, do not depend on ``length``. Returns a
    Batch of [documents · max_length / length, length]; the sequences of a document are neighbouring rows, in order
    (`rows_of_document`).
    Raises Unfit if ``length`` does not divide ``max_length``, or no document of the domain is long enough, or not one more than ``skip``.
    """
    if length < 1 or max_length % length:
        raise Unfit(
            f"A length of {length} does not divide the longest length, {max_length}, so the two could not be measured on "
            f"the same tokens."
        )
    documents = store.documents(domain, "validation")
    if domain in store.conversations:
        return held_out_answers(documents, domain, length, count, max_length, store.separator, skip)
    long_enough = np.flatnonzero(documents.lengths > max_length)
    if not len(long_enough):
        raise Unfit(
            f"No held-out document of domain '{domain}' has {max_length + 1} tokens, as sequences of {max_length} need "
            f"({describe_longest(documents)})."
        )
    chosen = _choose(long_enough, domain, count, skip)
    windows = torch.from_numpy(np.stack([documents[index][: max_length + 1] for index in chosen]).astype(np.int64))
    tokens = windows[:, :-1].reshape(-1, length)
    targets = windows[:, 1:].reshape(-1, length)
    positions = torch.arange(length).expand_as(tokens)
    return Batch(tokens, targets, torch.zeros_like(tokens), positions, mask_documents=False)


def rows_of_document(store: Store, domain: str, length: int, max_length: int) -> int:
    """Neighbouring rows of `held_out_sequences` that are one document: its pieces; a conversation is one row at every length."""
    return 1 if domain in store.conversations else max_length // length


def has_held_out(store: Store, domain: str, max_length: int) -> bool:
    """Whether `held_out_sequences` finds a document: a text longer than ``max_length`` tokens, or a conversation of at most so many."""
    lengths = store.documents(domain, "validation").lengths
    return bool(((lengths <= max_length) if domain in store.conversations else (lengths > max_length)).any())


def _choose(fitting: np.ndarray, domain: str, count: int, skip: int) -> np.ndarray:
    if skip >= len(fitting):
        raise Unfit(f"Of the {len(fitting):,} held-out documents of domain '{domain}' that fit, skip={skip} leaves none.")
    return fitting[permutation(len(fitting), _SEED, "held out", domain)][skip : skip + count]


def held_out_answers(
    documents: ShardedDocuments, domain: str, length: int, count: int, max_length: int, separator: int, skip: int = 0
) -> Batch:
    """The last ``length`` tokens of at most ``count`` held-out conversations of at most ``max_length``, padded on the right: [count, length].

    Only the answers' tokens are targets, and the separator that ends the last. Raises Unfit if no conversation fits.
    """
    fitting = np.flatnonzero(documents.lengths <= max_length)
    if not len(fitting):
        raise Unfit(f"No held-out conversation of '{domain}' has at most {max_length} tokens ({describe_longest(documents)}).")
    chosen = _choose(fitting, domain, count, skip)
    tokens = np.full((len(chosen), length), separator)
    targets, ids = np.full_like(tokens, NO_LOSS), np.full_like(tokens, PADDING)
    for row, index in enumerate(chosen):
        document, answered = documents[index].astype(np.int64), np.zeros(len(documents[index]) + 1, dtype=bool)
        for first, end in documents.answers(index):
            answered[first:end] = True
        answered[-1] = answered[-2]
        after = np.append(document[1:], separator)
        start = max(0, len(document) - length)
        size = len(document) - start
        tokens[row, :size] = document[start:]
        targets[row, :size] = np.where(answered[start + 1 :], after[start:], NO_LOSS)
        ids[row, :size] = 0
    positions = torch.arange(length).expand(len(chosen), length)
    return Batch(*map(torch.from_numpy, (tokens, targets, ids)), positions, mask_documents=False)
