"""The difference of two variants, run for run: with the same seed both start from the same base and see the same tokens, so what seeds differ in cancels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """Mean of ``n`` paired differences with the 95 % interval of Student's t; of one pair no interval is known (None)."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and (self.low > 0 or self.high < 0)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Of first − second, where ``first[i]`` and ``second[i]`` belong together. Raises ValueError of nothing, or of unequal numbers."""
    from scipy.stats import t

    differences = [a - b for a, b in zip(first, second, strict=True)]
    if not differences:
        raise ValueError("a difference of no pairs")
    mean, n = statistics.fmean(differences), len(differences)
    if n == 1 or not all(map(math.isfinite, differences)):
        return Difference(mean, None, None, n)
    room = float(t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - room, mean + room, n)
