"""The context-length scaling law of every variant of a sweep, L(c) = (α / c)^β + γ, beside the paper's constants (LLaMA 2 Long, Figure 1).

Fitted to the mean over seeds of the loss at each measured length (evaluation/scaling_law.py says how), so it needs four lengths or more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lit_long.evaluation.measurement import PERPLEXITY
from lit_long.report.results import Results, display
from lit_long.report.tables import MISSING, Table

if TYPE_CHECKING:
    from lit_long.evaluation.scaling_law import Law

SIGNS = {"alpha": "α", "beta": "β", "gamma": "γ"}


@dataclass(frozen=True)
class Fitted:
    """Of one variant on one domain: the lengths in tokens and losses in nats that the law goes through, and the law."""

    row: str
    domain: str
    lengths: list[int]
    losses: list[float]
    law: Law


def fitted_laws(results: Results) -> list[Fitted]:
    """In the order of variants and domains; none if the experiment does not ask for it."""
    if not results.sweep.report.law.rows:
        return []
    from lit_long.evaluation.scaling_law import LEAST_POINTS, fit  # which imports numpy and scipy

    found = []
    for row in results.rows:
        for domain in results.domains(PERPLEXITY):
            cells = [(length, results.get(row, PERPLEXITY, domain, length)) for length in results.lengths(PERPLEXITY, domain)]
            points = [(length, math.log(cell.mean)) for length, cell in cells if cell and math.isfinite(cell.mean)]
            if len(points) >= LEAST_POINTS:
                lengths, losses = map(list, zip(*points, strict=True))
                found.append(Fitted(row, domain, lengths, losses, fit(lengths, losses)))
    return found


def law_table(results: Results) -> Table | None:
    """α, β, γ with 95 % intervals and R² of ours, then the paper's."""
    ours = fitted_laws(results)
    if not ours:
        return None
    names = [f"{display(one.row)}, {one.domain}" for one in ours] + [f"{row} (paper)" for row in results.sweep.report.law.rows]
    table = Table("Loss by context: L(c) = (α/c)^β + γ", ["model"], [[name] for name in names])
    published = list(results.sweep.report.law.rows.values())
    for name, sign in SIGNS.items():
        cells = [words(getattr(one.law, name), one.law.intervals[name]) for one in ours]
        cells += [f"{row[name]:g}" if name in row else MISSING for row in published]
        add(table, sign, cells)
    add(table, "R²", [f"{one.law.r2:.4f}" for one in ours] + [MISSING] * len(published))
    add(
        table,
        "a doubling leaves\n2^−β",
        [f"{2**-one.law.beta:.3f}" for one in ours] + [f"{2 ** -row['beta']:.3f}" for row in published],
    )
    return table


def words(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.3g}" + (f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else "")


def add(table: Table, header: str, cells: list[str]) -> None:
    table.header.append(header)
    for row, cell in zip(table.rows, cells, strict=True):
        row.append(cell)
