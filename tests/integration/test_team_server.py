"""A team's MLflow server: mlflow/serve.sh over a real PostgreSQL, with users and passwords and artifacts through the server."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter

import psutil
import pytest
import yaml

from lit_long.config import TrackingConfig
from lit_long.tracking import Mirror
from lit_long.tracking.mlflow import MlflowTracker
from tests.integration.mini import MINI, REPOSITORY, command, losses
from tests.integration.team import LOGIN, PASSWORD, is_installed, postgres, team_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def database():
    if not is_installed():
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg")
    pytest.importorskip("flask_wtf")
    with postgres() as uri:
        yield uri


@pytest.fixture(scope="module")
def server(database, tmp_path_factory):
    with team_server(database, tmp_path_factory.mktemp("team")) as address:
        yield address


def start(*words, cwd=REPOSITORY, **more):
    environment = os.environ | {"COLUMNS": "120", "PYTHONPATH": str(REPOSITORY)} | more
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(*words), cwd=cwd, env=environment, **pipes)


def run(*words, cwd=REPOSITORY, **more):
    process = start(*words, cwd=cwd, **more)
    said = process.communicate(timeout=1000)
    return subprocess.CompletedProcess(words, process.returncode, *said)


@pytest.fixture(scope="module")
def swept(server, tmp_path_factory):
    """A sweep whose record is on the server, and its root."""
    root = tmp_path_factory.mktemp("swept")
    words = [*MINI, "grid.position=[rope,abf]", "launcher.parallel=2", f"root={root}", f"tracking.uri={server}"]
    return run("lit_long.sweep", *words, **LOGIN), root, LOGIN


def test_strangers_are_refused(server):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{server}/api/2.0/mlflow/experiments/search?max_results=1", timeout=200)


def test_a_sweep_is_recorded_there(swept, server, monkeypatch):
    finished, root, login = swept
    assert finished.returncode == 0, finished.stdout + finished.stderr
    for name, value in login.items():
        monkeypatch.setenv(name, value)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("position_tiny")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1 + 7 and {each.info.status for each in runs} == {"FINISHED"}
    (parent,) = [each for each in runs if "mlflow.parentRunId" not in each.data.tags]
    assert {"report.html", "results.json"} <= {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert not (root / "mlflow" / "artifacts").exists()  # they went through the server


@pytest.fixture
def requests_sent(monkeypatch):
    """Method and path of every request that goes out."""
    from requests.adapters import HTTPAdapter

    sent, send = [], HTTPAdapter.send
    monkeypatch.setattr(HTTPAdapter, "send", lambda self, request, **more: sent.append(request) or send(self, request, **more))
    return sent


def paths(sent):
    return Counter(each.path_url.partition("?")[0].rpartition("/mlflow/")[2] for each in sent)


UPDATES, PER_UPDATE = 20_000, 5


def test_a_long_stage_is_recorded_in_large_requests(server, tmp_path, monkeypatch, requests_sent):
    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)
    tracker = MlflowTracker.open(TrackingConfig(uri=server), "long", tmp_path)
    sweep = tracker.begin("1", "sweep", params={}, tags={})
    stage = tracker.begin("c0ffee", "train", params={}, tags={}, parent=sweep)
    file, mirror = tmp_path / "metrics.jsonl", Mirror(tracker, stage, tmp_path / "metrics.jsonl")
    names = [f"train/{name}" for name in ("loss", "lr", "norm", "tokens", "speed")]
    lines = [json.dumps({"step": step, "time": step} | dict.fromkeys(names, step / 7)) + "\n" for step in range(UPDATES)]
    half = UPDATES // 2
    file.write_text("".join(lines[:half]))
    requests_sent.clear()
    assert mirror.sync() == 1000 and len(requests_sent) == 1  # while the stage runs
    assert mirror.sync() == 1000 and len(requests_sent) == 2
    with file.open("a") as stream:
        stream.writelines(lines[half:])
    # The sweep is killed here; another one goes on from what the server has.
    again = MlflowTracker.open(TrackingConfig(uri=server), "long", tmp_path)
    resumed = Mirror(again, stage, file)
    requests_sent.clear()
    assert resumed.sync(final=True) == UPDATES * PER_UPDATE - 2000
    assert paths(requests_sent) == {"runs/log-batch": UPDATES * PER_UPDATE // 1000 - 2}
    for name in names:
        history = tracker._client.get_metric_history(stage, name)
        assert [(point.step, point.value) for point in history] == [
            (step, step / 7) for step in range(UPDATES)
        ]  # none lost, none twice
    requests_sent.clear()
    again.metrics(stage, {("eval/loss_by_position/docs", step): step / 7 for step in range(1500)})
    assert paths(requests_sent) == {"runs/get": 1, "runs/log-batch": 2}


def test_the_password_is_nowhere(swept):
    finished, root, _ = swept
    assert PASSWORD not in finished.stdout + finished.stderr
    for file in root.rglob("*"):
        assert not file.is_file() or PASSWORD.encode() not in file.read_bytes(), file


CASES = """
grid:
  case:
    - {name: rope, position: rope}
    - {name: abf, position: abf}
    - {name: killed, position: pi}
    - {name: failing, position: ntk, stages.extend.trainer.loss: LOSS}
