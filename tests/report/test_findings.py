"""Kept results, paired differences and verdicts, against scipy's paired t-test and sweeps made by hand."""

from __future__ import annotations

import json
import math

import pytest
import yaml
from scipy.stats import ttest_rel

from lit_long.config import UserError
from lit_long.report.__main__ import main
from lit_long.report.archive import evaluated, loss_by_parts
from lit_long.report.findings import findings, runs, write_findings
from lit_long.report.results import read_sweep
from tests.integration.mini import REPOSITORY

CLAIMS = """
title: Findings
introduction: Made by a test.
designs:
  e: {design: two variants, doubt: more seeds}
claims:
  - {finding: lower, paper: "Table 5", experiment: e, domains: [code, docs], length: 2k, first: abf, second: rope}
  - {finding: retrieves, paper: "Figure 5b", experiment: e, metric: retrieval_accuracy, domains: [docs], length: 2k, first: abf, second: rope,
     claim: more, at_least: 0.2}
  - {finding: better than base, paper: "–", experiment: e, domains: [code, docs], length: 2k, first: abf, second: base}
  - {finding: the same, paper: "–", experiment: e, domains: [code, docs], length: 2k, first: abf, second: rope, claim: same, within: 0.11}
  - {finding: elsewhere, paper: "–", experiment: other, length: 2k, first: abf, second: rope}
  - {finding: level, paper: "–", experiment: e, metric: retrieval_accuracy, domains: [docs], length: 2k, first: abf, level: 0.6, claim: more}
  - {finding: never, paper: "Table 2", why_not: closed models}
"""


def run(stage, variants, seed, code, docs, accuracy):
    rows = [["perplexity", "code", 2048, code], ["perplexity", "docs", 2048, docs], ["perplexity", "docs", 256, 1.0]]
    rows += [["retrieval_accuracy", "docs", 2048, accuracy], ["retrieval_accuracy", "docs", 256, 0.9]]
    return {
        "stage": stage,
        "identity": f"{stage}-{variants[0]}{seed}",
        "rows": variants if stage == "evaluate" else ["base"],
        "seeds": [seed],
        "measurements": rows,
    }


