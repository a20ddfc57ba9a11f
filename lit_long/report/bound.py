"""Retrieval by RoPE base and length, beside what the base-bound criterion says of each base (Men et al. 2024, "Base of RoPE bounds context length";
positions/bounds.py). For experiments whose variants differ in the base alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_long.report.results import ACCURACY, Results, display
from lit_long.report.tables import MISSING, Table

TITLE = "Retrieval by RoPE base"
EXPLAINED = (
    "The criterion asks that a similar token be told from a random one at every distance up to the length: Σ cos(m·θ_j) ≥ 0. Scores are token accuracy in %, mean "
    "over seeds; in brackets those at lengths that the base does not support by the criterion. A larger base does not always support more."
)


@dataclass(frozen=True)
class Base:
    """The RoPE base of a variant, and the dimension of its heads: what the criterion depends on."""

    base: float
    head_dim: int

    @property
    def supports(self) -> int:
        """The longest context in tokens that the criterion allows."""
        from lit_long.positions.bounds import context_bound  # which imports numpy

        return context_bound(self.base, self.head_dim)


def base_of(settings: Mapping[str, Any]) -> Base | None:
    """Of a stage's settings; None where its encoder has none."""
    position, model = settings.get("position") or {}, settings.get("model") or {}
    return Base(float(position["base"]), int(model["head_dim"])) if "base" in position and "head_dim" in model else None


def bases(results: Results) -> dict[str, Base]:
    """Of every measured variant, ascending, from the settings of its evaluate stages; none if the experiment does not ask for it."""
    if not results.sweep.report.shows_bases:
        return {}
    found = {row: base for row in results.variants for stage in results.folders[row] if (base := base_of(stage.settings))}
    return dict(sorted(found.items(), key=lambda item: item[1].base))


def bound_table(results: Results) -> Table | None:
    """Base, the longest context that it supports, and accuracy by task length; one row a base."""
    found, domains = bases(results), results.domains(ACCURACY)
    if not found or not domains:
        return None
    domain = domains[0]
    lengths = results.lengths(ACCURACY, domain)
    table = Table(f"{TITLE} ({domain})", ["", "base", "supports\n(tokens)", *(f"{length:,}" for length in lengths)], [])
    for row, base in found.items():
        cells = [results.get(row, ACCURACY, domain, length) for length in lengths]
        scores = [MISSING if cell is None else f"{100 * cell.mean:.1f}" for cell in cells]
        marked = [score if length <= base.supports else f"[{score}]" for score, length in zip(scores, lengths, strict=True)]
        table.rows.append([display(row), f"{base.base:,.0f}", f"{base.supports:,}", *marked])
    return table
