"""The record in MLflow, read back through MLflow's own client: nothing twice, nothing lost, and clear errors."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_long import tracking
from lit_long.config import UserError
from lit_long.tracking import NoTracker, Tracker, TrackingError, default_uri, environment_tags, flatten
from lit_long.tracking.view import columns

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {"params": {}, "tags": {}}
LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> Path:
    """A root with an empty MLflow database: making the tables takes a second, copying them does not."""
    root = tmp_path_factory.mktemp("empty")
    Tracker.open(default_uri(root), "unused", root / "mlflow" / "artifacts")
    return root


@pytest.fixture
def root(tmp_path, empty_store) -> Path:
    """A root of one's own; its path holds a space, as homes do."""
    root = tmp_path / "my runs"
    (root / "mlflow").mkdir(parents=True)
    shutil.copy(empty_store / "mlflow" / "mlflow.db", root / "mlflow" / "mlflow.db")
    return root


@pytest.fixture
def tracker(root) -> Tracker:
    return open_tracker(root)


def open_tracker(root: Path) -> Tracker:
    return Tracker.open(default_uri(root), "position tiny", root / "mlflow" / "artifacts")


def client(root: Path):
    import mlflow

    return mlflow.MlflowClient(tracking_uri=default_uri(root))


def points(root: Path, run_id: str, name: str = "train/loss") -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client(root).get_metric_history(run_id, name)]


def lines(*steps: int, value: float = 0.0, **more: float) -> str:
    """Records as a stage writes them; ``value`` tells the first writing of a step from the second."""
    records = [{"step": s, "time": time.time(), "train/loss": s + value, **more} for s in steps]
    return "".join(json.dumps(record) + "\n" for record in records)


def read(address: str) -> str:
    return urllib.request.urlopen(address, timeout=20).read().decode()


def database(root: Path) -> Path:
    return root / "mlflow" / "mlflow.db"


@pytest.fixture
def locked(root) -> Iterator[callable]:
    """``locked(seconds)`` holds the database from another process."""
    holders = []

    def hold(seconds: float) -> None:
        command = [sys.executable, "-c", LOCK, str(database(root)), str(seconds)]
        holders.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        assert holders[-1].stdout.readline() == b"locked\n"

    yield hold
    for holder in holders:
        holder.kill()
        holder.communicate()


# ------------------------------------------------------------------------------------------------------------ runs


def test_a_sweep_is_a_parent_and_its_stages_are_children(root, tracker):
    parent = tracker.sweep("3f2a", "position tiny", params={"grid": {"position": ["rope", "abf"]}}, tags={"paper": "t5"})
    child = tracker.stage(parent, "c0ffee", "train abf", params={"model": {"n_layers": 4}}, tags={"kind": "train"}, cached=False)
    tracker.finish(child, "FINISHED")
    tracker.finish(parent, "FAILED")

    parent_run, child_run = client(root).get_run(parent), client(root).get_run(child)
    assert parent_run.data.params == {"grid.position": '["rope", "abf"]'} and parent_run.data.tags["paper"] == "t5"
    assert child_run.data.params == {"model.n_layers": "4"} and child_run.data.tags["kind"] == "train"
    assert child_run.data.tags["mlflow.parentRunId"] == parent and child_run.info.run_name == "train abf"
    assert (child_run.info.status, parent_run.info.status) == ("FINISHED", "FAILED")
    with pytest.raises(ValueError, match="KILLED"):
        tracker.finish(child, "DONE")


@pytest.mark.parametrize("status", ["RUNNING", "FINISHED", "FAILED", "KILLED"])
def test_the_same_sweep_and_stage_resume_their_runs(root, tracker, status):
    parent = tracker.sweep("3f2a", "first", **CONFIG)
    child = tracker.stage(parent, "c0ffee", "train", **CONFIG, cached=False)
    if status != "RUNNING":
        tracker.finish(child, status)
        tracker.finish(parent, status)
    again = open_tracker(root)

    assert again.sweep("3f2a", "second", **CONFIG) == parent
    assert again.stage(parent, "c0ffee", "train", **CONFIG, cached=False) == child
    assert {client(root).get_run(run).info.status for run in (parent, child)} == {"RUNNING"}
    other = again.sweep("77b1", "another", **CONFIG)
    assert other != parent
    assert again.stage(other, "c0ffee", "train", **CONFIG, cached=False) != child


