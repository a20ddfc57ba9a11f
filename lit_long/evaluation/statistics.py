"""What a score's value is worth: its standard error and a 95 % interval. All are functions of the samples alone.

* a mean: sample deviation / √n, and a percentile bootstrap of the samples; of fewer than 20 samples Student's t, which may reach beyond a
  score's range;
* a share of hits: the same standard error, and Wilson's interval, which stays wide when all of a few samples hit or miss, where the
  standard error is 0;
* a difference of pairs, such as two variants under the same seeds: Student's t-interval of the mean difference;
* a ratio Σnats / Σtokens over documents: documents are the samples, because tokens of one document are not independent. Intervals as of a mean.

Of a single sample nothing is known, so stderr, low and high are None, never 0.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Z = 1.959963984540054  # 97.5 % of the normal distribution
# The same of Student's t with 1 to 18 degrees of freedom: evaluations need few, and importing scipy for them would slow every stage down.
T = (
    12.706204736, 4.302652730, 3.182446305, 2.776445105, 2.570581836, 2.446911851, 2.364624252, 2.306004135, 2.262157163,
    2.228138852, 2.200985160, 2.178812830, 2.160368656, 2.144786688, 2.131449546, 2.119905299, 2.109815578, 2.100922040,
)  # fmt: skip
LARGEST = math.log(sys.float_info.max)
RESAMPLES = 2000
FEW = 20  # samples below which a bootstrap's interval is too narrow: of 4 normal ones it holds the mean in 80 % of all cases


def mean(values: Sequence[float]) -> dict[str, Any]:
    """value, stderr, low, high and n of the mean. Raises ValueError of nothing."""
    array = checked(values)
    n, value, stderr = len(array), float(array.mean()), spread(array)["stderr"]
    return {"value": value, "stderr": stderr, **confidence_interval(n, value, stderr, lambda rows: array[rows].mean(-1)), "n": n}


def share(hits: Sequence[bool]) -> dict[str, Any]:
    """Like `mean`, of hits and misses."""
    array = checked(hits)
    n, p = len(array), float(array.mean())
    centre, half = (p + Z**2 / (2 * n)) / (1 + Z**2 / n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    interval = {"low": max(0.0, centre - half), "high": min(1.0, centre + half)} if n > 1 else {"low": None, "high": None}
    return {"value": p, **spread(array), **interval, "n": n}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, Any]:
    """Like `mean`, of Σ numerators / Σ denominators; the standard error is that of the linearised ratio (Cochran 1977, §6.4)."""
    above, below = checked(numerators), checked(denominators)
    n, value = len(above), float(above.sum() / below.sum())
    deviations = above - value * below
    stderr = math.sqrt(n / (n - 1) * float((deviations**2).sum())) / float(below.sum()) if n > 1 else None

    def resampled(rows: np.ndarray) -> np.ndarray:
        sums = below[rows].sum(-1)  # of rare tokens, such as answers in one bin of positions, a resample may hold none
        return above[rows].sum(-1)[sums > 0] / sums[sums > 0]

    return {"value": value, "stderr": stderr, **confidence_interval(n, value, stderr, resampled), "n": n}


def paired(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """value, stderr, low, high and n of the mean of ``ours − theirs``, pair by pair.

    Raises ValueError of nothing, and of two numbers of values.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} values cannot be paired with {len(theirs)}")
    array = checked(ours) - checked(theirs)
    n, value, stderr = len(array), float(array.mean()), spread(array)["stderr"]
    return {"value": value, "stderr": stderr, **student(n, value, stderr), "n": n}


def geometric(samples: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Like `mean`, of the geometric mean of the columns' means, as ROUGE-geo is; the standard error by the delta method."""
    array_NM = np.asarray(samples, dtype=np.float64)
    n, means_M = len(checked(samples)), array_NM.mean(0)
    value = float(means_M.prod() ** (1 / len(means_M)))
    stderr = None if n < 2 else 0.0
    if n > 1 and value > 0:
        stderr = spread(value * (array_NM / means_M).mean(1))["stderr"]
    ends = confidence_interval(n, value, stderr, lambda rows: geometric_mean(array_NM[rows].mean(1)))
    return {"value": value, "stderr": stderr, **ends, "n": n}


def geometric_mean(means_RM: np.ndarray) -> np.ndarray:
    return means_RM.prod(-1) ** (1 / means_RM.shape[-1])


def exponential(row: dict[str, Any]) -> dict[str, Any]:
    """The row of exp(value), as perplexity is of mean nats; the standard error by the delta method."""
    ends = {key: None if row[key] is None else exp(row[key]) for key in ("low", "high")}
    value = exp(row["value"])
    return row | ends | {"value": value, "stderr": None if row["stderr"] is None else value * row["stderr"]}


def exp(nats: float) -> float:
    """exp(nats), at most the largest float: a model that diverged may exceed it, and JSON has no infinity. NaN stays NaN."""
    return math.exp(min(nats, LARGEST))


def checked(values: Sequence[float]) -> np.ndarray:
    if not len(values):
        raise ValueError("a score of no samples")
    return np.asarray(values, dtype=np.float64)


def spread(array: np.ndarray) -> dict[str, float | None]:
    if len(array) > 1 and array.min() == array.max():
        return {"stderr": 0.0}  # and not what rounding leaves
    return {"stderr": float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None}


def confidence_interval(
    n: int, value: float, stderr: float | None, statistic: Callable[[np.ndarray], np.ndarray]
) -> dict[str, float | None]:
    """The ends of a 95 % interval: Student's t of few samples, a `bootstrap` of others."""
    return student(n, value, stderr) if n < FEW else bootstrap(n, statistic)


def student(n: int, value: float, stderr: float | None) -> dict[str, float | None]:
    """``value`` ± the 97.5 % of Student's t times its standard error."""
    if stderr is None:
        return {"low": None, "high": None}
    if n - 1 <= len(T):
        half = T[n - 2] * stderr
    else:
        from scipy.special import stdtrit

        half = float(stdtrit(n - 1, 0.975)) * stderr
    return {"low": value - half, "high": value + half}


def bootstrap(n: int, statistic: Callable[[np.ndarray], np.ndarray]) -> dict[str, float | None]:
    """2.5 % and 97.5 % of ``statistic`` over resamples, given as indices [resamples, n]; always the same ones for an n."""
    if n < 2:
        return {"low": None, "high": None}
    rows = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    low, high = np.quantile(statistic(rows), [0.025, 0.975])
    return {"low": float(low), "high": float(high)}