"""


@pytest.fixture(scope="module")
def four(swept, server, tmp_path_factory):
    """A sweep of four parallel trials: one whose stage is ended by kill -9, one with a loss that no CPU can compute; and how to run it."""
    work, (_, prepared, login) = tmp_path_factory.mktemp("four"), swept
    (work / "runs" / "stages").mkdir(parents=True)
    for corpus in (prepared / "runs" / "stages").glob("data-*"):
        shutil.copytree(corpus, work / "runs" / "stages" / corpus.name)
    text = (REPOSITORY / "experiments" / "position_tiny.yaml").read_text()
    grid = "grid:\n  position: [rope, pi, abf, xpos_abf]\n"
    assert grid in text
    (work / "experiments").mkdir()
    file = work / "experiments" / "four.yaml"
    file.write_text(text.replace(grid, CASES.replace("LOSS", "liger")))
    words = [
        "experiment=four",
        *MINI,
        "stages.extend.tokens=64k",
        "launcher.parallel=4",
        f"root={work}",
        f"tracking.uri={server}",
    ]
    process = start("lit_long.sweep", *words, cwd=work, **login)
    folder = None
    try:
        deadline = time.monotonic() + 900
        while folder is None:  # until the one to be killed has trained past a checkpoint
            assert time.monotonic() < deadline and process.poll() is None, process.communicate()
            time.sleep(0.2)
            for metrics in (work / "runs" / "stages").glob("train-*/metrics.jsonl"):
                scheme = yaml.safe_load((metrics.parent / "stage.yaml").read_text())["settings"]["position"]["scheme"]
                if scheme == "pi" and len(metrics.read_text().splitlines()) > 5:
                    folder = metrics.parent
        (stage,) = [one for one in psutil.Process(process.pid).children(recursive=True) if str(folder) in one.cmdline()]
        stage.kill()
        said = process.communicate(timeout=900)
    finally:
        process.kill()
    return subprocess.CompletedProcess(words, process.returncode, *said), work, words, login, file


def recorded(server, login, monkeypatch):
    """Statuses of the runs by name, and the parent run."""
    for name, value in login.items():
        monkeypatch.setenv(name, value)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server)
    runs = client.search_runs([client.get_experiment_by_name("four").experiment_id])
    (parent,) = [each for each in runs if "mlflow.parentRunId" not in each.data.tags]
    children = [each for each in runs if each.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(runs) - 1
    return {each.info.run_name: each.info.status for each in runs}, parent


SHARED = {"corpus", "base 128 | seed 0", "evaluate_base 256 | seed 0"}
WELL = SHARED | {f"{case} | {stage} 256 | seed 0" for case in ("rope", "abf") for stage in ("extend", "evaluate")}


def measured(work):
    """Variants with a perplexity in the table, but the reference."""
    with (work / "runs" / "four" / "latest" / "table.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "perplexity" and row["mean"]]
    assert all(len([row for row in rows if row["variant"] == name]) == 4 for name in {row["variant"] for row in rows})
    return {row["variant"] for row in rows} - {"base"}


def test_one_killed_and_one_failing_hold_up_only_themselves(four, server, monkeypatch):
    finished, work, _, login, _ = four
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "extend killed: FAILED: ended by SIGKILL" in finished.stdout
    assert "extend failing: FAILED: trainer.loss=liger cannot run here" in finished.stdout
    assert "evaluate killed: skipped" in finished.stdout and "evaluate failing: skipped" in finished.stdout
    statuses, parent = recorded(server, login, monkeypatch)
    assert parent.info.run_name == "four | 4 variants, 1 seed" and statuses.pop(parent.info.run_name) == "FAILED"
    failed = {f"{case} | extend 256 | seed 0" for case in ("killed", "failing")}
    assert statuses == dict.fromkeys(WELL, "FINISHED") | dict.fromkeys(failed, "FAILED")
    assert measured(work) == {"rope", "abf"}


def test_only_failed_completes_it(four, server, monkeypatch):
    _, work, words, login, file = four
    before = {path: path.stat().st_mtime_ns for path in (work / "runs" / "stages").glob("*/DONE")}
    file.write_text(file.read_text().replace("liger", "chunked"))
    again = run("lit_long.sweep", *words, "only_failed=true", cwd=work, **login)
    assert again.returncode == 0, again.stdout + again.stderr
    done = [line.partition("] ")[2].partition(":")[0] for line in again.stdout.splitlines() if ": done in" in line]
    assert sorted(done) == ["evaluate failing", "evaluate killed", "extend failing", "extend killed"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    statuses, _ = recorded(server, login, monkeypatch)
    assert set(statuses.values()) == {"FINISHED"} and len(statuses) == 1 + 3 + 2 * 4
    assert measured(work) == {"rope", "abf", "killed", "failing"}
    for folder in (work / "runs" / "stages").glob("train-*"):
        losses(folder)  # every update once, in the one that went on, too
    made = run("lit_long.report", "experiment=four", f"uri={server}", f"out={work}/again", **login)
    latest = (work / "runs" / "four" / "latest").resolve()
    assert made.returncode == 0, made.stderr
    for name in ("report.html", "report.md", "table.csv"):
        assert (work / "again" / "runs" / "four" / latest.name / name).read_bytes() == (latest / name).read_bytes(), name


def test_anyone_with_access_makes_the_report(swept, server, tmp_path):
    _, root, login = swept
    again = run("lit_long.report", "experiment=position_tiny", f"uri={server}", f"out={tmp_path}", **login)
    assert again.returncode == 0, again.stderr
    written = (root / "runs" / "position_tiny" / "latest").resolve()
    assert (tmp_path / "runs" / "position_tiny" / written.name / "report.html").read_bytes() == (
        written / "report.html"
    ).read_bytes()
    assert json.loads((written / "sweep.json").read_text())["key"] == written.name
