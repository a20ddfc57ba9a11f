"""The scaling law of a sweep's variants, and the paper's curves behind ours."""

from __future__ import annotations

import json
import math

import pytest

from lit_long.report.canvas import style_of, subtitle
from lit_long.report.page import papers_curves
from lit_long.report.results import aggregate, read_sweep
from lit_long.report.tables import fitted_laws
from lit_long.report.write import write_report
from tests.report.conftest import sweep

# LLaMA 2 Long, Figure 1
CONSTANTS = {"7b": (25.4, 0.45, 1.56), "70b": (17.9, 0.51, 1.35)}
PAPER = {name: dict(zip(("alpha", "beta", "gamma"), values, strict=True)) for name, values in CONSTANTS.items()}
LENGTHS = [32, 128, 512, 2048, 8192, 32_768]


def on_the_curve(name, noise=0.0):
    alpha, beta, gamma = CONSTANTS[name]
    return [("perplexity", "books", c, math.exp((alpha / c) ** beta + gamma + noise * (-1) ** i)) for i, c in enumerate(LENGTHS)]


def test_the_papers_curves_give_the_papers_constants(tmp_path):
    folder = sweep(
        tmp_path, {(name, 0): on_the_curve(name) for name in CONSTANTS}, report={"law": {"source": "Figure 1", "rows": PAPER}}
    )
    for one in fitted_laws(aggregate(read_sweep(folder))):
        assert (one.law.alpha, one.law.beta, one.law.gamma) == pytest.approx(CONSTANTS[one.row], rel=1e-4)
    report = write_report(folder)
    assert "## Loss by context: L(c) = (α/c)^β + γ" in report.markdown
    rows = {line.split("|")[1].strip(): line for line in report.markdown.splitlines() if line.startswith("|")}
    assert "| 25.4 |" in rows["7b (paper)"] and "| 0.732 |" in rows["7b (paper)"]  # 2^-0.45
    assert "25.4 [" in rows["7b, books"] and "| 0.702 |" in rows["70b, books"] and "| 1.0000 |" in rows["70b, books"]
    assert {path.name for path in report.figures if path.is_file()} >= {"context_law.png", "context_law.svg"}
    tabulars = [line for line in (folder / "tables.tex").read_text().splitlines() if not line.startswith("%")]
    assert not any("^" in line for line in tabulars), "outside of formulas LaTeX refuses it"


def test_what_is_averaged_over_seeds_is_the_loss(tmp_path):
    """Not the perplexity, whose logarithm is larger: two curves that differ in γ alone have the mean γ, and α and β of both."""
    alpha, beta, _ = CONSTANTS["7b"]
    curves = {gamma: [("perplexity", "books", c, math.exp((alpha / c) ** beta + gamma)) for c in LENGTHS] for gamma in (1.0, 3.0)}
    folder = sweep(tmp_path, {("7b", int(gamma)): curve for gamma, curve in curves.items()}, report={"law": {"rows": PAPER}})
    (one,) = fitted_laws(aggregate(read_sweep(folder)))
    assert (one.law.alpha, one.law.beta, one.law.gamma) == pytest.approx((alpha, beta, 2.0), rel=1e-4)
    assert sorted(law.gamma for law in one.of_runs) == pytest.approx([1.0, 3.0], rel=1e-4)
    assert "| 0.45 · 0.45 |" in write_report(folder).markdown


def test_a_run_that_diverged_is_not_left_out_of_the_mean(tmp_path):
    """No law then, where before its seed all have one."""
    lost = [(metric, domain, length, math.inf) for metric, domain, length, _ in on_the_curve("7b")]
    measured = {("7b", 0): on_the_curve("7b"), ("7b", 1): lost, ("70b", 0): on_the_curve("70b"), ("70b", 1): on_the_curve("70b")}
    folder = sweep(tmp_path, measured, report={"law": {"rows": PAPER}})
    assert [one.row for one in fitted_laws(aggregate(read_sweep(folder)))] == ["70b"]


def test_no_two_of_many_variants_look_alike(tmp_path):
    """There are seven colours; and the law, which has no bands, does not speak of them."""
    names = [f"model {number}" for number in range(30)]
    measured = {(name, seed): on_the_curve("7b") for name in names for seed in (0, 1)}
    results = aggregate(read_sweep(sweep(tmp_path, measured, report={"law": {"rows": PAPER}})))
    styles = [style_of(results, name) for name in names]
    assert len({(style["color"], style["marker"]) for style in styles}) == 30  # points without a line
    assert len({(style["color"], str(style["linestyle"])) for style in styles[:21]}) == 21  # lines without points
    assert "band" not in subtitle(results, bands=False) and "band" in subtitle(results, bands=True)


def test_intervals_hold_the_truth(tmp_path):
    measured = {("7b", seed): on_the_curve("7b", noise) for seed, noise in ((0, 0.004), (1, 0.002))}
    folder = sweep(tmp_path, measured, report={"law": {"rows": PAPER}})
    (one,) = fitted_laws(aggregate(read_sweep(folder)))
    low, high = one.law.intervals["beta"]
    assert low < 0.45 < high and high - low > 0.001


def test_nothing_is_fitted_unasked_or_to_too_few_lengths(tmp_path):
    asked = {"law": {"rows": PAPER}}
    unasked = sweep(tmp_path / "a", {("7b", 0): on_the_curve("7b")})
    few = sweep(tmp_path / "b", {("7b", 0): on_the_curve("7b")[:3]}, report=asked)
    for folder in (unasked, few):
        report = write_report(folder)
        assert "L(c)" not in report.markdown and not (folder / "figures" / "context_law.png").exists()


def test_the_papers_retrieval_is_drawn_behind_ours(tmp_path):
    measured = {(row, 0): [("retrieval_accuracy", "docs", n, 0.5) for n in (256, 1024, 2048)] for row in ("rope", "abf")}
    base = {0: [("retrieval_accuracy", "docs", 256, 0.9)]}
    curve = {
        "curve": {
            "source": "Figure 5b",
            "context": 4096,
            "rows": {"rope": [[256, 100], [10_240, 0]], "abf": [[256, 100], [30_720, 100]]},
        }
    }
    pictures = {}
    for name, more in (("with", curve), ("without", {})):
        report = write_report(sweep(tmp_path / name, measured, base, report=more))
        pictures[name] = (report.folder / "figures" / "retrieval.svg").read_text()
        assert ("Figure 5b" in report.markdown.split("![")[1]) and (name == "without" or "broad and pale" in report.markdown)
    results = aggregate(read_sweep(tmp_path / "with" / "runs" / "position_tiny" / "k1"))
    assert papers_curves(results)["rope"] == [(16.0, 100.0), (640.0, 0.0)]  # 4,096 tokens there are the base's 256 here
    # A base that came with lit-long was trained by no stage of the sweep: what was measured of it tells its context.
    folder = tmp_path / "with" / "runs" / "position_tiny" / "k1"
    record = json.loads((folder / "sweep.json").read_text())
    for trial in record["trials"]:
        del trial["stages"]["base"]
        file = folder / trial["stages"]["evaluate_base"] / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"pretrained_context": 128}))
    (folder / "sweep.json").write_text(json.dumps(record))
    assert papers_curves(aggregate(read_sweep(folder)))["rope"] == [(8.0, 100.0), (320.0, 0.0)]
    assert pictures["with"].count("stroke-opacity: 0.25") == 2 and "stroke-opacity: 0.25" not in pictures["without"]
