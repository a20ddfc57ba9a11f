"""tracking=csv as a user runs it, on a machine where MLflow cannot even be imported: a sweep that is killed and goes on, then an evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest

from lit_long.tracking import TrackingError
from lit_long.tracking.csv import CsvTracker
from tests.integration.mini import MINI, REPOSITORY, TASKS, losses, run_here, stages, table, with_stages

NO_MLFLOW = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
raise ImportError("not on this machine")
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of processes for which MLflow is broken, and the file that says whether one of them tried it."""
    blocked = tmp_path_factory.mktemp("blocked")
    (blocked / "mlflow").mkdir()
    (blocked / "mlflow" / "__init__.py").write_text(NO_MLFLOW)
    return os.environ | {"COLUMNS": "120", "PYTHONPATH": f"{blocked}{os.pathsep}{REPOSITORY}"}, blocked / "mlflow" / "imported"


def start(environment, module: str, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", module, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment[0], **pipes)


def run(environment, module: str, *words: str) -> str:
    """What it prints."""
    process = start(environment, module, *words)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    return out


@pytest.fixture(scope="module")
def swept(environment, tmp_path_factory) -> tuple[Path, str]:
    """Root of a sweep that was ended by kill -9 while it trained and then went on, and what it printed at last."""
    root = with_stages(tmp_path_factory.mktemp("swept"), "corpus rope", "evaluate_base rope")
    words = [*MINI, *TASKS, "position=rope", "tracking=csv", f"root={root}"]
    sweep = start(environment, "lit_long.sweep", *words)
    deadline = time.monotonic() + 600
    while not any(len(f.read_text().splitlines()) >= 5 for f in (root / "runs" / "stages").glob("train-*/metrics.jsonl")):
        assert time.monotonic() < deadline and sweep.poll() is None, sweep.communicate()
        time.sleep(0.05)
    sweep.kill()
    sweep.communicate()
    assert "RUNNING" in set(pandas.read_csv(root / "tracking" / "position_tiny" / "runs.csv").status)
    return root, run(environment, "lit_long.sweep", *words)


@pytest.mark.slow
def test_a_killed_sweep_repeats_and_loses_no_metric(swept):
    folder = swept[0] / "tracking" / "position_tiny"
    runs = pandas.read_csv(folder / "runs.csv", keep_default_na=False)
    assert set(runs.status) == {"FINISHED"} and len(runs) == 6  # the sweep, corpus, base, extend, two evaluations
    assert f"runs     {folder}/runs.csv" in swept[1]
    for name, stage in (("rope | base 128 | seed 0", "base rope"), ("rope | extend 256 | seed 0", "extend rope")):
        (run,) = runs[runs.name == name].run
        frame = pandas.read_csv(folder / run / "metrics.csv", float_precision="round_trip")
        loss = frame[frame.name == "train/loss"]
        assert not frame.duplicated(["name", "step"]).any()
        assert loss.step.tolist() == list(range(1, len(loss) + 1)) and loss.value.tolist() == losses(stages(swept[0])[stage])
        assert json.loads((folder / run / "params.json").read_text())["model"]["d_model"] == 48
        pointer = json.loads((stages(swept[0])[stage] / "mlflow.json").read_text())
        assert (pointer["run"], pointer["uri"]) == (run, str(folder.parent))


@pytest.mark.slow
def test_the_parent_has_the_report_and_evaluations_their_numbers(swept, environment):
    root, folder = swept[0], swept[0] / "tracking" / "position_tiny"
    runs = pandas.read_csv(folder / "runs.csv", keep_default_na=False)
    (parent,) = runs[runs.parent == ""].run
    assert {"report.html", "table.csv", "sweep.yaml", "results.json"} <= {
        p.name for p in (folder / parent / "artifacts").iterdir()
    }
    (evaluated,) = runs[runs.name == "rope | evaluate 256 | seed 0"].run
    frame = pandas.read_csv(folder / evaluated / "metrics.csv").set_index("name")
    rows = {(row["variant"], row["metric"], row["domain"], row["length"]): row["mean"] for row in table(root)}
    assert frame.loc["eval/perplexity/code/256"].value == pytest.approx(float(rows["rope", "perplexity", "code", "256"]))
    assert "Validation perplexity" in run(environment, "lit_long.report", "experiment=position_tiny", f"root={root}")


@pytest.mark.slow
def test_an_evaluation_is_recorded_there_too(swept, environment, tmp_path):
    words = ["tasks=[perplexity]", "lengths=[64]", "samples=2", f"root={swept[0]}", "tracking.name=csv", f"out={tmp_path}"]
    said = run(environment, "lit_long.evaluate", f"checkpoint={stages(swept[0])['extend rope']}", *words)
    assert f"run      {swept[0] / 'tracking'}" in said
    folder = swept[0] / "tracking" / "evaluate"
    (row,) = pandas.read_csv(folder / "runs.csv").to_dict("records")
    scores = pandas.read_csv(folder / row["run"] / "artifacts" / "scores.csv")
    assert row["status"] == "FINISHED" and "perplexity" in set(scores.metric)


def test_theory_is_recorded_there_too(environment, tmp_path):
    run(environment, "lit_long.theory", "schemes=[rope,pi]", f"root={tmp_path}", "tracking.name=csv")
    (figure,) = tmp_path.glob("tracking/theory/*/artifacts/figures/theory.png")
    assert figure.stat().st_size > 1000


@pytest.mark.parametrize("times", [2, 1000], ids=["back again", "away"])
def test_a_tracker_that_is_away_stops_no_sweep(tmp_path, monkeypatch, times):
    """All stages run. What it does not take when they end is written with a later one; or by the next command, and the sweep says so."""
    root = with_stages(tmp_path, "corpus rope", "base rope", "evaluate_base rope")
    words = [*MINI, *TASKS, "position=rope", "tracking=csv", f"root={root}"]
    finish, calls = CsvTracker.finish, []

    def away(self, run, status):
        calls.append(run)
        if len(calls) <= times:
            raise TrackingError("the disk is away")
        finish(self, run, status)

    with monkeypatch.context() as patch:
        patch.setattr(CsvTracker, "finish", away)
        swept = run_here("lit_long.sweep", *words)
    assert all((folder / "DONE").exists() for folder in stages(root).values()) and len(stages(root)) == 5, swept.stderr
    assert "not recorded yet, but with a later stage or at the end: the disk is away" in swept.stdout
    assert swept.returncode == (0 if times == 2 else 1) and ("error: the disk is away" in swept.stderr) == (times > 2)
    assert "Validation perplexity" in swept.stdout
    if times > 2:
        assert run_here("lit_long.sweep", *words).returncode == 0
    runs = pandas.read_csv(root / "tracking" / "position_tiny" / "runs.csv", keep_default_na=False)
    assert set(runs.status) == {"FINISHED"} and len(runs) == 6
    for run in runs.run[runs.name.str.contains("extend")]:
        frame = pandas.read_csv(root / "tracking" / "position_tiny" / run / "metrics.csv")
        assert frame[frame.name == "train/loss"].step.tolist() == [1, 2, 3, 4]


@pytest.mark.slow
def test_nobody_imported_mlflow(swept, environment):
    assert not environment[1].exists() and not (swept[0] / "mlflow").exists()