def test_a_cached_child_is_light_and_points_to_the_history(root, tracker):
    elsewhere = Tracker.open(default_uri(root), "another experiment", root / "mlflow" / "artifacts")
    full = elsewhere.stage(elsewhere.sweep("1", "first", **CONFIG), "c0ffee", "train", **CONFIG, cached=False)
    parent = tracker.sweep("2", "second", **CONFIG)
    (root / "metrics.jsonl").write_text(lines(1, 2, 3))

    light = tracker.stage(parent, "c0ffee", "train", **CONFIG, cached=True)
    assert tracker.mirror(light, root / "metrics.jsonl").sync(final=True) == 0
    for _ in range(2):  # a sweep that is started again says it again
        tracker.metrics(light, {("eval/ppl/python/512", 3): 5.5})
    tags = client(root).get_run(light).data.tags
    assert tags["cached"] == "true" and tags["lit_long.source_run"] == full
    assert points(root, light) == [] and points(root, light, "eval/ppl/python/512") == [(3, 5.5)]
    assert tracker.stage(parent, "c0ffee", "train", **CONFIG, cached=True) == light


def test_a_cached_child_gets_the_history_when_no_run_holds_it(root, tracker):
    first, second = tracker.sweep("1", "first", **CONFIG), tracker.sweep("2", "second", **CONFIG)
    (root / "metrics.jsonl").write_text(lines(1, 2))
    for _ in range(2):
        orphan = tracker.stage(first, "beef", "train", **CONFIG, cached=True)  # the record was lost, the folder was not
        tracker.mirror(orphan, root / "metrics.jsonl").sync(final=True)
    light = tracker.stage(second, "beef", "train", **CONFIG, cached=True)

    assert points(root, orphan) == [(1, 1), (2, 2)]
    tags = {name: client(root).get_run(run).data.tags for name, run in (("orphan", orphan), ("light", light))}
    assert tags["orphan"]["cached"] == "true" and "lit_long.source_run" not in tags["orphan"]
    assert tags["light"]["lit_long.source_run"] == orphan
    client(root).delete_run(orphan)
    tracker.stage(second, "beef", "train", **CONFIG, cached=True)
    tracker.mirror(light, root / "metrics.jsonl").sync(final=True)
    assert points(root, light) == [(1, 1), (2, 2)]


def test_a_child_with_a_history_keeps_it_when_its_stage_is_cached(root, tracker):
    parent = tracker.sweep("1", "sweep", **CONFIG)
    child = tracker.stage(parent, "c0ffee", "train", **CONFIG, cached=False)
    (root / "metrics.jsonl").write_text(lines(1, 2))
    tracker.mirror(child, root / "metrics.jsonl").sync()
    (root / "metrics.jsonl").write_text(lines(1, 2, 3))  # the sweep was killed, its stage finished

    assert tracker.stage(parent, "c0ffee", "train", **CONFIG, cached=True) == child
    tracker.mirror(child, root / "metrics.jsonl").sync(final=True)
    assert points(root, child) == [(1, 1), (2, 2), (3, 3)]
    assert client(root).get_run(child).data.tags["cached"] == "false"


def test_a_light_child_becomes_full_when_its_stage_runs_again(root, tracker):
    first, second = tracker.sweep("1", "first", **CONFIG), tracker.sweep("2", "second", **CONFIG)
    tracker.stage(first, "c0ffee", "train", **CONFIG, cached=False)
    light = tracker.stage(second, "c0ffee", "train", **CONFIG, cached=True)
    (root / "metrics.jsonl").write_text(lines(1))

    assert tracker.stage(second, "c0ffee", "train", **CONFIG, cached=False) == light
    tracker.mirror(light, root / "metrics.jsonl").sync(final=True)
    tags = client(root).get_run(light).data.tags
    assert points(root, light) == [(1, 1)] and tags["cached"] == "false" and "lit_long.source_run" not in tags


def test_changed_params_go_into_a_tag_and_new_ones_are_added(root, tracker):
    run = tracker.sweep("1", "sweep", params={"model": {"n_layers": 4}, "lr": 1e-3}, tags={})
    assert "lit_long.param_drift" not in client(root).get_run(run).data.tags
    tracker.sweep("1", "sweep", params={"model": {"n_layers": 6}, "lr": 1e-3, "seed": 1}, tags={})
    data = client(root).get_run(run).data
    assert data.params == {"model.n_layers": "4", "lr": "0.001", "seed": "1"}
    assert json.loads(data.tags["lit_long.param_drift"]) == {"model.n_layers": ["4", "6"]}


