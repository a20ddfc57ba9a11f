"""What came out, in at most two sentences: the rows of the two measurements that matter most, best first, with their numbers.

From three seeds on, each row's difference to the one that it is compared with stands beside it, with its 95 % interval (differences.py). Of
fewer seeds nothing is claimed: the numbers are told, and that there is no interval. Equal numbers are joined by an equals sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lit_long.evaluation.measurement import PERPLEXITY
from lit_long.report.differences import FEWEST, difference, versus, words
from lit_long.report.results import ACCURACY, NATS, PASSKEY, ROUGE, Cell, Results, display
from lit_long.report.tables import format_cell, places_of

ROWS, DOMAINS = 6, 3  # told in a sentence; the table has all
LOWEST, HIGHEST = "lowest (best) first", "highest (best) first"


@dataclass(frozen=True)
class Told:
    """A measurement that a sentence is about; ``order`` is "" where it is not known what is better."""

    title: str
    metric: str
    length: int
    domains: list[str]
    order: str = ""
    scale: float = 1.0
    unit: str = ""


def headline(results: Results) -> list[str]:
    """The sentences; none while no row has been measured."""
    return [sentence(results, told) for told in measured(results)[:2]]


def measured(results: Results) -> list[Told]:
    """What can be told, what matters most first: perplexity at the longest length, a retrieval at its longest, perplexity at the shortest
    (what was given up); where there is none of these, the columns that stand beside a paper's."""
    found: list[Told] = []

    def add(title: str, metric: str, length: int, *more: str | float) -> None:
        domains = [domain for domain in results.domains(metric) if any(cells(results, metric, domain, length).values())]
        if domains:
            found.append(Told(title, metric, length, domains, *more))

    lengths = results.lengths(PERPLEXITY)
    if lengths:
        add("Validation perplexity", PERPLEXITY, lengths[-1], LOWEST)
    for title, metric, order, scale, unit in (
        ("First-sentence retrieval by ROUGE-L", ROUGE, HIGHEST, 100.0, " %"),
        ("First-sentence retrieval by token accuracy", ACCURACY, HIGHEST, 100.0, " %"),
        ("First-sentence retrieval in nats per token", NATS, LOWEST, 1.0, ""),
        ("Passkeys found", PASSKEY, HIGHEST, 100.0, " %"),
    ):
        if at := results.lengths(metric):
            add(title, metric, at[-1], order, scale, unit)
            break
    if len(lengths) > 1:
        add("Validation perplexity", PERPLEXITY, lengths[0], LOWEST)
    if not found:
        for published in results.sweep.report.published:
            for column, wanted in published.measured.items():
                at = results.lengths(wanted.metric, wanted.domain)
                length = wanted.length or (at[-1] if at else 0)
                if any(cells(results, wanted.metric, wanted.domain, length).values()):
                    name = f"{published.title}, {column}"
                    found.append(Told(name, wanted.metric, length, [wanted.domain], "", wanted.scale))
    return found


def rows_of(results: Results) -> list[str]:
    """The variants; one alone is told beside the reference."""
    return results.variants if len(results.variants) > 1 else results.rows


def cells(results: Results, metric: str, domain: str, length: int) -> dict[str, Cell | None]:
    return {row: results.get(row, metric, domain, length) for row in rows_of(results)}


def sentence(results: Results, told: Told) -> str:
    """For example: Validation perplexity at 2,048 tokens, lowest (best) first, in code: RoPE ABF 17.78, RoPE 21.96; one seed: no interval."""
    parts, counts, intervals, ranked = [], set[int](), False, False
    for domain in told.domains[:DOMAINS]:
        found = cells(results, told.metric, domain, told.length)
        counts |= {cell.seeds for cell in found.values() if cell}
        text, differs, order = listed(results, told, domain, found)
        intervals, ranked = intervals or differs, ranked or order
        parts.append(f"in {domain}: {text}" if domain else text)
    if more := told.domains[DOMAINS:]:
        parts.append(f"{', '.join(more)}: see the table")
    first = f"{told.title} at {told.length:,} tokens" + (f", {told.order}" if told.order and ranked else "")
    return f"{first}{', ' if told.domains[0] else ': '}{'; '.join(parts)}; {seed_note(results, counts, intervals)}."


def listed(results: Results, told: Told, domain: str, found: dict[str, Cell | None]) -> tuple[str, bool, bool]:
    """The rows with their numbers, whether an interval stands among them, and whether they have an order."""
    known = {row: cell for row, cell in found.items() if cell}
    finite = [row for row, cell in known.items() if math.isfinite(cell.mean)]
    if told.order:
        finite.sort(key=lambda row: known[row].mean, reverse=told.order == HIGHEST)  # stable: ties in the grid's order
    places = 1 if told.scale == 100 else places_of([results.get(row, told.metric, domain, told.length) for row in results.rows])
    texts = {row: format_cell(Cell(known[row].mean, None, 1, 0, 0, 0), told.scale, places) for row in finite}
    apart = {row: beside(results, row, told, domain) for row in finite}
    order = len(set(texts.values())) > 1
    if len(finite) > 1 and not order and not any(apart.values()):
        said = [f"no difference, all {texts[finite[0]]}{told.unit}"]
    else:
        said, shown = [], finite if len(finite) <= ROWS else [*finite[: ROWS - 2], finite[-1]]
        for number, row in enumerate(shown):
            joint = "" if not number else " = " if texts[row] == texts[shown[number - 1]] else ", "
            joint += f"… ({len(finite) - len(shown)} more), " if number and len(shown) < len(finite) and row == shown[-1] else ""
            said.append(f"{joint}{display(row)} {texts[row]}{told.unit}{apart[row]}")
        said = ["".join(said)]
    if broken := [display(row) for row in known if row not in finite]:
        said.append(f"{', '.join(broken)} without a finite value")
    if absent := [display(row) for row, cell in found.items() if not cell]:
        said.append(f"{', '.join(absent)} not measured")
    return ", ".join(said), any(apart.values()), order


def beside(results: Results, row: str, told: Told, domain: str) -> str:
    """The difference to the row that others are compared with, and its interval: `` (−4.18 [−4.90, −3.46])``; "" without one."""
    other = versus(results)
    if other is None or row == other or other not in rows_of(results):
        return ""
    one = difference(results, row, other, told.metric, domain, told.length)
    if one is None or one.low is None:
        return ""
    if math.isclose(one.low, one.high, rel_tol=1e-9):  # its width says nothing
        return f" ({words(one, told.scale).partition(' [')[0]} under every seed)" if one.mean else " (the same under every seed)"
    return f" ({words(one, told.scale)}{'' if one.clear else ', not told apart'})"


def seed_note(results: Results, counts: set[int], intervals: bool) -> str:
    """How many runs stand behind the numbers, and what is in the brackets."""
    fewest, most = min(counts), max(counts)
    if most == 1:
        return "one seed: no interval"
    runs = f"means of {most} seeds" if fewest == most else f"means of {fewest} to {most} seeds"
    if intervals:
        return f"{runs}, in brackets the difference to {display(versus(results))} under the same seed, with its 95 % interval"
    return f"{runs}: no interval" + (f" of fewer than {FEWEST}" if most < FEWEST else "")