def page(tmp_path, measured, **more):
    (tmp_path / "claims.yaml").write_text(CLAIMS)
    kept = {
        "experiment": "e",
        "scale": "laptop",
        "key": "k",
        "date": "2026-01-01",
        "machine": ["cpu"],
        "versions": {},
        "runs": measured,
    } | more
    (tmp_path / "results").mkdir(exist_ok=True)
    (tmp_path / "results" / "e.json").write_text(json.dumps(kept))
    write_findings(tmp_path / "claims.yaml", tmp_path / "results", tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "[page-runs.md](page-runs.md)" in text
    lines = [*text.splitlines(), *(tmp_path / "page-runs.md").read_text().splitlines()]
    return {
        cells[1].strip(): [cell.strip() for cell in cells[3:-1]]
        for cells in (line.split("|") for line in lines)
        if len(cells) == 10
    }


def three_seeds(abf, rope, accuracy=((0.9, 0.1), (0.8, 0.2), (0.85, 0.1))):
    measured = []
    for seed in range(3):
        measured.append(run("evaluate", ["abf"], seed, abf[seed], abf[seed], accuracy[seed][0]))
        measured.append(run("evaluate", ["rope"], seed, rope[seed], rope[seed], accuracy[seed][1]))
        measured.append(run("evaluate_base", ["abf", "rope"], seed, 30.0 + seed, 30.0 + 2 * seed, 0.0))
    return measured


@pytest.mark.parametrize(("factor", "verdict"), [(1.09, "**shown**"), (1.1165, "not shown"), (1.13, "**contradicted**")])
def test_a_claim_that_nothing_changes(tmp_path, factor, verdict):
    """Shown where the whole interval (± 0.0025 nats) is within 0.11 of 0, on either side; contradicted where all of it is beyond."""
    base, other = [10.0, 20.0, 40.0], [10 * factor, 20 * factor * 1.001, 40 * factor * 0.999]
    for one, two in ((base, other), (other, base)):
        assert page(tmp_path, three_seeds(one, two))["the same"][4] == verdict


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_an_interval_without_width_shows_nothing(tmp_path, factor):
    one = [10.0, 20.0, 40.0]
    assert page(tmp_path, three_seeds(one, [factor * each for each in one]))["the same"][4] == "not shown"


def test_claims_are_judged_by_paired_runs(tmp_path):
    rows = page(tmp_path, three_seeds([10.0, 20.0, 40.0], [11.0, 22.1, 44.0]))
    expected = ttest_rel([math.log(x) for x in (10, 20, 40)], [math.log(x) for x in (11, 22.1, 44)]).confidence_interval()
    # Seeds differ by a factor of four, the variants by a tenth: only pairs show it.
    assert rows["lower"][0] == f"20.00 against {(11 * 22.1 * 44) ** (1 / 3):.2f}"  # geometric means
    assert rows["lower"][1:4] == ["-0.097 nats", f"{expected.low:+.3f} … {expected.high:+.3f}", "3"]
    assert rows["lower"][4:] == ["**shown**", "e `k`, laptop"]
    assert rows["retrieves"][:2] == ["0.850 against 0.133", "+0.717"] and rows["retrieves"][4] == "**shown**"
    assert rows["better than base"][3:5] == ["3", "not shown"]  # the base of each seed is one run, shared by both variants
    assert rows["level"][0] == "0.850 (level: 0.6)" and rows["level"][1] == "+0.250" and rows["level"][4] == "**shown**"
    level = ttest_rel([0.9, 0.8, 0.85], [0.6] * 3).confidence_interval()
    assert rows["level"][2] == f"{level.low:+.3f} … {level.high:+.3f}"
    text = (tmp_path / "page.md").read_text()
    assert "## e\n\n**Design.** two variants\n\n**What would change our mind.** more seeds\n\n| finding" in text
    assert "## Not testable here\n\n| finding" in text
    assert rows["elsewhere"][4:] == ["not run", "`experiment=other`"]
    assert rows["never"][4:] == ["not testable here", "closed models"]
    assert rows["e `k`"][3:5] == ["abf, rope, base", "0, 1, 2"]  # the runs behind it: a grid that was cut short shows


def test_results_of_an_experiment_that_was_changed_name_the_commit(tmp_path):
    rows = page(tmp_path, three_seeds([10.0, 20.0, 40.0], [11.0, 22.1, 44.0]), commit="abc1234")
    assert (
        rows["e `k`"][2]
        == "`python -m lit_long.sweep experiment=e scale=laptop` at commit `abc1234`, before the experiment was changed"
    )


def test_an_unfinished_sweep_says_so(tmp_path):
    rows = page(tmp_path, three_seeds([10.0, 20.0, 40.0], [11.0, 22.1, 44.0]), unfinished=["extend pi s0", "evaluate pi s0"])
    assert rows["lower"][4:] == ["**shown**", "e `k`, laptop (2 stages to go)"] and "e `k` (2 stages to go)" in rows


def test_a_claim_about_the_law_fits_it_to_the_perplexities(tmp_path, monkeypatch):
    claim = "{finding: steeper, paper: '–', experiment: e, metric: law_beta, domains: [docs], length: 2k, first: 70b, second: 7b, claim: more}"
    monkeypatch.setitem(globals(), "CLAIMS", CLAIMS + f"  - {claim}\n")
    measured = []
    for seed in range(3):
        for name, alpha, beta, gamma, more in (
            ("7b", 25.4, 0.45, 1.56, 0.01),
            ("70b", 17.9, 0.51, 1.35, 0.012),
        ):  # the paper's (Figure 1)
            one = run("evaluate", [name], seed, 1.0, 1.0, 0.0)
            losses = {c: (alpha / c) ** (beta + more * seed) + gamma for c in (32, 64, 128, 256, 512, 1024, 2048)}
            one["measurements"] = [["perplexity", "docs", c, math.exp(loss)] for c, loss in losses.items()]
            measured.append(one)
    row = page(tmp_path, measured)["steeper"]
    assert row[:2] == ["0.522 against 0.460", "+0.062"] and row[3:5] == ["3", "**shown**"]


def test_other_verdicts(tmp_path):
    rows = page(tmp_path, three_seeds([11.0, 22.1, 44.0], [10.0, 20.0, 40.0], accuracy=((0.2, 0.1), (0.3, 0.2), (0.21, 0.1))))
    assert rows["lower"][4] == "**contradicted**"
    assert rows["retrieves"][4] == "right sign, less than 0.2"
    ours = "{finding: ours, paper: '–', experiment: e, domains: [code, docs], length: 2k, first: abf, second: rope, ours: true}"
    with pytest.MonkeyPatch.context() as patch:  # a design that does not test the paper's claim neither shows nor contradicts it
        patch.setitem(globals(), "CLAIMS", CLAIMS.replace("doubt: more seeds", "tests_paper: false") + f"  - {ours}\n")
        rows = page(tmp_path, three_seeds([11.0, 22.1, 44.0], [10.0, 20.0, 40.0]))
        assert rows["lower"][4] == "**opposite here**" and rows["ours"][4] == "**contradicted**"
        rows = page(tmp_path, three_seeds([10.0, 20.0, 40.0], [11.0, 22.1, 44.0]))
        assert rows["lower"][4] == "**agrees here**" and rows["ours"][4] == "**shown**"
    rows = page(tmp_path, three_seeds([10.0, 20.0, 40.0], [11.0, 19.0, 44.0])[:6])
    assert rows["lower"][3:5] == ["2", "not shown (fewer than 3 seeds)"]
    rows = page(tmp_path, three_seeds([10.0, 10.0, 10.0], [11.0, 11.0, 11.0], accuracy=((0.9, 0.1),) * 3))
    assert rows["lower"][4] == rows["retrieves"][4] == "not shown", "all pairs alike: an interval without width shows nothing"
    rows = page(tmp_path, [one for one in three_seeds([1.0] * 3, [2.0] * 3) if one["rows"] != ["rope"]])
    assert rows["lower"][4] == "not run"


def test_of_one_seed_documents_are_the_pairs(tmp_path, make, monkeypatch):
    """From a sweep's folder: each variant's texts, and a reference under each variant's encoder, are kept; a claim compares text by text."""
    nats = {"abf": [2.0, 3.0, 2.5, 2.2], "rope": [2.1, 3.2, 2.55, 2.4], "base of rope": [2.0, 3.1, 2.5, 2.3]}

    def measured(name):
        rows = make.evaluate([("perplexity", "code", 2048, math.exp(sum(nats[name]) / 4)), ("perplexity", "code", 256, 9.0)])
        rows["measurements"][0]["document_nats"] = nats[name]
        return rows

    folder = make.sweep(tmp_path, {("abf", 0): [], ("rope", 0): []}, experiment="e")
    plan = json.loads((folder / "sweep.json").read_text())
    for trial in plan["trials"]:
        name = trial["variant"]
        trial["stages"]["evaluate"] = make.stage(tmp_path / "runs", f"evaluate-{name}-x", measured(name))
        if name == "rope":
            trial["stages"]["evaluate_base"] = make.stage(tmp_path / "runs", "evaluate-base-x", measured("base of rope"))
        else:
            trial["stages"]["evaluate_base"] = make.stage(tmp_path / "runs", "evaluate-base-y", measured("abf"))
    (folder / "sweep.json").write_text(json.dumps(plan))
    settings = yaml.safe_load((folder / "sweep.yaml").read_text())
    settings["report"]["reference"] = "evaluate_base"
    (folder / "sweep.yaml").write_text(yaml.safe_dump(settings))
    sweep = read_sweep(folder)
    kept = [evaluated(stage, sweep) for stage in sweep.stages if stage.measurements is not None]
    assert {run["rows"][0] for run in kept} == {"abf", "rope", "base of abf", "base of rope"}
    claim = "{finding: text by text, paper: '–', experiment: e, domains: [code], length: 2k, first: abf, second: SECOND, by: documents}"
    for second, words in (("rope", "**shown** for this run"), ("base of rope", "not shown")):
        monkeypatch.setitem(globals(), "CLAIMS", CLAIMS + f"  - {claim.replace('SECOND', second)}\n")
        row = page(tmp_path, kept)["text by text"]
        expected = ttest_rel(nats["abf"], nats[second]).confidence_interval()
        assert row[2:5] == [f"{expected.low:+.3f} … {expected.high:+.3f}", "1, 4 documents", words]
    (tmp_path / "claims.yaml").write_text("title: x\nintroduction: y\nclaims: [{finding: x, by: books}]")
    with pytest.raises(UserError, match="by must be seeds or documents, not 'books'"):
        findings(tmp_path / "claims.yaml", tmp_path / "results", "")


def test_paths_below_a_home_folder(tmp_path, monkeypatch):
    page(tmp_path, three_seeds([10.0, 20.0, 40.0], [11.0, 22.1, 44.0]))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["findings=~/claims.yaml", "results=~/results", "out=~/new/page.md"]) == 0
    assert (tmp_path / "new" / "page.md").read_text() == (tmp_path / "page.md").read_text()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_claim_that_makes_no_sense(tmp_path, capsys):
    (tmp_path / "claims.yaml").write_text("title: x\nintroduction: y\nclaims: [{finding: x, metrics: perplexity}]")
    words = [f"findings={tmp_path / 'claims.yaml'}", f"results={tmp_path}", f"out={tmp_path / 'page.md'}"]
    assert main(words) == 2 and "claims[0]: unknown key 'metrics'" in capsys.readouterr().err
    assert main([f"findings={tmp_path}/none.yaml", *words[1:]]) == 2 and "none.yaml: cannot be read" in capsys.readouterr().err
    assert main(words[:2]) == 2 and "out=… is missing" in capsys.readouterr().err

    (tmp_path / "claims.yaml").write_text("title: x\nintroduction: y\nclaims: [{finding: x, claim: lower}]")
    assert main(words) == 2 and "claims[0].claim must be less, more or same, not 'lower'" in capsys.readouterr().err
    (tmp_path / "claims.yaml").write_text(CLAIMS)
    (tmp_path / "torn.json").write_text('{"experiment": ')
    assert main(words) == 2 and "torn.json: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_loss_by_fifths(tmp_path):
    rows = [{"step": step, "train/loss": float(step)} for step in range(1, 12)] + [{"step": 11, "val/code": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert loss_by_parts(tmp_path / "metrics.jsonl") == [1.5, 3.5, 6.0, 8.5, 10.5]


def test_a_claim_names_the_settings_of_what_was_measured(tmp_path, monkeypatch):
    claim = "{finding: larger, paper: 'here {first.base:,.0f} ({first.supports:,}) against {second.base:g}', experiment: e, length: 2k, first: abf, second: rope}"
    monkeypatch.setitem(globals(), "CLAIMS", CLAIMS + f"  - {claim}\n")
    measured = three_seeds([10.0, 20.0, 40.0], [11.0, 22.1, 44.0])
    for one in measured:
        one |= {"position": {"scheme": "rope", "base": 125000.0 if one["rows"] == ["abf"] else 6250.0}, "head_dim": 64}
    page(tmp_path, measured)
    assert "| larger | here 125,000 (3,314) against 6250 |" in (tmp_path / "page.md").read_text()
    for one in measured:
        del one["head_dim"]  # files that 0.1 kept name no settings
    with pytest.raises(UserError, match="claim 'larger': paper: .*e k has"):
        page(tmp_path, measured)


def test_the_pages_in_docs_are_what_the_results_give():
    """python -m lit_long.report findings=experiments/results/claims.yaml results=experiments/results out=docs/findings.md writes them."""
    place = REPOSITORY / "experiments" / "results"
    assert (REPOSITORY / "docs" / "findings.md").read_text() == findings(place / "claims.yaml", place, "findings-runs.md")
    assert (REPOSITORY / "docs" / "findings-runs.md").read_text() == runs(place / "claims.yaml", place)
