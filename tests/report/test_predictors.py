"""How much of an outcome's variance over designs a predictor explains, against scipy's regression."""

from __future__ import annotations

import math

import pytest
from scipy.stats import linregress

from lit_long.report import write_report
from tests.report.test_page import table

SHORT = {"a": [20.0, 21.0], "b": [22.0, 23.0], "c": [25.0, 24.0], "d": [30.0, 31.0]}
FOUND = {"a": [0.9, 0.8], "b": [0.5, 0.6], "c": [0.55, 0.7], "d": [0.1, 0.2]}
CHOICES = {"a": 0, "b": 1, "c": 2, "d": 3}
PREDICTORS = {
    "designs": [*SHORT, "never run"],
    "outcome": {"row": "{} long", "metric": "retrieval_accuracy", "domain": "docs", "length": 2048},
    "by": {"short loss": {"row": "{} short", "metric": "perplexity", "domain": "docs", "length": 256}},
    "known": {"choices": CHOICES},
}


def reported(tmp_path, make, predictors):
    measured = {}
    for design in SHORT:
        for seed in (0, 1):
            measured[f"{design} short", seed] = [("perplexity", "docs", 256, SHORT[design][seed])]
            measured[f"{design} long", seed] = [("retrieval_accuracy", "docs", 2048, FOUND[design][seed])]
    return write_report(make.sweep(tmp_path, measured, report={"predictors": predictors}))


@pytest.fixture
def rows(tmp_path, make):
    report = reported(tmp_path, make, PREDICTORS)
    header, *found = table(report.markdown, "## What predicts")
    assert header == ["predictor", "R²", "95 % interval", "with it the outcome", "runs"] and "over 4 designs" in report.markdown
    return {cells[0]: cells[1:] for cells in found}


def test_a_line_through_all_runs(rows):
    outcome = [value for design in SHORT for value in FOUND[design]]
    losses = [math.log(value) for design in SHORT for value in SHORT[design]]
    counts = [CHOICES[design] for design in SHORT for _ in range(2)]
    for name, values in (("short loss", losses), ("choices", counts)):
        value, interval, direction, runs = rows[name]
        assert float(value) == pytest.approx(linregress(values, outcome).rvalue ** 2, abs=0.005)
        low, high = map(float, interval.split(" … "))
        assert 0 <= low < float(value) < high <= 1 and direction == "falls" and runs == "8"


@pytest.mark.parametrize("same", ["predictor", "outcome"])
def test_what_is_the_same_everywhere_has_no_line(tmp_path, make, monkeypatch, same):
    if same == "outcome":
        monkeypatch.setattr("tests.report.test_predictors.FOUND", {design: [0.5, 0.5] for design in FOUND})
    known = {"choices": dict.fromkeys(CHOICES, 3) if same == "predictor" else CHOICES}
    _, *found = table(reported(tmp_path, make, PREDICTORS | {"known": known}).markdown, "## What predicts")
    assert found[-1] == ["choices", "—", "—", "—", "8"]
    assert ("—" in found[0]) == (same == "outcome")


def test_without_a_length_it_is_the_longest_that_was_measured(tmp_path, make):
    def without(one):
        return {key: value for key, value in one.items() if key != "length"}

    asked = PREDICTORS | {
        "outcome": without(PREDICTORS["outcome"]),
        "by": {"short loss": without(PREDICTORS["by"]["short loss"])},
    }
    ours, theirs = (reported(tmp_path / name, make, one).markdown for name, one in (("ours", asked), ("theirs", PREDICTORS)))
    assert "## What predicts retrieval_accuracy (docs, 2,048), over 4 designs" in ours and ours == theirs


def test_what_nobody_measured_is_told(tmp_path, make):
    """Else a word that was mistyped would leave a table out without a word."""
    asked = PREDICTORS | {"outcome": PREDICTORS["outcome"] | {"metric": "retrieval_acuracy"}}
    page = reported(tmp_path, make, asked).markdown
    assert "## What predicts" not in page
    told = page.partition("## Not measured")[2]
    assert "* `report.predictors.outcome`: row={} long, metric=retrieval_acuracy, domain=docs, length=2,048\n" in told


@pytest.mark.parametrize("key", ["outcome", "short loss", "designs"])
def test_rows_and_designs_that_nobody_measured_are_told(tmp_path, make, key):
    outcome, by = PREDICTORS["outcome"], PREDICTORS["by"]
    changed = {
        "outcome": {"outcome": outcome | {"row": "{} lng"}},
        "short loss": {"by": {"short loss": by["short loss"] | {"row": "{} shrt"}}},
        "designs": {"designs": [f"{design}x" for design in PREDICTORS["designs"]]},
    }[key]
    page = reported(tmp_path, make, PREDICTORS | changed).markdown
    told = page.partition("## Not measured")[2]
    assert ("`report.predictors.outcome`" in told) == (key != "short loss")
    assert ("`report.predictors.by.short loss`" in told) == (key != "outcome")


def test_the_longest_length_is_that_of_the_rows_asked_for(tmp_path, make):
    """Short rows are measured at 256 tokens, long ones at 2,048, in the same metric."""
    measured = {}
    for design in SHORT:
        for seed in (0, 1):
            measured[f"{design} short", seed] = [("perplexity", "docs", 256, SHORT[design][seed])]
            measured[f"{design} long", seed] = [
                ("retrieval_accuracy", "docs", 2048, FOUND[design][seed]),
                ("perplexity", "docs", 2048, 9.0),
            ]
    short = {key: value for key, value in PREDICTORS["by"]["short loss"].items() if key != "length"}
    page = write_report(
        make.sweep(tmp_path, measured, report={"predictors": PREDICTORS | {"by": {"short loss": short}}})
    ).markdown
    assert any(line.startswith("| short loss") for line in page.splitlines()) and "## Not measured" not in page
