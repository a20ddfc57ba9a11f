"""The training mixture: domain sources → one interleaved stream of sequences → updates, each a `Batch`.

Every sequence has the same number of tokens, so mixing sequences by weight mixes tokens by weight. Grain picks the
source of sequence i by arithmetic on i, so update s is a function of (config, seed, s): the same rows whatever the
number of ranks, and resuming means starting to count elsewhere.
"""

from __future__ import annotations

import logging
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from lit_long.config import UserError
from lit_long.data.corpus import RETRIEVAL
from lit_long.data.packing import PackedDocuments, Sequence
from lit_long.data.retrieval import RetrievalDocuments
from lit_long.data.store import Store
from lit_long.model.batch import Batch

if TYPE_CHECKING:
    import grain


def update_source(
    store: Store,
    weights: dict[str, float],
    context: int,
    sequences_per_update: int,
    seed: int,
    mask_documents: bool,
    rank: int = 0,
    world: int = 1,
) -> grain.MapDataset:
    """The stream of updates: element s is the rows of update s that belong to ``rank``, a `Batch`
    [sequences_per_update / world, T].

    The ranks' rows, one below the other, are the rows of a world of one. ``weights`` are relative shares of tokens;
    their names are the store's domains and ``retrieval``. Shares are exact within 1 % of the smallest weight. Raises
    UserError for unusable weights, or an update that the ranks cannot share equally.
    """
    if sequences_per_update % world:
        raise UserError(
            f"An update of {sequences_per_update} sequences (tokens_per_update / context) cannot be shared equally by {world} "
            f"ranks. Make tokens_per_update a multiple of {world * context}."
        )
    _check_weights(weights, store)
    grain = _import_grain()
    names = sorted(weights)  # the order in the YAML file must not matter
    sources = [
        RetrievalDocuments(store, context, seed)
        if name == RETRIEVAL
        else PackedDocuments(store, name, context, seed, mask_documents)
        for name in names
    ]
    mixture = grain.MapDataset.mix([grain.MapDataset.source(source) for source in sources], [weights[name] for name in names])
    shares = mixture.batch(sequences_per_update // world)  # element s * world + r is rank r's share of update s
    return shares[rank::world].map(lambda rows: _batch(rows, mask_documents))


def _batch(rows: Sequence, mask_documents: bool) -> Batch:
    names = ("tokens", "targets", "document_ids", "positions")
    return Batch(*(torch.from_numpy(rows[name]) for name in names), mask_documents=mask_documents)


def _check_weights(weights: dict[str, float], store: Store) -> None:
    known = ", ".join([*store.domains, RETRIEVAL])
    if not weights:
        raise UserError(f"data.weights is empty. Give at least one of {known} a positive weight.")
    for name, weight in weights.items():
        if name != RETRIEVAL and name not in store.domains:
            raise UserError(f"data.weights.{name}: there is no such domain. Known: {known}.")
        if not 0 < weight < float("inf"):
            raise UserError(f"data.weights.{name} is {weight}; a weight is a positive number. Leave '{name}' out to not use it.")


def _import_grain() -> ModuleType:
    """Grain, without its warning that jax is missing, which is none of the user's business."""
    from absl import logging as absl_logging  # before grain, for absl installs its logger when first imported

    def keep(record: logging.LogRecord) -> bool:
        return "jax profiler" not in record.getMessage()

    logger = absl_logging.get_absl_logger()
    logger.addFilter(keep)
    try:
        import grain
    finally:
        logger.removeFilter(keep)
    return grain