def test_many_and_long_params_stay_within_the_limits_of_mlflow(root, tracker):
    params = {"model": {f"layer_{i}": i for i in range(250)}, "long": "ä" * 7000, "x" * 300: 1, "weights": {"C++": 0.5}}
    run = tracker.sweep("1", "sweep", params=params, tags={"long": "t" * 9000})
    data = client(root).get_run(run).data
    assert len(data.params) == 253 and data.params["model.layer_249"] == "249" and data.params["weights.C__"] == "0.5"
    assert len(data.params["long"]) == 6000 and data.params["long"].endswith("ä…")
    assert len(data.tags["long"]) == 8000
    tracker.sweep("1", "sweep", params=params, tags={})
    assert "lit_long.param_drift" not in client(root).get_run(run).data.tags


def test_flatten():
    config = {
        "a": {"b": {"c": 1}, "empty": {}},
        "list": [1, "x"],
        "none": None,
        "flag": True,
        "path": Path("/x"),
        "s": "32k",
    }
    expected = {
        "a.b.c": "1",
        "a.empty": "{}",
        "list": '[1, "x"]',
        "none": "null",
        "flag": "true",
        "path": '"/x"',
        "s": "32k",
    }
    assert flatten(config) == expected == flatten(expected)


# --------------------------------------------------------------------------------------------------------- metrics


def test_a_mirror_sends_whole_lines_once_with_their_times(root, tracker):
    run, file = tracker.sweep("1", "sweep", **CONFIG), root / "metrics.jsonl"
    mirror = tracker.mirror(run, file)
    assert mirror.sync() == 0  # the stage has not started
    whole = lines(1, 2, 3, **{"perf/tokens_per_second": 1000})
    file.write_text(whole[:-10])
    assert mirror.sync() == 4
    file.write_text(whole)
    assert mirror.sync() == 2 and mirror.sync() == 0

    assert points(root, run) == [(1, 1), (2, 2), (3, 3)] and len(points(root, run, "perf/tokens_per_second")) == 3
    written = int(json.loads(whole.splitlines()[0])["time"] * 1000)
    assert client(root).get_metric_history(run, "train/loss")[0].timestamp == written


def test_steps_written_again_after_a_resume_are_sent_once(root, tracker):
    run, file = tracker.sweep("1", "sweep", **CONFIG), root / "metrics.jsonl"
    mirror = tracker.mirror(run, file)
    file.write_text(lines(1, 2, 3, 4) + lines(4)[:20])  # killed in mid-line
    mirror.sync()
    with file.open("a") as stream:  # resumed from step 2, in append mode: the torn line and a new one are one line
        stream.write(lines(3, 4, value=0.5) + lines(5))
    mirror.sync()
    assert points(root, run) == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]

    file.write_text(lines(1, 2) + lines(3, 4, 5, 6, 7, 8, value=0.5))  # truncated, and longer again than before
    mirror.sync()
    other = open_tracker(root).mirror(run, file)  # a sweep started anew reads all of it
    with file.open("a") as stream:
        stream.write(lines(8, 9))
    assert other.sync(final=True) == 1
    assert points(root, run) == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6.5), (7, 7.5), (8, 8.5), (9, 9)]


def test_a_torn_line_loses_neither_neighbour(root, tracker):
    run, file = tracker.sweep("1", "sweep", **CONFIG), root / "metrics.jsonl"
    file.write_text(lines(1) + lines(2)[:25] + lines(3) + "\0\0\0\n" + "[1]\n" + lines(4))
    tracker.mirror(run, file).sync(final=True)
    assert points(root, run) == [(1, 1), (3, 3), (4, 4)]


def test_each_metric_has_steps_of_its_own(root, tracker):
    run, file = tracker.sweep("1", "sweep", **CONFIG), root / "metrics.jsonl"
    file.write_text(lines(10) + json.dumps({"step": 5, "time": 1.0, "val/python/loss": 2.0}) + "\n")
    tracker.mirror(run, file).sync(final=True)
    assert points(root, run, "val/python/loss") == [(5, 2.0)]


