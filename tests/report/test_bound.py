"""Retrieval by RoPE base, beside the base-bound criterion."""

from __future__ import annotations

import numpy as np

from lit_long.report.results import aggregate, read_sweep
from lit_long.report.tables import bound_table
from lit_long.report.write import write_report
from tests.report.conftest import sweep

BASES = {"low": 625.0, "high": 500_000.0}


def measured(scores):
    return {(row, 0): [("retrieval_accuracy", "docs", n, score) for n, score in at.items()] for row, at in scores.items()}


def supported(base, head_dim):
    """By its definition, over all distances."""
    frequencies = base ** (-2 * np.arange(head_dim // 2) / head_dim)
    sums = np.cos(np.outer(np.arange(200_000), frequencies)).sum(-1)
    return int((sums < 0).argmax())


def test_scores_at_lengths_that_a_base_does_not_support_are_marked(tmp_path):
    scores = {"high": {128: 0.9, 2048: 0.8}, "low": {128: 0.7, 2048: 0.25}}
    settings = {row: {"position": {"scheme": "rope", "base": base}, "model": {"head_dim": 64}} for row, base in BASES.items()}
    report = write_report(sweep(tmp_path, measured(scores), report={"by_base": True}, settings=settings))
    table = bound_table(aggregate(read_sweep(report.folder)))
    low, high = (supported(BASES[row], 64) for row in ("low", "high"))
    assert 128 < low < 2048 < high  # so the marks below tell the two apart
    assert table.rows == [["low", "625", f"{low:,}", "70.0", "[25.0]"], ["high", "500,000", f"{high:,}", "90.0", "80.0"]]
    assert table.title in report.markdown and "figures/base_bound.png" in report.markdown
    assert (report.folder / "figures" / "base_bound.svg").read_text().count("2,048 tokens") == 1


def test_an_experiment_of_0_1_asks_for_it_in_its_own_way(tmp_path, capsys):
    """Its bases are read from the stages all the same."""
    scores = {"high": {128: 0.9}, "low": {128: 0.7}}
    settings = {row: {"position": {"base": base}, "model": {"head_dim": 64}} for row, base in BASES.items()}
    asked = {"bound": {"head_dim": 32, "rows": dict.fromkeys(BASES, 7.0)}}
    report = write_report(sweep(tmp_path, measured(scores), report=asked, settings=settings))
    table = bound_table(aggregate(read_sweep(report.folder)))
    assert [row[:2] for row in table.rows] == [["low", "625"], ["high", "500,000"]]
    assert table.rows[0][2] == f"{supported(625.0, 64):,}"


def test_other_experiments_have_none_of_it(tmp_path):
    report = write_report(sweep(tmp_path, measured({"low": {256: 0.7}})))
    assert "base_bound" not in report.markdown and not (report.folder / "figures" / "base_bound.png").exists()
