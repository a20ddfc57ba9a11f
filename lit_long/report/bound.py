"""Retrieval by RoPE base and length, beside what the base-bound criterion says of each base (Men et al. 2024, "Base of RoPE bounds context length";
positions/bounds.py). For experiments whose variants differ in the base alone."""

from __future__ import annotations

from lit_long.report.results import ACCURACY, Results, display
from lit_long.report.tables import MISSING, Table

TITLE = "Retrieval by RoPE base"
EXPLAINED = (
    "The criterion asks that a similar token be told from a random one at every distance up to the length: Σ cos(m·θ_j) ≥ 0. Scores are token accuracy in %, mean "
    "over seeds; in brackets those at lengths that the base does not support by the criterion. A larger base does not always support more."
)


def bases(results: Results) -> dict[str, float]:
    """Base of every measured variant, ascending; none if the experiment does not name them."""
    named = results.sweep.report.bound.rows
    return {row: named[row] for row in sorted(results.variants, key=lambda row: named.get(row, 0.0)) if row in named}


def bound_table(results: Results) -> Table | None:
    """Base, the longest context that it supports, and accuracy by task length; one row a base."""
    found, domains = bases(results), results.domains(ACCURACY)
    if not found or not domains:
        return None
    from lit_long.positions.bounds import context_bound  # which imports numpy

    domain = domains[0]
    lengths = results.lengths(ACCURACY, domain)
    table = Table(f"{TITLE} ({domain})", ["", "base", "supports\n(tokens)", *(f"{length:,}" for length in lengths)], [])
    for row, base in found.items():
        supported = context_bound(base, results.sweep.report.bound.head_dim)
        cells = [results.get(row, ACCURACY, domain, length) for length in lengths]
        scores = [MISSING if cell is None else f"{100 * cell.mean:.1f}" for cell in cells]
        marked = [score if length <= supported else f"[{score}]" for score, length in zip(scores, lengths, strict=True)]
        table.rows.append([display(row), f"{base:,.0f}", f"{supported:,}", *marked])
    return table
