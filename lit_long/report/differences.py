"""What may be claimed: the difference of every row to the first one, seed by seed, with its 95 % interval.

Runs of one seed share data, order and (where a stage is shared) weights, so the difference of a pair varies less than the runs do. With three
pairs or more the mean difference has Student's t-interval; where it excludes 0 the difference is marked. Of fewer pairs nothing is said, and
pairs whose differences are all the same mark nothing: their interval has no width, as scores of a few examples often have.

The first variant of the grid is what the others are compared with; so is the reference, where there is one, and where there is one variant
it is compared with the reference.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass

from lit_long.evaluation.measurement import PERPLEXITY
from lit_long.report.results import NATS, QUERY_SCALE, TASKS, Results, display
from lit_long.report.tables import COLUMNS_AT_ONCE, MISSING, Table, length_of, measured, perplexity_columns

FEWEST = 3  # pairs
CSV_COLUMNS = ("variant", "versus", "metric", "domain", "length", "difference", "low", "high", "pairs", "excludes_0")
SHORT = {
    metric: title.partition(",")[0].replace(" on {domain}", "").replace(" in {domain}", "")
    for metric, (title, _) in TASKS.items()
}
EXPLAINED = (
    "The mean over seeds of a row's value minus that of {versus} under the same seed, with the 95 % t-interval of {pairs} pairs. Bold: the "
    "interval excludes 0. Each interval stands for its cell alone: of twenty without a difference one excludes 0 by chance. {first}"
)


@dataclass(frozen=True)
class Difference:
    """Of a row to the one it is compared with; the ends of the interval are None with fewer than FEWEST pairs."""

    mean: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and not math.isclose(self.low, self.high, rel_tol=1e-9) and not self.low <= 0 <= self.high


def versus(results: Results) -> str | None:
    """The row that the others are compared with; None where there is no other."""
    if len(results.variants) > 1:
        return results.variants[0]
    return results.reference


def difference(results: Results, row: str, other: str, metric: str, domain: str, length: int) -> Difference | None:
    """None without a pair of finite values. Seeds that share both runs are one pair."""
    pairs = {}
    for seed in results.sweep.seeds:
        ours, theirs = (results.value(name, seed, metric, domain, length) for name in (row, other))
        if ours is not None and theirs is not None:
            pairs[results.by_seed[row][seed].folder, results.by_seed[other][seed].folder] = ours, theirs
    from lit_long.evaluation.statistics import paired  # which imports numpy

    if not pairs or not all(math.isfinite(value) for pair in pairs.values() for value in pair):
        return None
    found = paired(*zip(*pairs.values(), strict=True))
    enough = len(pairs) >= FEWEST
    return Difference(found["value"], found["low"] if enough else None, found["high"] if enough else None, len(pairs))


def difference_tables(results: Results) -> list[Table]:
    """One for the perplexities, one for each task and each published table of which we measure something, fitted constants left out, for they have no
    mean; none without enough seeds."""
    other = versus(results)
    if other is None or len(results.sweep.seeds) < FEWEST:
        return []
    groups = {"Validation perplexity": [(f"{d}\n@ {n:,}", PERPLEXITY, d, n, 1.0) for d, n in perplexity_columns(results)]}
    for metric in TASKS:
        for domain in results.domains(metric):
            scale = 1.0 if metric == NATS else 100.0
            columns = [(f"{n:,}", metric, domain, n, scale) for n in results.lengths(metric, domain)]
            groups[f"{SHORT[metric]}, {domain}" + ("" if metric == NATS else ", %")] = columns
    for published in results.sweep.report.published:
        columns = []
        for column, wanted in published.measured.items():
            if wanted.metric != QUERY_SCALE and any(measured(results, row, wanted) for row in results.rows):
                columns.append((column, wanted.metric, wanted.domain, length_of(results, wanted), wanted.scale))
        groups[published.title] = columns
    tables = [table(results, title, columns, other) for title, columns in groups.items() if columns]
    return [one for one in tables if any(cell != MISSING for row in one.rows for cell in row[1:])]


def table(results: Results, title: str, columns: list[tuple[str, str, str, int, float]], other: str) -> Table:
    """All rows but ``other``."""
    rows = [row for row in results.rows if row != other]
    name, at_once = f"{title}: differences to {results.label(other)}, paired by seed", COLUMNS_AT_ONCE // 2
    made = Table(name, ["variant"], [[results.label(row)] for row in rows], at_once=at_once)
    for header, metric, domain, length, scale in columns:
        for index, row in enumerate(rows):
            found = difference(results, row, other, metric, domain, length)
            if found is not None and found.clear:
                made.bold.add((index, len(made.header)))
            made.rows[index].append(words(found, scale))
        made.header.append(header)
    return made


def words(found: Difference | None, scale: float) -> str:
    """``−0.41 [−0.52, −0.30]``."""
    if found is None or found.low is None:
        return MISSING
    mean, low, high = (scale * value for value in (found.mean, found.low, found.high))
    size = max(abs(low), abs(high))
    places = 3 if size < 1 else 2 if size < 100 else 1
    return f"{mean:+.{places}f} [{low:+.{places}f}, {high:+.{places}f}]".replace("-", "−")


def explained(results: Results) -> str:
    """What the tables show, in words."""
    other = versus(results)
    counts = sorted({found.pairs for _, found in every(results) if found.low is not None})
    pairs = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    first = (
        ""
        if other == results.reference
        else f"{display(other)} is the grid's first variant: name another one first to compare with it."
    )
    return EXPLAINED.format(versus=display(other), pairs=pairs, first=first).strip()


def every(results: Results) -> list[tuple[tuple[str, str, str, int], Difference]]:
    """The differences of all that was measured, in the order of rows."""
    other = versus(results)
    found = []
    for row, metric, domain, length in results.cells:
        one = difference(results, row, other, metric, domain, length) if row != other else None
        if one is not None:
            found.append(((row, metric, domain, length), one))
    return found


def differences_csv(results: Results) -> str:
    """All differences with an interval, unrounded."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for (row, metric, domain, length), one in every(results):
        if one.low is not None:
            writer.writerow(
                [row, versus(results), metric, domain, length, one.mean, one.low, one.high, one.pairs, str(one.clear).lower()]
            )
    return buffer.getvalue()
