"""Held-out sequences for validation and for perplexity: full, one document each, the same tokens at every length."""

from __future__ import annotations

import numpy as np
import torch

from lit_long.config import UserError
from lit_long.data.documents import longest
from lit_long.data.shuffle import permutation
from lit_long.data.store import Store
from lit_long.model.batch import Batch

_SEED = 0  # not the run's: every run is measured on the same documents


def held_out_sequences(store: Store, domain: str, length: int, count: int, max_length: int) -> Batch:
    """Windows of ``max_length`` + 1 tokens from at most ``count`` held-out documents, cut into sequences of ``length``.

    Which documents, and the ``max_length`` tokens that are predicted in each, do not depend on ``length``. Returns a
    Batch of [documents · max_length / length, length]; the sequences of a document are neighbouring rows, in order.
    Raises UserError if ``length`` does not divide ``max_length``, or no document of the domain is long enough.
    """
    if length < 1 or max_length % length:
        raise UserError(
            f"evaluation.lengths: {length} does not divide the longest length, {max_length}, so the two could not be measured on "
            f"the same tokens. Choose lengths that divide the longest."
        )
    documents = store.documents(domain, "validation")
    long_enough = np.flatnonzero(documents.lengths > max_length)
    if not len(long_enough):
        raise UserError(
            f"No held-out document of domain '{domain}' has {max_length + 1} tokens, as sequences of {max_length} need "
            f"({longest(documents)}). Shorten evaluation.lengths or the context, hold out more or longer documents "
            f"(data.corpus.validation, data.sources.NAME.validation_share), or measure less (evaluation.domains, validation.times=0)."
        )
    chosen = long_enough[permutation(len(long_enough), _SEED, "held out", domain)][:count]
    windows = torch.from_numpy(np.stack([documents[index][: max_length + 1] for index in chosen]).astype(np.int64))
    tokens = windows[:, :-1].reshape(-1, length)
    targets = windows[:, 1:].reshape(-1, length)
    positions = torch.arange(length).expand_as(tokens)
    return Batch(tokens, targets, torch.zeros_like(tokens), positions, mask_documents=False)
