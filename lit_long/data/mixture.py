"""The training mixture: domain sources → one interleaved stream of sequences → updates, each a `Batch`.

Weights are shares of tokens. Sequences are drawn by weight over the share of their places that hold a token, which each domain's packing
knows beforehand, so padding and cropping do not move the shares. Grain picks the source of sequence i by arithmetic on i, so update s is a
function of (config, seed, s): the same rows whatever the number of ranks, and resuming means starting to count elsewhere.

A run may have phases (curriculum.py). Where sequences get longer, each domain goes on about where it was: as many tokens further as the
phases before were to take from it, or where each sequence is one document, with the next one that it draws in the epoch's order.
Blocks that are packed as a whole (`BestFit`, `Whole`) are packed anew: of the one in progress, documents may come twice and others not.

What a run takes from each domain is planned before it starts and counted while it runs. A sequence carries its own account (`COLUMNS`), made
where it is packed; sums over updates and ranks are what was consumed, and nothing is estimated. The plan is what the mixture and the packing
say beforehand, and refuses what cannot be met.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lit_long.batch import Batch
from lit_long.config import InstructConfig, SamplingConfig, UserError, advising
from lit_long.data.curriculum import Phase
from lit_long.data.packing import BestFit, PackedDocuments, Place, Sequence, Single, Whole
from lit_long.data.synthetic import COPYING, RETRIEVAL, SYNTHETIC, CopyDocuments, RetrievalDocuments
from lit_long.data.token_store import Store

# Of a sequence: its domain's number, tokens, documents that begin in it, those of them that it does not hold whole, and tokens of theirs that
# no sequence holds.
COLUMNS = ("domain", "tokens", "documents", "cut", "cropped")

if TYPE_CHECKING:
    import grain


@dataclass(frozen=True)
class Recipe:
    """How documents become a stream of sequences. ``weights`` are relative shares of tokens of the store's domains and of synthetic ones
    (`SYNTHETIC`); or ``repeats`` are passes over the domains, relative to one another, from which the shares follow."""

    weights: dict[str, float]
    seed: int = 0
    mask_documents: bool = True
    packing: str = "concat"
    sampling: dict[str, SamplingConfig] = field(default_factory=dict)
    instruct: dict[str, InstructConfig] = field(default_factory=dict)  # of sources of instruction data
    repeats: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How far earlier phases were to read a domain: ``tokens`` of it. Where each sequence is one document, up to ``place``, less ``ahead`` of a
    sequence (below 1), for a domain's share of a phase need not be a whole number of them."""

    tokens: float = 0.0
    place: Place = field(default_factory=Place)
    ahead: float = 0.0


