"""Differences to the first row, paired by seed: against scipy's paired t-test, and what is not claimed."""

from __future__ import annotations

import csv

import pytest
from scipy.stats import ttest_rel

from lit_long.report import write_report
from lit_long.report.differences import Difference
from tests.report.test_page import seeds, table

ROPE, ABF, PI = [21.0, 24.1, 19.2], [20.6, 23.6, 18.9], [20.9, 24.3, 19.1]


def differences(folder):
    with (folder / "differences.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_three_seeds_have_an_interval(tmp_path, make):
    """ABF is better under every seed by 0.3 to 0.5, far less than seeds differ: no bold by deviations, a clear difference by pairs."""
    folder = make.sweep(tmp_path, seeds(make, rope=ROPE, abf=ABF, pi=PI))
    report = write_report(folder)
    rows = {(r["variant"], r["domain"], r["length"]): r for r in differences(folder)}
    assert len(rows) == 8 and {r["versus"] for r in rows.values()} == {"rope"}
    for name, values in (("abf", ABF), ("pi", PI)):
        row, interval = rows[name, "code", "2048"], ttest_rel(values, ROPE).confidence_interval(0.95)
        assert (float(row["low"]), float(row["high"])) == pytest.approx((interval.low, interval.high))
        assert float(row["difference"]) == pytest.approx(sum(values) / 3 - sum(ROPE) / 3) and row["pairs"] == "3"
    assert rows["abf", "code", "2048"]["excludes_0"] == "true" and rows["pi", "code", "2048"]["excludes_0"] == "false"
    header, *shown = table(report.markdown, "### Validation perplexity: differences to RoPE, paired by seed")
    assert header == ["variant", "code<br>@ 2,048", "docs<br>@ 2,048", "code<br>@ 256", "docs<br>@ 256"]
    assert [row[:2] for row in shown] == [
        ["RoPE ABF", "**−0.400 [−0.648, −0.152]**"],
        ["RoPE PI", "+0.000 [−0.430, +0.430]"],
    ]
    assert "95 % t-interval of 3 pairs" in report.markdown and "RoPE is the grid's first variant" in report.markdown
    _, *means = table(report.markdown, "## Validation perplexity")
    assert "**" not in means[2][1]
    assert (
        "differences to RoPE" in (folder / "report.html").read_text()
        and "differences to RoPE" in (folder / "tables.tex").read_text()
    )
    assert folder / "differences.csv" in report.files


def test_two_seeds_claim_nothing(tmp_path, make):
    folder = make.sweep(tmp_path, seeds(make, rope=ROPE[:2], abf=ABF[:2]))
    (folder / "differences.csv").write_text("of an earlier report")
    report = write_report(folder)
    assert "ifferences" not in report.markdown and not (folder / "differences.csv").exists()
    assert folder / "differences.csv" not in report.files


def test_pairs_are_of_one_seed_and_of_three_at_least(tmp_path, make):
    """A run that is missing takes its pair along: four seeds with one gap are three pairs, three seeds with one are too few."""
    measured = seeds(make, rope=[*ROPE, 22.0], abf=[*ABF, 99.0], pi=[*PI, 21.5])
    measured["rope", 3] = measured["pi", 0] = measured["pi", 1] = None
    folder = make.sweep(tmp_path, measured)
    report = write_report(folder)
    found = {(r["variant"], r["domain"], r["length"]): r for r in differences(folder)}
    assert {variant for variant, _, _ in found} == {"abf"}
    row = found["abf", "code", "2048"]
    assert row["pairs"] == "3" and float(row["difference"]) == pytest.approx(-0.4)
    _, *shown = table(report.markdown, "### Validation perplexity: differences")
    assert shown[1] == ["RoPE PI", "—", "—", "—", "—"]


def test_the_reference_is_a_row_or_what_one_variant_is_compared_with(tmp_path, make):
    base = {seed: make.perplexities(90.0 + value) for seed, value in enumerate((0.0, 1.0, 5.0))}
    both = make.sweep(tmp_path / "both", seeds(make, rope=ROPE, abf=ABF), base=base)
    _, *shown = table(write_report(both).markdown, "### Validation perplexity: differences to RoPE")
    assert [row[0] for row in shown] == ["RoPE ABF", "base (reference)"] and shown[1][1].startswith("**+70.57 [")
    one = make.sweep(tmp_path / "one", seeds(make, abf=ABF), base=base)
    assert "### Validation perplexity: differences to base (reference), paired by seed" in write_report(one).markdown


def test_one_run_under_three_seeds_is_one_pair(tmp_path, make):
    """Weights that no seed changes would have three equal differences."""
    folder = make.sweep(tmp_path, seeds(make, rope=ROPE, abf=ABF))
    record = (folder / "sweep.json").read_text()
    for name in ("rope", "abf"):
        for seed in (1, 2):
            record = record.replace(f"evaluate-{name}-s{seed}", f"evaluate-{name}-s0")
    (folder / "sweep.json").write_text(record)
    assert "ifferences" not in write_report(folder).markdown


def test_equal_differences_are_no_evidence():
    """Scores of few examples: each seed found one more of 32."""
    assert not Difference(0.031, 0.031, 0.031, 3).clear
    assert Difference(0.031, 0.01, 0.052, 3).clear and not Difference(0.031, -0.01, 0.07, 3).clear
    assert not Difference(1.0, None, None, 2).clear