def test_long_histories_go_in_batches_and_nan_passes(root, tracker):
    run, file = tracker.sweep("1", "sweep", **CONFIG), root / "metrics.jsonl"
    file.write_text(lines(*range(2500)) + lines(2500, value=math.nan) + lines(2501, value=math.inf))
    mirror = tracker.mirror(run, file)
    assert mirror.sync() == 1000 and mirror.sync(final=True) == 1502  # one request while the stage runs
    history = points(root, run)
    assert history[:2500] == [(s, s) for s in range(2500)]
    assert math.isnan(history[2500][1]) and history[2501][1] > 1e308  # SQLite has no infinity: MLflow stores the largest float


def test_final_numbers_are_recorded_once_and_a_curve_whole(root, tracker):
    run = tracker.sweep("1", "sweep", **CONFIG)
    curve = {("eval/loss_by_position/docs", step): 5.0 - step / 10 for step in (0, 10, 20)}
    for _ in range(2):  # the record is written again
        tracker.metrics(run, curve | {("eval/perplexity/docs/32", 0): 9.5})
    assert points(root, run, "eval/loss_by_position/docs") == [(0, 5.0), (10, 4.0), (20, 3.0)]
    assert points(root, run, "eval/perplexity/docs/32") == [(0, 9.5)]
    tracker.metrics(run, {("eval/perplexity/docs/32", 0): 9.25})  # measured anew
    assert points(root, run, "eval/perplexity/docs/32") == [(0, 9.5), (0, 9.25)]


@pytest.mark.parametrize(
    "record",
    [
        {"step": 1, "time": 1.0, "ppl(32k)": 2.0},
        {"step": 1, "time": 1.0, "val//loss": 2.0},
        {"step": 1, "time": 1.0, "m" * 251: 2.0},
        {"step": 1, "time": 1.0, "train/loss": "2.0"},
        {"time": 1.0, "train/loss": 2.0},
    ],
)
def test_a_mirror_refuses_what_mlflow_would_change(root, tracker, record):
    (root / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    mirror = tracker.mirror(tracker.sweep("1", "sweep", **CONFIG), root / "metrics.jsonl")
    for _ in range(2):
        with pytest.raises(ValueError):
            mirror.sync()


def test_a_lock_delays_points_and_loses_none(root, tracker, locked):
    run, file = tracker.sweep("1", "sweep", **CONFIG), root / "metrics.jsonl"
    mirror = tracker.mirror(run, file)
    file.write_text(lines(1, 2))
    locked(3)
    start = time.monotonic()
    assert mirror.sync() == 0 and time.monotonic() - start < 2  # the sweep goes on
    with file.open("a") as stream:
        stream.write(lines(3))
    assert mirror.sync(final=True) == 3  # waits for the lock to go
    assert points(root, run) == [(1, 1), (2, 2), (3, 3)]


def test_a_final_sync_gives_up_with_a_remedy(root, tracker, locked):
    run, file = tracker.sweep("1", "sweep", **CONFIG), root / "metrics.jsonl"
    mirror = tracker.mirror(run, file)
    file.write_text(lines(1))
    locked(60)
    tracker.patience = 0.5
    with pytest.raises(TrackingError, match="locked(.|\n)*lsof"):
        mirror.sync(final=True)
    with pytest.raises(TrackingError, match="locked"):
        tracker.finish(run, "FINISHED")


# ------------------------------------------------------------------------------------------------------- artifacts


def test_artifacts_tables_and_datasets(root, tracker, monkeypatch):
    import mlflow

    run = tracker.sweep("1", "sweep", **CONFIG)
    (root / "figures").mkdir()
    (root / "figures" / "a.txt").write_text("a")
    tracker.artifact(run, root / "figures" / "a.txt", "single")
    tracker.artifact(run, root / "figures", "folder")
    for rows in (
        [{"position": "rope", "ppl": 9.0}],
        [{"position": "rope", "ppl": 8.0}, {"position": "abf", "ppl": math.nan}],
    ):
        tracker.table(run, rows, "tables/table.json")
        tracker.text(run, f"rows: {len(rows)}\n", "config.yaml")
        tracker.dataset(run, "builtin", "d" * 64, "train")

    folder = root / "mlflow" / "artifacts" / run / "artifacts"
    assert (folder / "config.yaml").read_text() == "rows: 2\n"
    assert (folder / "single" / "a.txt").is_file() and (folder / "folder" / "a.txt").is_file()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", default_uri(root))
    table = client(root).load_table(tracker._experiment_id, "tables/table.json")
    assert table["position"].tolist() == ["rope", "abf"] and table["ppl"].fillna(0).tolist() == [8.0, 0.0]
    assert "NaN" not in (folder / "tables" / "table.json").read_text()  # browsers do not read it
    (dataset,) = client(root).get_run(run).inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest, dataset.tags[0].value) == ("builtin", "d" * 36, "train")
    assert mlflow.data.get_source(dataset.dataset).to_dict()["tags"]["digest"] == "d" * 64
    with pytest.raises(TrackingError, match="missing"):
        tracker.artifact(run, root / "missing.txt")