class Mixture:
    """The sources of one phase, by domain, and their shares.

    Attributes:
        names: the domains, sorted: the order in the YAML file must not matter.
        shares: of tokens, by domain; they sum to 1.
        utilisation: share of places that hold a token, by domain.

    Raises:
        UserError: for unusable weights, or as the sources do.
    """

    def __init__(self, store: Store, recipe: Recipe, context: int, before: dict[str, Progress] | None = None) -> None:
        """``before``: how far earlier phases were to read each domain."""
        wanted = recipe.repeats or recipe.weights
        _check_weights(wanted, store, "repeats" if recipe.repeats else "weights")
        self.recipe, self.context = recipe, context
        self.names = sorted(wanted)
        self.sources = {name: self._source(store, recipe, name) for name in self.names}
        self.utilisation = {name: self._utilisation(name) for name in self.names}
        if recipe.repeats:
            wanted = {name: passes * self.tokens_per_epoch(name) for name, passes in recipe.repeats.items()}
        self.shares = {name: wanted[name] / sum(wanted.values()) for name in self.names}
        self._before = {name: (before or {}).get(name, Progress()) for name in self.names}
        for name, done in self._before.items():
            single = self._single(name)
            first = single.sequences_before(done.place) if single else math.ceil(done.tokens / self._tokens_held(name))
            self.sources[name].first = first

    def _source(self, store: Store, recipe: Recipe, name: str) -> PackedDocuments | RetrievalDocuments | CopyDocuments:
        sampling = recipe.sampling.get(name)
        if name == RETRIEVAL:
            with advising("Take 'retrieval' out of data.weights, change the context, or name larger modules in data.corpus."):
                longest = sampling.max_tokens if sampling else 0
                return RetrievalDocuments(store, self.context, recipe.seed, recipe.mask_documents, longest)
        if name == COPYING:
            return CopyDocuments(store, self.context, recipe.seed)
        instruct = recipe.instruct.get(name)
        return PackedDocuments(store, name, self.context, recipe.seed, recipe.mask_documents, recipe.packing, sampling, instruct)

    @property
    def extras(self) -> tuple[str, ...]:
        """Which of ``weights`` and ``divisor`` (batch.py) sequences have, since some of them want it."""
        wanted = self.recipe.instruct.values()
        found = {"weights": any(one.weighs for one in wanted), "divisor": any(one.divides for one in wanted)}
        return tuple(name for name, needed in found.items() if needed)

    def _utilisation(self, name: str) -> float:
        source = self.sources[name]
        return source.packing.utilisation(source.sampler.epoch(0)) if isinstance(source, PackedDocuments) else 1.0

    def _tokens_held(self, name: str) -> float:
        """Tokens of a sequence, padding left out, on average."""
        return self.context * self.utilisation[name]

    def _single(self, name: str) -> PackedDocuments | None:
        """The domain's source, where each sequence is one document, of which nothing comes later."""
        source = self.sources[name]
        return source if isinstance(source, PackedDocuments) and isinstance(source.packing, Single) else None

    def tokens_per_epoch(self, name: str) -> int:
        """Tokens that one pass over a domain trains on. Raises UserError for synthetic ones, which have no end."""
        source = self.sources[name]
        if not isinstance(source, PackedDocuments):
            raise UserError(f"data.repeats.{name}: there is no pass over '{name}', which never ends. Use data.weights instead.")
        return source.packing.tokens(source.sampler.epoch(0))

    def sequences(self) -> grain.MapDataset:
        """All sequences, without end. Shares are exact within 1 % of the smallest weight."""
        grain = import_grain()
        datasets = [
            grain.MapDataset.source(self.sources[name]).map(_Labelled(i, self.extras)) for i, name in enumerate(self.names)
        ]
        return grain.MapDataset.mix(datasets, [self.shares[name] / self.utilisation[name] for name in self.names])

    def tokens(self, places: int) -> dict[str, float]:
        """What ``places`` places in sequences will hold of each domain, padding left out."""
        filled = sum(share / self.utilisation[name] for name, share in self.shares.items())  # places per token
        return {name: places * share / filled for name, share in self.shares.items()}

    def progress(self, places: int) -> dict[str, Progress]:
        """How far each domain of the mixture will be read when ``places`` places in sequences are filled."""
        return {name: self._progress(name, tokens) for name, tokens in self.tokens(places).items()}

    def _progress(self, name: str, tokens: float) -> Progress:
        before, single = self._before[name], self._single(name)
        if not single:
            return Progress(before.tokens + tokens)
        sequences = round(single.first - before.ahead + tokens / self._tokens_held(name), 6)
        read = max(single.first, math.ceil(sequences))
        return Progress(place=single.place_after(read) if read > single.first else before.place, ahead=read - sequences)


