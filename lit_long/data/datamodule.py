"""The data as Lightning sees it: a training loader that resumes to the very batch, and one validation loader per
domain."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule

from lit_long.batch import NO_LOSS, Batch
from lit_long.config import InstructConfig, SamplingConfig, UserError, advising
from lit_long.data.curriculum import Phase
from lit_long.data.held_out import held_out_sequences
from lit_long.data.mixture import Mixture, Recipe, Updates, import_grain, make_mixtures, plan_tokens
from lit_long.data.token_store import Store, open_store

_PREFETCHED_UPDATES = 2


class UpdateLoader:
    """Hands out the updates of a run in turn, from ``first`` on. Iterating continues from the state; the length is that of all that it hands out.

    Lightning saves the state with each checkpoint. Without a length it would fetch one batch ahead to see the end
    coming, and the saved state, one too large, would lose a batch at every resume.
    """

    def __init__(self, rows: Updates, updates: int, first: int = 0) -> None:
        self._rows = rows
        self._updates, self._first = updates - first, first
        self.waited = 0.0  # seconds, for the latest update
        self._step = 0

    def __len__(self) -> int:
        return self._updates

    def __iter__(self) -> Iterator[Batch]:
        if self._step == self._updates:  # Lightning would otherwise start one empty epoch after the other, for ever
            raise UserError(
                f"All {self._updates} updates of this run were handed out, and training still asks for more. "
                f"The trainer's max_steps must not exceed the data's updates."
            )
        grain = import_grain()
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCHED_UPDATES)
        iterator = iter(grain.MapDataset.source(self._rows)[self._first : self._first + self._updates].to_iter_dataset(options))
        iterator.set_state({"next_index": self._step})
        while True:
            begun = time.perf_counter()
            if (batch := next(iterator, None)) is None:
                return
            self.waited = time.perf_counter() - begun
            self._step += 1  # before handing out, so that a checkpoint taken after this update counts it
            yield batch

    def state_dict(self) -> dict[str, int]:
        """``step``: number of updates handed out so far."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with update ``state["step"]``. Raises UserError if the run is shorter than that."""
        if state["step"] > self._updates:
            raise UserError(
                f"The checkpoint was taken after {state['step']} updates, but this run has only {self._updates}. "
                f"Raise tokens, or start from another checkpoint."
            )
        self._step = state["step"]


class HeldOutLoader:
    """One batch of held-out sequences, as a loader."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        yield self._batch


class LongContextDataModule(LightningDataModule):
    """Training updates and validation sequences from a prepared store.

    A training batch is one whole optimizer update, or this rank's rows of it: [tokens_per_update / context / ranks,
    context]. Ranks are those that the attached trainer's strategy deals rows to.

    Args:
        weights: relative shares of tokens by domain; ``repeats``: passes over the domains, from which the shares follow instead.
        context: tokens of a sequence, and of a validation sequence.
        updates: number of updates of the whole run; ``first``: the one that training begins with.
        packing: concat, best_fit or single (packing.py); ``sampling``: which documents of a domain are drawn, and how often.
        phases: the parts of the run (`make_phases`); one, if not given.
        instruct: packing and weights of the sources of instruction data.
        max_epochs: passes over a domain that are not to be exceeded; 0 = no limit.

    Raises:
        UserError: if ``tokens_per_update`` is not a multiple of ``context``, or as `Updates` and `held_out_sequences` do.
    """

    def __init__(
        self,
        store: Path | Store,
        *,
        weights: dict[str, float],
        context: int,
        tokens_per_update: int,
        updates: int,
        seed: int = 0,
        mask_documents: bool = True,
        validation_sequences: int = 8,
        packing: str = "concat",
        sampling: dict[str, SamplingConfig] | None = None,
        repeats: dict[str, float] | None = None,
        max_epochs: float = 0.0,
        phases: list[Phase] | None = None,
        instruct: dict[str, InstructConfig] | None = None,
        first: int = 0,
    ) -> None:
        super().__init__()
        if tokens_per_update < context or tokens_per_update % context:
            raise UserError(f"tokens_per_update ({tokens_per_update}) must be a multiple of context ({context}).")
        self.store = store if isinstance(store, Store) else open_store(store)
        self.recipe = Recipe(weights, seed, mask_documents, packing, sampling or {}, instruct or {}, repeats or {})
        self.context = context
        self.tokens_per_update = tokens_per_update
        self.updates, self.first = updates, first
        self.phases = phases or [Phase(0, updates, context)]
        self.max_epochs = max_epochs
        self.validation_sequences = validation_sequences

    @property
    def domains(self) -> list[str]:
        """Names of the validation loaders, in their order: of the domains that have held-out documents."""
        return self.store.held_out_domains

    @cached_property
    def mixtures(self) -> list[Mixture]:
        """The mixture of every phase."""
        return make_mixtures(self.store, self.recipe, self.phases, self.tokens_per_update)

    @property
    def mixed(self) -> list[str]:
        """Names of the domains that training sequences come from; an account numbers them in this order."""
        return sorted({name for mixture in self.mixtures for name in mixture.names})

    def plan(self) -> dict[str, dict[str, Any]]:
        """What the run will take of each domain (`plan_tokens`). Raises UserError for a share that cannot be met."""
        return plan_tokens(self.mixtures, self.phases, self.tokens_per_update, self.max_epochs)

    def check_validation(self) -> None:
        """Raise the UserError of validation sequences that cannot be made now, and not after an hour."""
        for domain in self.domains:
            keys = f"data.corpus.validation, data.sources.{domain}.validation_share, of conversations .instruct.max_tokens"
            with advising(f"Change the context or what is held out ({keys}), or leave validation out (validation.times=0)."):
                held_out_sequences(self.store, domain, self.context, self.validation_sequences, self.context)

    def train_dataloader(self) -> UpdateLoader:
        """The updates first … updates-1, or from where a checkpoint left off."""
        rows = Updates(self.mixtures, self.phases, self.mixed, self.tokens_per_update, *self._rank_and_world())
        return UpdateLoader(rows, self.updates, self.first)

    def val_dataloader(self) -> list[HeldOutLoader]:
        """One loader per domain with one batch: this rank's held-out sequences of ``context`` tokens.

        All ranks get the same number of rows, since sharded models need them to run in step. Where the sequences do
        not suffice, the last one is repeated without targets, which changes neither nats nor token counts.
        """
        rank, world = self._rank_and_world()
        loaders = []
        for domain in self.domains:
            batch = held_out_sequences(self.store, domain, self.context, self.validation_sequences, self.context)
            rows = -(-len(batch.tokens) // world)
            padded = _with_idle_rows(batch, rows * world - len(batch.tokens))
            loaders.append(HeldOutLoader(padded.rows(rank * rows, (rank + 1) * rows)))
        return loaders

    def _rank_and_world(self) -> tuple[int, int]:
        """This rank's number among those with rows of their own, and how many there are: as the strategy says it to samplers."""
        ranks = self.trainer and self.trainer.distributed_sampler_kwargs  # None on one device
        return (ranks["rank"], ranks["num_replicas"]) if ranks else (0, 1)


def _with_idle_rows(batch: Batch, count: int) -> Batch:
    """The batch with its last row ``count`` times more, without targets."""
    if count == 0:
        return batch
    idle = batch.rows(-1, None)._replace(targets=torch.full_like(batch.targets[-1:], NO_LOSS))
    fields = (torch.cat([field, spare.expand(count, -1)]) for field, spare in zip(batch[:4], idle[:4]))
    return Batch(*fields, mask_documents=batch.mask_documents)
