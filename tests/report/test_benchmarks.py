"""docs/scores.md from kept evaluations and published numbers."""

from __future__ import annotations

import json

import pytest

from lit_long.config import UserError
from lit_long.evaluation.lm_eval_tasks import SPECS, VERIFIED
from lit_long.report.__main__ import main
from lit_long.report.benchmarks import benchmarks
from tests.integration.mini import REPOSITORY

PUBLISHED = """
title: Scores
introduction: Made by a test.
sources: {lm-eval: someone, card: someone else}
published:
  - {task: near, metric: acc, value: 52.0, source: lm-eval}
  - {task: far, metric: acc_norm, value: 60.0, source: lm-eval}
  - {task: far, metric: acc, value: 30.0, source: card, why: quantised}
  - {task: elsewhere, metric: acc, value: 10.0, source: card, other: its own prompts}
  - {task: [near, far], metric: acc, value: 50.0, source: card}
  - {task: none, metric: acc, value: 1.4, source: card}
  - {task: never, metric: acc, shots: 5, value: 7.5, source: card, other: no shots}
"""
ABOUT = {"model": "m", "weights": "a" * 64, "precision": "float32", "lit_long": "0.6", "machine": "a box", "lengths": [8192]}


def row(task, metric, value, main=True, domain="all", n=400, stderr=0.02, length=8192):
    common = {"length": length, "low": None, "high": None, "n": n, "unit": "documents", "shots": 0, "main": main}
    return {"task": task, "metric": metric, "domain": domain, "value": value, "stderr": stderr} | common


def evaluation(folder, rows, **more):
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps(ABOUT | {"tasks": {each["task"]: {} for each in rows}} | more))
    (folder / "scores.json").write_text(json.dumps(rows))


def page(tmp_path, rows, **more):
    evaluation(tmp_path / "out", rows, **more)
    (tmp_path / "published.yaml").write_text(PUBLISHED)
    kept = tmp_path / "kept" / "m.json"
    assert main([f"scores={tmp_path / 'out'}", f"keep={kept}"]) == 0
    assert main([f"published={tmp_path / 'published.yaml'}", f"results={kept.parent}", f"out={tmp_path / 'scores.md'}"]) == 0
    text = (tmp_path / "scores.md").read_text()
    assert text == benchmarks(tmp_path / "published.yaml", kept.parent)
    return text


def test_ours_beside_the_published(tmp_path):
    rows = [
        row("near", "acc", 0.5),
        row("near", "acc", 0.1, domain="stem"),
        row("far", "acc", 0.36, main=False),
        row("far", "acc_norm", 0.5),
    ]
    rows += [
        row("elsewhere", "acc", 0.5),
        row("alone", "f1", 0.25),
        row("long", "acc", 0.5, length=4096),
        row("long", "acc", 0.4),
        row("none", "acc", 0.0, stderr=0.0) | {"low": 0.0, "high": 0.02},  # no error: the interval decides
    ]
    text = page(tmp_path, rows, remarks={"near": ["shots come from a stand-in"]})
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert lines == [
        "| near | acc | 0 | 400 | 50.0 ± 2.0 | 52 | -1.0 | lm-eval |",
        "| far | acc_norm | 0 | 400 | 50.0 ± 2.0 | 60 | **-5.0** | lm-eval |",
        "| far | acc | 0 | 400 | 36.0 ± 2.0 | 30 | **+3.0** | card |",
        "| elsewhere | acc | 0 | 400 | 50.0 ± 2.0 | 10 | +20.0 | card (its own prompts) |",
        "| alone | f1 | 0 | 400 | 25.0 ± 2.0 | – | – | – |",
        "| long, 4,096 tokens | acc | 0 | 400 | 50.0 ± 2.0 | – | – | – |",
        "| long, 8,192 tokens | acc | 0 | 400 | 40.0 ± 2.0 | – | – | – |",
        "| none | acc | 0 | 400 | 0.0 (0 to 2) | 1.4 | – | card |",
        "| mean of near, far | acc | 0 | 800 | 43.0 ± 1.4 | 50 | **-4.9** | card |",  # √(2² + 2²) / 2
        "| never | acc | 5 | – | not run | 7.5 | – | card (no shots) |",
    ]
    assert "* far, acc_norm, beside lm-eval: **unexplained**" in text and "* far, acc, beside card: quantised" in text
    assert "* elsewhere, acc, beside card: its own prompts" in text and "* near: shots come from a stand-in" in text
    assert (
        "* none" not in text
        and "* near, acc" not in text
        and "a box: m (weights `aaaaaaaaaaaaaaaa`), float32, lit-long 0.6" in text
    )


def test_what_makes_no_sense(tmp_path, capsys):
    assert main([f"scores={tmp_path}", f"keep={tmp_path}/x.json"]) == 2 and "holds no scores.json" in capsys.readouterr().err
    assert main([f"scores={tmp_path}"]) == 2 and "keep=FILE.json is missing" in capsys.readouterr().err
    (tmp_path / "published.yaml").write_text(PUBLISHED.replace("source: lm-eval}", "source: nobody}"))
    with pytest.raises(UserError, match=r"published\[0\].source=nobody: is none of lm-eval, card"):
        benchmarks(tmp_path / "published.yaml", tmp_path)
    (tmp_path / "published.yaml").write_text(PUBLISHED.replace("metric: acc,", "measure: acc,"))
    with pytest.raises(UserError, match="unknown key 'measure'"):
        benchmarks(tmp_path / "published.yaml", tmp_path)


PLACE = REPOSITORY / "experiments" / "results" / "scores"


def test_the_page_in_docs_is_what_the_results_give():
    """python -m lit_long.report published=experiments/results/scores/published.yaml results=experiments/results/scores out=docs/scores.md writes it."""
    assert (REPOSITORY / "docs" / "scores.md").read_text() == benchmarks(PLACE / "published.yaml", PLACE)


def test_a_task_counts_as_scored_on_real_data_where_its_score_is_kept():
    kept = {row["task"] for file in PLACE.glob("*.json") for row in json.loads(file.read_text())["rows"]}
    assert {name for name in VERIFIED if not SPECS[name].made} == {
        name for name in kept if name in SPECS and not SPECS[name].made
    }
