"""What a run takes from each domain: planned before it starts, counted while it runs.

A sequence carries its own account (`COLUMNS`), made where it is packed. Sums over updates and ranks are what was consumed; nothing is
estimated. The plan is what the mixture and the packing say beforehand, and refuses what cannot be met.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_long.config import UserError
from lit_long.data.corpus import MADE
from lit_long.data.curriculum import Phase
from lit_long.data.mixture import Mixture

# Of a sequence: its domain's number, tokens, documents that begin in it, those of them that it does not hold whole, and tokens of theirs that
# no sequence holds.
COLUMNS = ("domain", "tokens", "documents", "cut", "cropped")


def plan(
    mixtures: Sequence[Mixture], phases: Sequence[Phase], tokens_per_update: int, max_epochs: float
) -> dict[str, dict[str, Any]]:
    """What a run will take, by domain.

    ``share`` of all tokens, ``tokens``, ``epochs`` (passes; None for made domains, which have no end) and ``utilisation`` (share of places
    that hold a token; the last phase's). Where conversations are longer than a sequence, ``no_room``: how many (in the last phase that has some).

    Raises:
        UserError: if a domain would be passed more than ``max_epochs`` times (0 = no limit).
    """
    found: dict[str, dict[str, Any]] = {}
    for mixture, phase in zip(mixtures, phases, strict=True):
        for name, tokens in mixture.tokens(phase.updates * tokens_per_update).items():
            row = found.setdefault(name, {"tokens": 0.0, "epochs": None if name in MADE else 0.0})
            row["tokens"] += tokens
            row["utilisation"] = mixture.utilisation[name]
            if no_room := getattr(mixture.sources[name], "no_room", 0):
                row["no_room"] = no_room
            if name not in MADE:
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


def describe(planned: dict[str, dict[str, Any]]) -> str:
    """The plan in a line: ``code 45.0 % (1.2 epochs), …``."""
    rows = sorted(planned.items(), key=lambda item: -item[1]["tokens"])
    passes = {name: "" if row["epochs"] is None else f" ({row['epochs']:.2g} epochs)" for name, row in rows}
    no_room = [
        f"; {row['no_room']:,} conversations of {name} have no room in a sequence" for name, row in rows if "no_room" in row
    ]
    return ", ".join(f"{name} {row['share']:.1%}{passes[name]}" for name, row in rows) + "".join(no_room)


def consumed(account: Tensor, domains: int) -> Tensor:
    """Sums by domain of sequences' accounts [B, 5]: int64 [domains, 4], columns as in `COLUMNS` without the first."""
    return torch.zeros(domains, 4, dtype=torch.int64).index_add_(0, account[:, 0], account[:, 1:])
