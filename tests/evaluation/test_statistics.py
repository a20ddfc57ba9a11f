"""Standard errors and intervals against closed forms, and against what they claim to be: the spread of repeated experiments."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lit_long.evaluation.statistics import exponential, geometric, mean, paired, ratio, share


def test_mean():
    row = mean([1.0, 2.0, 4.0, 9.0])
    assert (row["value"], row["n"]) == (4.0, 4)
    assert row["stderr"] == pytest.approx(math.sqrt((9 + 4 + 0 + 25) / 3) / 2)
    many = [1.0, 2.0, 4.0, 9.0] * 6
    assert 1 <= mean(many)["low"] < 4 < mean(many)["high"] <= 9
    assert mean(many) == mean(many)  # the bootstrap is always the same
    assert mean([0.8] * 20) == {
        "value": pytest.approx(0.8),
        "stderr": 0.0,
        "low": pytest.approx(0.8),
        "high": pytest.approx(0.8),
        "n": 20,
    }


def test_few_samples_have_students_interval():
    """scipy's own is the oracle; and it holds the mean as often as it says."""
    from scipy.stats import t

    row = mean([1.0, 2.0, 4.0, 9.0])
    assert (row["low"], row["high"]) == pytest.approx(t.interval(0.95, 3, loc=4.0, scale=row["stderr"]))
    draw = np.random.default_rng(0)
    for n in (2, 4, 8, 20):
        rows = [mean(draw.normal(0, 1, n)) for _ in range(1000)]
        assert sum(row["low"] < 0 < row["high"] for row in rows) / 1000 > 0.91
    for row in (ratio([10.0, 12.0, 17.0], [10, 10, 10]), geometric([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])):
        same = mean([1.0, 1.2, 1.7]) if row["value"] < 2 else mean([1.0, 2.0, 4.0])
        assert (row["low"], row["high"]) == pytest.approx((same["low"], same["high"]))


@pytest.mark.parametrize("n", [2, 3, 5, 18, 19, 20, 40])
def test_paired_differences_have_students_interval(n):
    """scipy's own paired t-test is the oracle."""
    from scipy.stats import ttest_rel

    draw = np.random.default_rng(n)
    theirs = draw.normal(20, 3, n)
    ours = theirs - 0.4 + draw.normal(0, 0.2, n)
    row, interval = paired(ours, theirs), ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert row["value"] == pytest.approx(ours.mean() - theirs.mean()) and row["n"] == n
    assert paired([3.0], [1.0]) == {"value": 2.0, "stderr": None, "low": None, "high": None, "n": 1}
    with pytest.raises(ValueError, match="cannot be paired"):
        paired([1.0, 2.0], [1.0])


def test_shares_have_wilsons_interval():
    """Figures of Newcombe (1998), Table I: 81 of 263, 15 of 148, 0 of 20, and 1 of 29."""
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        row = share([True] * hits + [False] * (n - hits))
        assert (row["low"], row["high"]) == pytest.approx((low, high), abs=5e-5) and row["value"] == hits / n
    assert share([True] * 4)["stderr"] == 0 and share([True] * 4)["low"] == pytest.approx(0.51, abs=0.005)


def test_ratios_are_of_sums():
    row = ratio([10.0, 300.0], [10, 100])
    assert row["value"] == pytest.approx(310 / 110)  # a mean of the two ratios would be 2
    assert ratio([3.0, 5.0, 9.0], [2, 2, 2])["stderr"] == pytest.approx(mean([1.5, 2.5, 4.5])["stderr"])


def test_the_standard_error_of_a_ratio_is_the_spread_of_repetitions():
    random = np.random.default_rng(0)

    def experiment():
        tokens = random.integers(50, 500, size=40)
        return ratio(tokens * random.normal(2.0, 0.3, size=40), tokens)

    found = [experiment() for _ in range(300)]
    spread = np.std([row["value"] for row in found], ddof=1)
    assert np.mean([row["stderr"] for row in found]) == pytest.approx(spread, rel=0.1)
    assert 0.88 < np.mean([row["low"] < 2.0 < row["high"] for row in found]) < 0.98


def test_perplexity_is_exp_of_nats():
    nats = ratio([20.0, 31.0, 28.0], [10, 10, 10])
    row = exponential(nats)
    assert row["value"] == pytest.approx(math.exp(79 / 30)) and row["low"] == pytest.approx(math.exp(nats["low"]))
    h = 1e-6
    assert row["stderr"] == pytest.approx(nats["stderr"] * (math.exp(nats["value"] + h) - row["value"]) / h, rel=1e-4)


def test_perplexity_of_a_model_that_diverged():
    """Student's t of two documents reaches 12.7 standard errors, which exp() cannot; what is written must be JSON."""
    row = exponential(ratio([20_000.0, 140_000.0], [1000, 1000]))
    assert row["value"] == pytest.approx(math.exp(80)) and 0 <= row["low"] < row["value"] < row["high"]
    assert exponential(ratio([8e5], [1000]))["value"] == json.loads(json.dumps(row["high"], allow_nan=False)) > 1e307
    assert math.isnan(exponential(ratio([math.nan], [1000]))["value"]), "no number is not a large one"


def test_one_sample_says_nothing_of_its_spread():
    for row in (mean([3.0]), share([True]), ratio([3.0], [2.0]), exponential(ratio([3.0], [2.0]))):
        assert row["n"] == 1 and row["stderr"] is row["low"] is row["high"] is None
    for statistic in (mean, share, lambda none: ratio(none, none)):
        with pytest.raises(ValueError, match="no samples"):
            statistic([])