# ------------------------------------------------------------------------------------------------------- reconcile


def test_runs_of_a_killed_process_become_killed(root, tracker):
    mine = tracker.sweep("mine", "sweep", **CONFIG)
    code = f"""
import time
from tests.test_tracking import open_tracker, Path
tracker = open_tracker(Path({str(root)!r}))
parent = tracker.sweep("dead", "sweep", params={{}}, tags={{}})
child = tracker.stage(parent, "c0ffee", "train", params={{}}, tags={{}}, cached=False)
done = tracker.stage(parent, "beef", "train", params={{}}, tags={{}}, cached=False)
tracker.finish(done, "FINISHED")
print(parent, child, done, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    parent, child, done = process.stdout.readline().split()
    assert tracker.reconcile() == 0  # it lives
    process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5  # a zombie until we wait for it: dead all the same
    while (found := tracker.reconcile()) == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    _, chatter = process.communicate()

    assert found == 2 and tracker.reconcile() == 0
    runs = {name: client(root).get_run(run).info for name, run in dict(p=parent, c=child, d=done, m=mine).items()}
    assert {name: run.status for name, run in runs.items()} == {
        "p": "KILLED",
        "c": "KILLED",
        "d": "FINISHED",
        "m": "RUNNING",
    }
    assert runs["p"].end_time > runs["p"].start_time
    assert chatter == ""  # mlflow and alembic say nothing


def test_only_dead_owners_on_this_host_are_reconciled(root, tracker):
    runs = {name: tracker.sweep(name, name, **CONFIG) for name in ("elsewhere", "recycled", "unknown", "mine")}
    client(root).set_tag(runs["elsewhere"], "lit_long.host", "another-host")
    client(root).set_tag(runs["elsewhere"], "lit_long.pid", "999999999")
    started = float(client(root).get_run(runs["mine"]).data.tags["lit_long.pid_started"])
    client(root).set_tag(runs["recycled"], "lit_long.pid_started", str(started - 3600))  # our number, another process
    client(root).delete_tag(runs["unknown"], "lit_long.pid")

    assert tracker.reconcile() == 1
    killed = [name for name, run in runs.items() if client(root).get_run(run).info.status == "KILLED"]
    assert killed == ["recycled"]


# ----------------------------------------------------------------------------------------------------------- store


def test_a_new_store_is_made_quietly_wherever_one_is(tmp_path):
    code = f"""
