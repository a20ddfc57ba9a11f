"""The context-length law: the paper's constants from its own curves, and intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from lit_long.config import UserError
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.scaling_law import Law, fit, law_measurements

# LLaMA 2 Long, Figure 1: α, β, γ; 2^-β; losses at 1, 4,096, 16,384 and 32,768 tokens, computed by hand from them
PAPER = {
    "7B": ((25.4, 0.45, 1.56), 0.732, (5.85, 1.6615, 1.6144, 1.5998)),
    "13B": ((19.5, 0.48, 1.45), 0.717, (5.61, 1.5268, 1.4895, 1.4783)),
    "34B": ((17.7, 0.50, 1.41), 0.707, (5.62, 1.4757, 1.4429, 1.4332)),
    "70B": ((17.9, 0.51, 1.35), 0.702, (5.70, 1.4126, 1.3809, 1.3717)),
}


@pytest.mark.parametrize("size", PAPER)
def test_the_papers_curves(size):
    constants, doubling, losses = PAPER[size]
    law = Law(*constants, {}, 1.0, 0)
    assert law.doubling == pytest.approx(doubling, abs=5e-4)
    assert law.loss(1) == pytest.approx(losses[0], abs=0.01)
    assert [law.loss(c) for c in (4096, 16384, 32768)] == pytest.approx(losses[1:], abs=5e-4)
    contexts = 2.0 ** np.arange(0, 16)
    found = fit(contexts, law.loss(contexts))
    assert (found.alpha, found.beta, found.gamma) == pytest.approx(constants, abs=5e-4)
    assert found.r2 == pytest.approx(1, abs=1e-9)
    long = 2.0 ** np.arange(7, 15)  # as an evaluation has them
    found = fit(long, law.loss(long))
    assert (found.alpha, found.beta, found.gamma) == pytest.approx(constants, rel=1e-3)


def test_intervals_cover_the_truth():
    """Of 40 noisy curves about 95 % of the intervals hold the true value."""
    truth, random = Law(25.4, 0.45, 1.56, {}, 1.0, 0), np.random.default_rng(0)
    contexts = np.geomspace(16, 32768, 12)
    covered = {"alpha": 0, "beta": 0, "gamma": 0}
    for _ in range(40):
        found = fit(contexts, truth.loss(contexts) + random.normal(0, 0.01, len(contexts)))
        for name in covered:
            low, high = found.intervals[name]
            covered[name] += low <= getattr(truth, name) <= high
    assert all(34 <= count <= 39 for count in covered.values()), covered


def test_a_rising_loss_is_told_by_r2():
    """Beyond a model's range the loss explodes; the best falling curve explains nothing of it."""
    found = fit([256, 512, 1024, 2048, 4096], [3.0, 2.9, 2.8, 5.0, 7.0])
    assert found.r2 < 0.1


def test_three_points_have_no_intervals():
    law = Law(20.0, 0.5, 1.5, {}, 1.0, 0)
    found = fit([128, 512, 2048], [law.loss(c) for c in (128, 512, 2048)])
    assert found.beta == pytest.approx(0.5, abs=1e-3) and found.intervals == {"alpha": None, "beta": None, "gamma": None}


@pytest.mark.parametrize(
    ("contexts", "losses", "message"),
    [
        ([1, 2], [3, 2], "three parameters"),
        ([1, 1, 1, 2], [3, 3, 3, 2], "there are 2"),
        ([1, 2, 4], [3, float("nan"), 2], "positive"),
    ],
)
def test_refusals(contexts, losses, message):
    with pytest.raises(UserError, match=message):
        fit(contexts, losses)


def test_rows_of_domains_with_four_lengths():
    law = Law(20.0, 0.5, 1.5, {}, 1.0, 0)
    rows = [Measurement("nats", "code", c, law.loss(c)) for c in (128, 256, 512, 1024)]
    rows += [Measurement("nats", "docs", c, law.loss(c)) for c in (128, 256, 512)]
    rows += [Measurement("perplexity", "docs", 64, 9.0)]
    found = law_measurements(rows)
    assert {row.domain for row in found} == {"code"} and all(row.n == 4 and row.length == 1024 for row in found)
    values = {row.metric: row.value for row in found}
    assert values == pytest.approx({"law_alpha": 20.0, "law_beta": 0.5, "law_gamma": 1.5, "law_r2": 1.0}, rel=1e-3)