class Updates:
    """The updates of a run, as a random-access source: element s is the rows of update s that belong to ``rank``, a `Batch`
    [tokens per update / context / world, context].

    The ranks' rows, one below the other, are the rows of a world of one. Raises UserError for an update that the ranks cannot share
    equally.
    """

    def __init__(
        self,
        found: SequenceOf[Mixture],
        phases: SequenceOf[Phase],
        names: list[str],
        tokens_per_update: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """``names``: of all domains, in the order that accounts number them."""
        self.mixtures, self.phases, self.names = found, phases, names
        self._shares = []
        for phase, mixture in zip(phases, found, strict=True):
            sequences = tokens_per_update // phase.context
            if sequences % world:
                raise UserError(
                    f"An update of {sequences} sequences (tokens_per_update / context) cannot be shared equally by {world} "
                    f"ranks. Make tokens_per_update a multiple of {world * phase.context}."
                )
            # Element s * world + r of the batches is rank r's share of the phase's update s.
            self._shares.append(mixture.sequences().batch(sequences // world)[rank::world])

    def __len__(self) -> int:
        return self.phases[-1].stop

    def __getitem__(self, step: int) -> Batch:
        number = next(i for i, phase in enumerate(self.phases) if step < phase.stop)
        rows = self._shares[number][step - self.phases[number].start]
        labels = np.array([self.names.index(self.mixtures[number].names[i]) for i in rows["account"][:, 0]])
        account = np.column_stack([labels, rows["account"][:, 1:]])
        arrays = (rows[name] for name in ("tokens", "targets", "document_ids", "positions"))
        mask_documents = self.mixtures[number].recipe.mask_documents
        extras = {name: torch.from_numpy(rows[name]) for name in self.mixtures[number].extras}
        return Batch(*map(torch.from_numpy, arrays), mask_documents, torch.from_numpy(account), **extras)


def make_mixtures(store: Store, recipe: Recipe, phases: SequenceOf[Phase], tokens_per_update: int) -> list[Mixture]:
    """The mixture of every phase."""
    found: list[Mixture] = []
    progress: dict[str, Progress] = {}
    for number, phase in enumerate(phases):
        own = replace(recipe, weights=phase.weights, repeats={}) if phase.weights else recipe
        if number:
            progress |= found[-1].progress(phases[number - 1].updates * tokens_per_update)
        found.append(Mixture(store, own, phase.context, progress))
    return found


class _Labelled:
    """Puts the number of the domain in front of a sequence's account, and gives it weights and a divisor where others have some."""

    def __init__(self, number: int, extras: tuple[str, ...]) -> None:
        self._number, self._extras = number, extras

    def __call__(self, sequence: Sequence) -> Sequence:
        found = {"weights": np.ones(len(sequence["tokens"]), dtype=np.float32)} | sequence
        found = {"divisor": found["weights"]} | found
        kept = {name: found[name] for name in (*sequence, *self._extras)}
        return kept | {"account": np.concatenate([[self._number], sequence["account"]])}


def _check_weights(weights: dict[str, float], store: Store, key: str) -> None:
    known = ", ".join([*store.domains, *SYNTHETIC])
    if not weights:
        raise UserError(f"data.{key} is empty. Give at least one of {known} a positive weight.")
    for name, weight in weights.items():
        if name not in (*SYNTHETIC, *store.domains):
            raise UserError(f"data.{key}.{name}: there is no such domain. Known: {known}.")
        if not 0 < weight < float("inf"):
            raise UserError(f"data.{key}.{name} is {weight}; a weight is a positive number. Leave '{name}' out to not use it.")


def import_grain() -> ModuleType:
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


def plan_tokens(
    mixtures: SequenceOf[Mixture], phases: SequenceOf[Phase], tokens_per_update: int, max_epochs: float
) -> dict[str, dict[str, Any]]:
    """What a run will take, by domain.

    ``share`` of all tokens, ``tokens``, ``epochs`` (passes; None for synthetic domains, which have no end) and ``utilisation`` (share of places
    that hold a token; the last phase's). Where conversations are longer than a sequence, ``no_room``: how many (in the last phase that has some).
    Where blocks are packed anew, ``contexts``: for how many.

    Raises:
        UserError: if a domain would be passed more than ``max_epochs`` times (0 = no limit).
    """
    found: dict[str, dict[str, Any]] = {}
    contexts: dict[str, set[int]] = {}
    for mixture, phase in zip(mixtures, phases, strict=True):
        for name, tokens in mixture.tokens(phase.updates * tokens_per_update).items():
            row = found.setdefault(name, {"tokens": 0.0, "epochs": None if name in SYNTHETIC else 0.0})
            row["tokens"] += tokens
            row["utilisation"] = mixture.utilisation[name]
            if no_room := getattr(mixture.sources[name], "no_room", 0):
                row["no_room"] = no_room
            contexts.setdefault(name, set()).add(phase.context)
            if len(contexts[name]) > 1 and isinstance(getattr(mixture.sources[name], "packing", None), (BestFit, Whole)):
                row["contexts"] = len(contexts[name])
            if name not in SYNTHETIC:
                row["epochs"] += tokens / mixture.tokens_per_epoch(name)
    total = sum(row["tokens"] for row in found.values())
    for name, row in found.items():
        row["share"] = row["tokens"] / total
        if max_epochs and row["epochs"] is not None and row["epochs"] > max_epochs:
            raise UserError(
                f"data.weights: a share of {row['share']:.1%} for '{name}' is {row['tokens']:,.0f} tokens, {row['epochs']:.1f} passes over its "
                f"documents, and data.max_epochs={max_epochs:g}. Lower its weight or the stage's tokens, add documents, or raise max_epochs."
            )
    return found


def describe_plan(planned: dict[str, dict[str, Any]]) -> str:
    """The plan in a line: ``code 45.0 % (1.2 epochs), …``."""
    rows = sorted(planned.items(), key=lambda item: -item[1]["tokens"])
    passes = {name: "" if row["epochs"] is None else f" ({row['epochs']:.2g} epochs)" for name, row in rows}
    no_room = [
        f"; {row['no_room']:,} conversations of {name} have no room in a sequence" for name, row in rows if "no_room" in row
    ]
    anew = [
        f"; {name} is packed anew for each of {row['contexts']} contexts: documents of the block in progress may come twice, and others not"
        for name, row in rows
        if "contexts" in row
    ]
    return ", ".join(f"{name} {row['share']:.1%}{passes[name]}" for name, row in rows) + "".join(no_room + anew)


def count_consumed(account: Tensor, domains: int) -> Tensor:
    """Sums by domain of sequences' accounts [B, 5]: int64 [domains, 4], columns as in `COLUMNS` without the first."""
    return account.new_zeros(domains, 4).index_add_(0, account[:, 0], account[:, 1:])