from tests.test_tracking import Tracker, Path, default_uri
root = Path({str(tmp_path)!r}) / "deep" / "root"
tracker = Tracker.open(default_uri(root), "x", root / "mlflow" / "artifacts")
run = tracker.sweep("1", "sweep", params={{}}, tags={{}})
tracker.table(run, [{{"position": "abf", "ppl": 3.5}}], "table.json")
tracker.finish(run, "FINISHED")
"""
    start = [sys.executable, "-c", code]
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    sweeps = [subprocess.Popen(start, cwd=tmp_path, env=env, **options) for _ in range(2)]  # at once: they make it one by one
    assert [sweep.communicate()[0] for sweep in sweeps] == ["", ""] and [sweep.returncode for sweep in sweeps] == [0, 0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]
    assert len({run.info.experiment_id for run in client(tmp_path / "deep" / "root").search_runs(["1"])}) == 1


@pytest.mark.parametrize(
    "name",
    [
        "per%41cent",
        "100%",
        "quest?ion",
        "%3Fx?y#z",
        "ha#sh",
        "a b",
        "ümläut 文",
        "a@b:c",
        "semi;co&lon=",
        "back\\slash",
        "quo'te",
    ],
)
def test_everything_lands_inside_the_root_whatever_it_is_called(tmp_path, empty_store, name):
    root = tmp_path / "beside" / name
    (root / "mlflow").mkdir(parents=True)
    shutil.copy(database(empty_store), database(root))
    tracker = open_tracker(root)
    run = tracker.sweep("1", "sweep", **CONFIG)
    tracker.text(run, "a: 1\n", "config.yaml")
    (root / "figure.txt").write_text("b")
    tracker.artifact(run, root / "figure.txt", "figures")
    assert client(root).get_run(run).info.run_name == "sweep"
    assert (root / "mlflow" / "artifacts" / run / "artifacts" / "config.yaml").read_text() == "a: 1\n"
    assert {artifact.path for artifact in client(root).list_artifacts(run)} == {"config.yaml", "figures"}
    assert [path.name for path in (tmp_path / "beside").iterdir()] == [name] and [path.name for path in tmp_path.iterdir()] == [
        "beside"
    ]
    with sqlite3.connect(database(root)) as connection:
        assert connection.execute("SELECT name FROM runs").fetchall() == [("sweep",)]
    connection.close()


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"])
def test_no_variable_of_the_environment_changes_where_runs_go(root, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv(name, f"sqlite:///{tmp_path}/elsewhere.db")
    tracker = open_tracker(root)
    run = tracker.sweep("1", "sweep", **CONFIG)
    tracker.table(run, [{"ppl": 9.0}], "table.json")
    said = capsys.readouterr().err.splitlines()
    assert (
        len(said) == 1 and name in said[0] and "tracking.uri" in said[0] and "elsewhere" not in said[0]
    )  # values may hold passwords
    assert client(root).get_run(run).info.experiment_id == tracker._experiment_id
    assert [path.name for path in tmp_path.iterdir()] == ["my runs"]


# ------------------------------------------------------------------------------------------------------------ view


def test_the_columns_of_a_view():
    names = [
        f"eval/{metric}/{domain}/{length}"
        for metric in ("perplexity", "retrieval_nats", "retrieval_accuracy")
        for domain in ("code", "docs")
        for length in (256, 512, 2048)
    ]
    assert columns([*names, "eval/loss_by_position/code", "result/train_loss"]) == [
        "eval/perplexity/code/2048",
        "eval/perplexity/code/256",
        "eval/retrieval_accuracy/code/2048",
        "eval/perplexity/docs/2048",
        "eval/perplexity/docs/256",
    ]
    assert columns(["eval/perplexity/my/own/32"]) == ["eval/perplexity/my/own/32"]  # one length
    assert columns(["eval/answer_nats/docs/128", "eval/answer_nats/docs/32"]) == ["eval/answer_nats/docs/128"]
    assert columns(["eval/loss_by_position/code", "train/loss"]) == []


def test_a_view_is_kept_with_the_experiment(root, tracker):
    page = tracker.show("3f2a", ["eval/perplexity/docs/256", "eval/perplexity/docs/2048"])
    assert page == f"#/experiments/{tracker._experiment_id}/runs?workflowType=machine_learning&viewStateShareKey=3f2a"
    kept = client(root).get_experiment(tracker._experiment_id).tags["mlflow.sharedViewState.3f2a"]
    state = json.loads(kept)
    assert state["selectedColumns"] == ["metrics.`eval/perplexity/docs/2048`", "metrics.`eval/perplexity/docs/256`"]
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`eval/perplexity/docs/2048`", True)
    run = tracker.sweep("3f2a", "sweep", **CONFIG)
    assert [r.info.run_id for r in client(root).search_runs([tracker._experiment_id], state["searchFilter"])] == [run]
    long = [f"eval/perplexity/{'x' * 235}{i}/9" for i in range(9)]
    assert tracker.show("77b1", long) in (
        page.replace("3f2a", "77b1"),
        page.partition("&")[0],
    )  # what MLflow takes, or the plain list


def test_importing_does_not_import_mlflow():
    code = "import sys, lit_long.tracking; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_locked_database_is_refused_after_a_while(root, locked, monkeypatch):
    monkeypatch.setattr(tracking.store, "OPEN_PATIENCE", 0.5)
    locked(60)
    with pytest.raises(UserError, match="locked(.|\n)*lsof"):
        open_tracker(root)


def test_a_database_locked_for_a_moment_is_waited_for(root, locked):
    locked(1.5)
    assert open_tracker(root).sweep("1", "sweep", **CONFIG)


@pytest.mark.parametrize(
    "version, remedy", [("ffffffffffff", "newer than(.|\n)*Upgrade"), ("older", "mlflow db upgrade .sqlite:///")]
)
def test_another_schema_is_refused_untouched(root, version, remedy):
    import mlflow
    from alembic.script import ScriptDirectory

    if version == "older":
        scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
        version = scripts.get_revision(scripts.get_current_head()).down_revision
    with sqlite3.connect(database(root)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [version])
        connection.execute("DROP TABLE registered_model_aliases")  # mlflow by itself would now migrate without asking
    connection.close()
    before = database(root).read_bytes()
    with pytest.raises(UserError, match=remedy):
        open_tracker(root)
    assert database(root).read_bytes() == before


def test_what_is_no_mlflow_database_is_refused_untouched(root):
    database(root).write_bytes(b"hello" * 1000)
    with pytest.raises(UserError, match="not a database(.|\n)*aside"):
        open_tracker(root)
    assert database(root).read_bytes() == b"hello" * 1000

    database(root).unlink()
    with sqlite3.connect(database(root)) as connection:
        connection.execute("CREATE TABLE mine (a)")
    connection.close()
    with pytest.raises(UserError, match="something else"):
        open_tracker(root)


def test_a_damaged_database_is_refused(root):
    with database(root).open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 4000)
    with pytest.raises(UserError, match="malformed(.|\n)*aside"):
        open_tracker(root)


@pytest.mark.parametrize("where", ["a file", "/proc/lit-long", "/sys/lit-long"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, where):
    (tmp_path / "a file").write_text("")
    root = tmp_path / where
    with pytest.raises(UserError, match="may you write there(.|\n)*tracking.uri"):
        Tracker.open(default_uri(root), "x", root / "mlflow" / "artifacts")


@pytest.mark.parametrize("uri", ["mlruns", "file:mlruns", "gopher://x", "postgresql://nobody@127.0.0.1:1/x"])
def test_an_unusable_uri_is_refused(tmp_path, uri):
    start = time.monotonic()
    with pytest.raises(UserError, match="tracking.uri"):
        Tracker.open(uri, "x", tmp_path)
    assert time.monotonic() - start < 60  # MLflow asks a database that is not there for a hundred seconds


def test_deleted_and_moved_experiments_are_refused(root, tracker):
    shutil.rmtree(root / "mlflow" / "artifacts")
    moved = root.rename(root.parent / "moved")
    with pytest.raises(UserError, match="artifacts in .*my runs(.|\n)*moved"):
        open_tracker(moved)
    client(moved).delete_experiment(client(moved).get_experiment_by_name("position tiny").experiment_id)
    with pytest.raises(UserError, match="experiments restore"):
        open_tracker(moved)


def test_no_tracker_has_the_same_surface_and_does_nothing(tmp_path):
    surface = {name for name in vars(Tracker) if not name.startswith("_")} - {"patience", "open"}
    assert surface <= set(vars(NoTracker))
    tracker = NoTracker()
    run = tracker.stage(tracker.sweep("1", "x", **CONFIG), "2", "y", **CONFIG, cached=False)
    (tmp_path / "metrics.jsonl").write_text(lines(1))
    assert tracker.mirror(run, tmp_path / "metrics.jsonl").sync(final=True) == 0 and tracker.reconcile() == 0
    tracker.table(run, [], "table.json")
    tracker.finish(run, "FINISHED")


def test_the_environment_is_described(tmp_path):
    tags = environment_tags()
    assert {"git.commit", "git.dirty", "version.lit-long", "version.torch", "version.mlflow", "host"} <= tags.keys()
    assert tags["version.mlflow"].startswith("3.") and all(isinstance(value, str) for value in tags.values())


def test_the_git_tags_come_from_the_checkout_only(tmp_path, monkeypatch):
    (tmp_path / "lit_long").mkdir()
    monkeypatch.setattr(tracking.describe, "__file__", str(tmp_path / "lit_long" / "tracking" / "describe.py"))
    assert environment_tags()["git.commit"] == "unknown" == environment_tags()["git.dirty"]
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    assert len(environment_tags()["git.commit"]) == 40 and environment_tags()["git.dirty"] == "false"
    (tmp_path / "new.py").write_text("")
    assert environment_tags()["git.dirty"] == "true"
    monkeypatch.setattr(
        tracking.describe,
        "__file__",
        str(tmp_path / ".venv" / "site-packages" / "lit_long" / "tracking" / "describe.py"),
    )
    assert environment_tags()["git.commit"] == "unknown"  # installed in somebody else's checkout


# ---------------------------------------------------------------------------------------------------------- server


def test_against_a_real_server_started_by_serve_sh(root, tracker):
    folder = tracker.sweep("local", "written before", **CONFIG)
    tracker.text(folder, "a: 1\n", "config.yaml")
    shutil.copy(ROOT / "mlflow" / "serve.sh", root / "mlflow" / "serve.sh")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    with pytest.raises(UserError, match="server up(.|\n)*serve.sh"):
        Tracker.open(uri, "x", root)

    env = {**os.environ, "PORT": str(port), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    options = dict(env=env, cwd="/", start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    server = subprocess.Popen([str(root / "mlflow" / "serve.sh")], **options)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1)
                break
            except OSError:
                assert server.poll() is None, server.communicate()[0]
                time.sleep(0.2)
        second = subprocess.run([str(root / "mlflow" / "serve.sh")], **{**options, "start_new_session": False})
        assert second.returncode == 1 and f"port {port} is in use" in second.stdout

        foreign = urllib.request.Request(f"{uri}/", headers={"Host": "elsewhere.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):  # a page that has its name resolve to this machine
            urllib.request.urlopen(foreign, timeout=10)

        tracker.sweep("0dd", "the newest", **CONFIG)
        page = f"#/experiments/{tracker._experiment_id}/runs?workflowType=machine_learning"
        assert f'"{page}"' in read(f"{uri}/")  # no view of it was kept: the plain list
        assert tracker.show("0dd", []) == f"{page}&viewStateShareKey=0dd" and tracker.show("0dd", []) in read(f"{uri}/")

        artifact = urllib.request.urlopen(f"{uri}/get-artifact?path=config.yaml&run_uuid={folder}", timeout=10)
        assert artifact.read() == b"a: 1\n"  # an artifact that was written to disk shows in the browser

        remote = Tracker.open(uri, "remote", root / "ignored")
        run = remote.sweep("1", "remote", params={f"p{i}": i for i in range(150)}, tags={})
        assert remote.sweep("1", "remote", **CONFIG) == run
        remote.text(run, "b: 2\n", "config.yaml")
        file = root / "metrics.jsonl"
        file.write_text(lines(*range(1200)))
        mirror = remote.mirror(run, file)
        assert mirror.sync() == 1000 and mirror.sync(final=True) == 200 and len(points(root, run)) == 1200
        assert not (root / "ignored").exists()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.communicate(timeout=20)

    with file.open("a") as stream:
        stream.write(lines(1200))
    remote.patience = 0.1
    assert mirror.sync() == 0  # the server is down: the sweep goes on, and the point waits
    with pytest.raises(TrackingError, match="server up"):
        mirror.sync(final=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve_sh(folder: Path, path: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """What mlflow/serve.sh says, copied to ``folder``, on a port of its own."""
    shutil.copy(ROOT / "mlflow" / "serve.sh", folder / "serve.sh")
    path = f"{path}{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "PORT": str(free_port()), **more}
    return subprocess.run([str(folder / "serve.sh")], env=env, capture_output=True, text=True, timeout=60)


def test_serve_sh_says_when_there_is_nothing_to_show(tmp_path):
    result = serve_sh(tmp_path)
    assert result.returncode == 1 and "python -m lit_long.sweep" in result.stderr and f"{tmp_path}/mlflow.db" in result.stderr
    result = serve_sh(tmp_path, ROOT=str(tmp_path))
    assert result.returncode == 1 and f"{tmp_path}/mlflow/mlflow.db does not exist" in result.stderr


@pytest.mark.parametrize("name", ["plain", "quest?ion"])
def test_serve_sh_starts_mlflow_s_own_command_where_a_server_is_set_up_otherwise(tmp_path, name):
    folder = tmp_path / name / "mlflow"
    folder.mkdir(parents=True)
    (folder / "mlflow.db").touch()
    for module in ("__init__.py", "server/__init__.py", "server/constants.py"):  # of an MLflow whose server has other names
        (tmp_path / "other" / "mlflow" / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / "mlflow" / module).touch()
    command = tmp_path / "bin" / "mlflow"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\necho "$@"\n')
    command.chmod(0o755)
    result = serve_sh(folder, f"{command.parent}:", PYTHONPATH=f"{tmp_path / 'other'}:{ROOT}", PORT="1")
    started = f"server --host 127.0.0.1 --port 1 --workers 1 --backend-store-uri {default_uri(tmp_path / name)}"
    assert result.stdout.splitlines()[-1] == f"{started} --artifacts-destination {(folder / 'artifacts').as_uri()}", result.stderr
