"""What predicts how well a design will do: for each predictor, the share of the outcome's variance over designs and seeds that a straight line through it
explains, R², with a 95 % interval.

The interval is a percentile bootstrap of the designs, each with all its seeds, for seeds of one design are not independent designs. A description: with
few designs it is wide, and no verdict follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from lit_long.config.schema import PredictorConfig
from lit_long.report.results import Results
from lit_long.report.tables import MISSING, Table

RESAMPLES = 2000
FEWEST = 3  # designs
Points = Mapping[str, list[tuple[float, float]]]  # design → of each seed the predictor and the outcome

TITLE = "What predicts {outcome}, over {designs} designs"


def predictors_table(results: Results) -> Table | None:
    """One row a predictor; None where none was asked for, or fewer than FEWEST designs are measured."""
    asked = results.sweep.report.predictors
    rows, counts = [], set()
    for name in [*asked.by, *asked.known]:
        points = points_of(results, name)
        if len(points) < FEWEST:
            continue
        value, low, high, slope = explained(points)
        counts.add(len(points))
        rows.append(
            [
                name,
                MISSING if math.isnan(value) else f"{value:.2f}",
                MISSING if math.isnan(low) else f"{low:.2f} … {high:.2f}",
                "rises" if slope > 0 else "falls" if slope < 0 else MISSING,
                str(sum(map(len, points.values()))),
            ]
        )
    if not rows:
        return None
    outcome = f"{asked.outcome.metric} ({asked.outcome.domain}, {longest(results, asked.outcome):,})"
    designs = "–".join(str(count) for count in dict.fromkeys([min(counts), max(counts)]))
    header = ["predictor", "R²", "95 % interval", "with it the outcome", "runs"]
    return Table(TITLE.format(outcome=outcome, designs=designs), header, rows)


def points_of(results: Results, name: str) -> dict[str, list[tuple[float, float]]]:
    """Of each design the runs that have both numbers; perplexities as nats."""
    asked, found = results.sweep.report.predictors, {}
    for design in asked.designs:
        for seed in results.sweep.seeds:
            predictor = number(results, asked.by[name], design, seed) if name in asked.by else asked.known[name].get(design)
            outcome = number(results, asked.outcome, design, seed)
            if predictor is not None and outcome is not None:
                found.setdefault(design, []).append((predictor, outcome))
    return found


def longest(results: Results, wanted: PredictorConfig) -> int:
    """Tokens: the length that is named, else the longest at which a row of a design was measured; 0 where none was."""
    rows = {wanted.row.format(design) for design in results.sweep.report.predictors.designs}
    about = wanted.metric, wanted.domain
    return wanted.length or max((length for row, *of, length in results.cells if row in rows and (*of,) == about), default=0)


def is_measured(results: Results, wanted: PredictorConfig) -> bool:
    """Whether any run of any design has that number."""
    designs, seeds = results.sweep.report.predictors.designs, results.sweep.seeds
    return any(number(results, wanted, design, seed) is not None for design in designs for seed in seeds)


def number(results: Results, wanted: PredictorConfig, design: str, seed: int) -> float | None:
    value = results.value(wanted.row.format(design), seed, wanted.metric, wanted.domain, longest(results, wanted))
    if value is None or not math.isfinite(value):
        return None
    return math.log(value) if wanted.metric == "perplexity" else value


def explained(points: Points) -> tuple[float, float, float, float]:
    """R², the ends of its interval, and the line's slope; nan where the predictor, or the outcome, is the same everywhere. Resamples of that kind are left out."""
    import numpy as np

    def r2(chosen: list[str]) -> tuple[float, float]:
        x, y = np.array([point for design in chosen for point in points[design]]).T
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            return math.nan, math.nan
        r = float(np.corrcoef(x, y)[0, 1])
        return r * r, r

    designs = list(points)
    draws = np.random.default_rng(0).integers(len(designs), size=(RESAMPLES, len(designs)))
    values = [r2([designs[place] for place in row])[0] for row in draws]
    low, high = np.nanquantile(values, [0.025, 0.975]) if np.isfinite(values).any() else (math.nan, math.nan)
    value, slope = r2(designs)
    return value, float(low), float(high), slope
