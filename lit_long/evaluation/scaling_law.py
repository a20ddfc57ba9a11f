"""The context-length scaling law of LLaMA 2 Long (§1.5, Figure 1): L(c) = (α / c)^β + γ, loss in nats against context in tokens.

The paper does not tell how it fitted. Here: least squares on the losses, α, β, γ > 0, from several starts; α is fitted as its logarithm,
because its likely values span decades. Intervals are ± t · standard error of the usual linearisation, with points - 3 degrees of freedom
(α's on its logarithm, so it is not symmetric); they are None with three points, which any such curve passes through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_long.config import UserError
from lit_long.evaluation.measurement import Measurement

LEAST_POINTS = 4  # three parameters, and one to contradict them
NAMES = ("alpha", "beta", "gamma")
STARTS = [(alpha, beta) for alpha in (1.0, 20.0, 400.0) for beta in (0.2, 0.5, 1.0)]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Law:
    """``alpha`` tokens, ``beta``, ``gamma`` nats; 95 % intervals by name; ``r2`` of the points fitted."""

    alpha: float
    beta: float
    gamma: float
    intervals: dict[str, Interval | None]
    r2: float
    points: int

    def loss(self, context: float | np.ndarray) -> float | np.ndarray:
        """Nats per token at ``context`` tokens."""
        return (self.alpha / context) ** self.beta + self.gamma

    @property
    def doubling(self) -> float:
        """What twice the context leaves of the first term: 2^-β."""
        return float(2.0**-self.beta)


def fit(contexts: Sequence[float], losses: Sequence[float]) -> Law:
    """The law through points (tokens, nats).

    Raises:
        UserError: fewer than three different contexts, values that are not positive numbers, or points that no such curve approaches.
    """
    from scipy.optimize import least_squares
    from scipy.stats import t as student

    c, nats = np.asarray(contexts, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if len(set(c.tolist())) < len(NAMES) or len(c) != len(nats):
        raise UserError(
            f"the scaling law has three parameters and needs as many different lengths; there are {len(set(c.tolist()))}"
        )
    if not (np.isfinite(nats).all() and (nats > 0).all() and (c > 0).all()):
        raise UserError("the scaling law needs positive numbers: contexts in tokens, losses in nats")
    floor = float(nats.min())

    def residuals(values: np.ndarray) -> np.ndarray:
        return np.exp(values[1] * (values[0] - np.log(c))) + values[2] - nats

    bounds = ([-25.0, 1e-4, 1e-6], [25.0, 8.0, max(floor, 1e-5)])
    tries = []
    for alpha, beta in STARTS:
        for share in (0.5, 0.95):
            start = np.array([np.log(alpha), beta, share * floor])
            tries.append(
                least_squares(residuals, start, bounds=bounds, x_scale=(1.0, 0.1, 0.1), xtol=1e-14, ftol=1e-14, gtol=1e-14)
            )
    best = min(tries, key=lambda found: found.cost)
    values, left = best.x, 2 * float(best.cost)
    freedom = len(c) - len(NAMES)
    intervals: dict[str, Interval | None] = dict.fromkeys(NAMES)
    if freedom > 0:
        covariance = np.linalg.pinv(best.jac.T @ best.jac) * left / freedom
        reach = student.ppf(0.975, freedom) * np.sqrt(np.diag(covariance))
        low, high = values - reach, values + reach
        with np.errstate(over="ignore"):
            intervals = {
                "alpha": (float(np.exp(low[0])), float(np.exp(high[0]))),
                "beta": (float(low[1]), float(high[1])),
                "gamma": (float(low[2]), float(high[2])),
            }
    total = float(((nats - nats.mean()) ** 2).sum())
    return Law(
        float(np.exp(values[0])), float(values[1]), float(values[2]), intervals, 1 - left / total if total else 0.0, len(c)
    )


def law_measurements(measured: list[Measurement]) -> list[Measurement]:
    """The law's parameters and its R², for every domain whose nats were measured at four lengths or more.

    A loss that does not fall with the context (beyond the range of the model) has no such law: R² tells, and the measurement stays.
    """
    found = []
    for domain in dict.fromkeys(each.domain for each in measured if each.metric == "nats"):
        points = [each for each in measured if each.metric == "nats" and each.domain == domain]
        if len(points) < LEAST_POINTS:
            continue
        law = fit([each.length for each in points], [each.value for each in points])
        longest, common = max(each.length for each in points), {"n": law.points, "unit": "lengths"}
        for name in NAMES:
            low, high = law.intervals[name] or (None, None)
            found.append(Measurement(f"law_{name}", domain, longest, getattr(law, name), low=low, high=high, **common))
        found.append(Measurement("law_r2", domain, longest, law.r2, **common))
    return found
