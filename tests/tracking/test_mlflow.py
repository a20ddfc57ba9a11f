"""The record in MLflow, read back through MLflow's own client: nothing twice, nothing lost, and clear errors."""

from __future__ import annotations

import contextlib
import http.server
import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_long.config import TrackingConfig, UserError
from lit_long.report.__main__ import main as report
from lit_long.tracking import Mirror, TrackingError, describe, mlflow_store
from lit_long.tracking.describe import environment_tags
from lit_long.tracking.mlflow import MlflowTracker, fetch_sweep, flatten
from lit_long.tracking.mlflow_store import default_uri
from lit_long.tracking.mlflow_view import columns
from lit_long.tracking.tracker import NOTE, TrackerAwayError

ROOT = Path(__file__).resolve().parents[2]
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
    MlflowTracker.open(TrackingConfig(), "unused", root)
    return root


@pytest.fixture
def root(tmp_path, empty_store) -> Path:
    """A root of one's own; its path holds a space, as homes do."""
    root = tmp_path / "my runs"
    (root / "mlflow").mkdir(parents=True)
    shutil.copy(empty_store / "mlflow" / "mlflow.db", root / "mlflow" / "mlflow.db")
    return root


@pytest.fixture
def tracker(root) -> MlflowTracker:
    return open_tracker(root)


def open_tracker(root: Path) -> MlflowTracker:
    return MlflowTracker.open(TrackingConfig(), "position tiny", root)


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
    return urllib.request.urlopen(address, timeout=200).read().decode()


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


def test_runs_are_marked_as_mlflow_shows_them(root, tracker):
    parent = tracker.begin("3f2a", "position tiny", params={}, tags={NOTE: "Which encoder?"})
    child = tracker.begin("c0ffee", "train abf", **CONFIG, parent=parent)
    (root / "metrics.jsonl").write_text('{"step": 1, "time": 1795887600.9876, "train/loss": 0.5}\n')
    Mirror(tracker, child, root / "metrics.jsonl").sync()
    for run in (child, parent):
        tracker.finish(run, "FINISHED")
    parent_run, child_run = client(root).get_run(parent), client(root).get_run(child)
    assert child_run.data.tags["mlflow.parentRunId"] == parent and child_run.data.tags["lit_long.identity"] == "c0ffee"
    tags = parent_run.data.tags
    assert tags["mlflow.note.content"] == "Which encoder?" and NOTE not in tags and "cached" not in tags
    assert tags["lit_long.sweep"] == tags["lit_long.member_of"] == "3f2a"
    assert parent_run.info.end_time >= parent_run.info.start_time
    assert client(root).get_metric_history(child, "train/loss")[0].timestamp == 1795887600987


def test_changed_params_go_into_a_tag_and_new_ones_are_added(root, tracker):
    run = tracker.begin("1", "sweep", params={"model": {"n_layers": 4}, "lr": 1e-3}, tags={})
    assert "lit_long.param_drift" not in client(root).get_run(run).data.tags
    tracker.begin("1", "sweep", params={"model": {"n_layers": 6}, "lr": 1e-3, "seed": 1}, tags={})
    data = client(root).get_run(run).data
    assert data.params == {"model.n_layers": "4", "lr": "0.001", "seed": "1"}
    assert json.loads(data.tags["lit_long.param_drift"]) == {"model.n_layers": ["4", "6"]}


def test_many_and_long_params_stay_within_the_limits_of_mlflow(root, tracker):
    params = {"model": {f"layer_{i}": i for i in range(250)}, "long": "ä" * 7000, "x" * 300: 1, "weights": {"C++": 0.5}}
    run = tracker.begin("1", "sweep", params=params, tags={"long": "t" * 9000})
    data = client(root).get_run(run).data
    assert len(data.params) == 253 and data.params["model.layer_249"] == "249" and data.params["weights.C__"] == "0.5"
    assert len(data.params["long"]) == 6000 and data.params["long"].endswith("ä…")
    assert len(data.tags["long"]) == 8000
    tracker.begin("1", "sweep", params=params, tags={})
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


def test_a_lock_delays_points_and_loses_none(root, tracker, locked):
    run, file = tracker.begin("1", "sweep", **CONFIG), root / "metrics.jsonl"
    mirror = Mirror(tracker, run, file)
    file.write_text(lines(1, 2))
    locked(3)
    start = time.monotonic()
    assert mirror.sync() == 0 and time.monotonic() - start < 2  # the sweep goes on
    with file.open("a") as stream:
        stream.write(lines(3))
    assert mirror.sync(final=True) == 3  # waits for the lock to go
    assert points(root, run) == [(1, 1), (2, 2), (3, 3)]


def test_a_final_sync_gives_up_with_a_remedy(root, tracker, locked):
    run, file = tracker.begin("1", "sweep", **CONFIG), root / "metrics.jsonl"
    mirror = Mirror(tracker, run, file)
    file.write_text(lines(1))
    locked(60)
    tracker.patience = 0.5
    with pytest.raises(TrackerAwayError, match="locked(.|\n)*lsof"):
        mirror.sync(final=True)
    with pytest.raises(TrackerAwayError, match="locked"):
        tracker.finish(run, "FINISHED")


# ------------------------------------------------------------------------------------------------------- artifacts


def test_artifacts_tables_and_datasets(root, tracker, monkeypatch):
    import mlflow

    run = tracker.begin("1", "sweep", **CONFIG)
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


def test_only_dead_owners_on_this_host_are_reconciled(root, tracker):
    runs = {name: tracker.begin(name, name, **CONFIG) for name in ("elsewhere", "recycled", "unknown", "mine")}
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
from tests.tracking.test_mlflow import MlflowTracker, Path, TrackingConfig
root = Path({str(tmp_path)!r}) / "deep" / "root"
tracker = MlflowTracker.open(TrackingConfig(), "x", root)
run = tracker.begin("1", "sweep", params={{}}, tags={{}})
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
    run = tracker.begin("1", "sweep", **CONFIG)
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
    run = tracker.begin("1", "sweep", **CONFIG)
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
    both = [name.replace("accuracy", "rouge_l") for name in names if "accuracy" in name]
    assert columns([*names, *both])[2] == "eval/retrieval_rouge_l/code/2048"  # the paper's measure, where there are both
    assert columns(["eval/perplexity/my/own/32"]) == ["eval/perplexity/my/own/32"]  # one length
    assert columns(["eval/answer_nats/docs/128", "eval/answer_nats/docs/32"]) == ["eval/answer_nats/docs/128"]
    assert columns(["eval/loss_by_position/code", "train/loss"]) == []


def test_a_view_is_kept_with_the_experiment(root, tracker):
    page = f"#/experiments/{tracker._experiment_id}/runs?workflowType=machine_learning&viewStateShareKey=3f2a"
    shown = tracker.show("3f2a", ["eval/perplexity/docs/256", "eval/perplexity/docs/2048"])
    assert shown == f"http://127.0.0.1:5000/{page}  (while `make ui ROOT='{root}'` runs)"
    kept = client(root).get_experiment(tracker._experiment_id).tags["mlflow.sharedViewState.3f2a"]
    state = json.loads(kept)
    assert state["selectedColumns"] == ["metrics.`eval/perplexity/docs/2048`", "metrics.`eval/perplexity/docs/256`"]
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`eval/perplexity/docs/2048`", True)
    run = tracker.begin("3f2a", "sweep", **CONFIG)
    assert [r.info.run_id for r in client(root).search_runs([tracker._experiment_id], state["searchFilter"])] == [run]
    long = [f"eval/perplexity/{'x' * 235}{i}/9" for i in range(9)]
    shown = tracker.show("77b1", long).removeprefix("http://127.0.0.1:5000/").partition("  (")[0]
    assert shown in (page.replace("3f2a", "77b1"), page.partition("&")[0])  # what MLflow takes, or the plain list


def test_a_locked_database_is_refused_after_a_while(root, locked, monkeypatch):
    monkeypatch.setattr(mlflow_store, "OPEN_PATIENCE", 0.5)
    locked(60)
    with pytest.raises(UserError, match="locked(.|\n)*lsof"):
        open_tracker(root)


def test_a_database_locked_for_a_moment_is_waited_for(root, locked):
    locked(1.5)
    assert open_tracker(root).begin("1", "sweep", **CONFIG)


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


@pytest.mark.parametrize(
    "tables", [["experiments (id INTEGER PRIMARY KEY, title TEXT)"], ["alembic_version (version_num VARCHAR(32))", "mine (a)"]]
)
def test_another_program_s_tables_may_have_the_names_of_mlflow_s(tmp_path, tables):
    """MLflow would add sixty of its own, and then fail."""
    file = tmp_path / "lab.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        for table in tables:
            connection.execute(f"CREATE TABLE {table}")
    before = file.read_bytes()
    with pytest.raises(TrackingError, match=r"something else than MLflow(.|\n)* Set uri to another file"):
        fetch_sweep(f"sqlite:///{file}", "x", tmp_path)
    with pytest.raises(TrackingError, match=r"something else than MLflow(.|\n)* Set tracking\.uri to another file"):
        MlflowTracker.open(TrackingConfig(uri=f"sqlite:///{file}"), "x", tmp_path)
    assert file.read_bytes() == before


def test_a_report_from_a_store_writes_nothing_there(tmp_path, root):
    """MLflow would fill another program's database with its tables, and make one of each name that is mistyped."""
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE mine (a)")
    with contextlib.closing(sqlite3.connect(tmp_path / "bare.db")) as connection:
        connection.execute("PRAGMA user_version = 1")
    (tmp_path / "empty.db").touch()
    before = {file: file.read_bytes() for file in (other, tmp_path / "bare.db", tmp_path / "empty.db", database(root))}
    for uri, message in (
        (f"sqlite:///{other}", "something else than MLflow"),
        (f"sqlite:///{tmp_path}/typo.db", "uri=sqlite:///.*/typo.db: there is no record: .*/typo.db does not exist"),
        (f"sqlite:///{tmp_path}/no/folder.db", "folder.db does not exist"),
        (f"sqlite:///{tmp_path}/empty.db", "empty.db is empty"),
        (f"sqlite:///{tmp_path}/bare.db", "bare.db is empty"),
        (default_uri(root), "has no experiment 'position_tiny'; it has Default, unused"),
    ):
        with pytest.raises(TrackingError, match=message):
            fetch_sweep(uri, "position_tiny", tmp_path / "out")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_the_remedies_of_a_report_change_nothing(tmp_path, root, locked, monkeypatch):
    """Whoever only reads is not to move a file aside that holds something else, and has no tracking.uri to set."""
    (tmp_path / "thesis.txt").write_text("my thesis " * 200)
    (tmp_path / "folder.db").mkdir()
    shutil.copy(database(root), tmp_path / "damaged.db")
    with (tmp_path / "damaged.db").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 4000)
    locked(60)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda file, timeout=0.2, **options: connect(file, timeout=timeout, **options))
    for uri, message in (
        (f"sqlite:///{tmp_path}/thesis.txt", "thesis.txt is no record of MLflow's, or a damaged one; name another with uri="),
        (f"sqlite:///{tmp_path}/damaged.db", "damaged.db is no record of MLflow's, or a damaged one; name another with uri="),
        (f"sqlite:///{tmp_path}/folder.db", "folder.db is a folder"),
        (default_uri(root), "locked(.|\n)*lsof(.|\n)* set uri=http://HOST:PORT"),
    ):
        with pytest.raises(TrackingError, match=message) as error:
            fetch_sweep(uri, "x", tmp_path / "out")
        assert "tracking." not in str(error.value) and "aside" not in str(error.value)
    for error in (ImportError("No module named 'mlflow'"), PermissionError("Permission denied")):
        said = mlflow_store.remedy(error, default_uri(root), "uri")
        assert "tracking." not in said and "root=" not in said


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
        MlflowTracker.open(TrackingConfig(), "x", root)


@pytest.fixture
def stub():
    """The address of a server that answers each request with the status that its path says."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path.split("/")[1]))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    "uri, remedy",
    [
        ("STUB/401", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("STUB/403", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("STUB/404", "Is the server up, and is {key}=http://.*/404 its address"),
        ("HTTP://127.0.0.1:1", "Is the server up, and is {key}=HTTP://127.0.0.1:1 its address"),
        ("postgresql://me@127.0.0.1:1/x", "Does the database server at 127.0.0.1:1 run, and is {key}=postgresql://me@"),
        ("postgresql+psycopg://127.0.0.1:x/x", "{key} must be sqlite:///FILE, a database's URI, or"),
        ("mlruns", "{key} must be sqlite:///FILE, a database's URI, or"),
    ],
)
def test_the_remedy_is_that_of_the_fault(tmp_path, stub, uri, remedy):
    uri = uri.replace("STUB", stub)
    with pytest.raises(TrackingError, match=remedy.format(key="tracking.uri")):
        MlflowTracker.open(TrackingConfig(uri=uri), "x", tmp_path)
    with pytest.raises(TrackingError, match=remedy.format(key=r"\buri")):
        fetch_sweep(uri, "x", tmp_path)
    assert not (tmp_path / "mlflow").exists() or uri == "mlruns"


def test_a_password_in_a_uri_is_not_printed(tmp_path, capsys):
    assert report(["uri=http://me:hunter2@127.0.0.1:1", f"out={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: uri has a password in it") and "MLFLOW_TRACKING_PASSWORD" in said and "hunter2" not in said
    assert report(["uri=", f"out={tmp_path}"]) == 2 and "uri=… is empty" in capsys.readouterr().err


@pytest.mark.parametrize("uri", ["mlruns", "file:mlruns", "gopher://x", "postgresql://nobody@127.0.0.1:1/x"])
def test_an_unusable_uri_is_refused(tmp_path, uri):
    start = time.monotonic()
    with pytest.raises(UserError, match="tracking.uri"):
        MlflowTracker.open(TrackingConfig(uri=uri), "x", tmp_path)
    assert time.monotonic() - start < 60  # MLflow asks a database that is not there for a hundred seconds


@pytest.mark.parametrize(
    "uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+pysqlite://", "sqlite:///file::memory:?uri=true"]
)
def test_a_record_in_memory_is_refused(tmp_path, monkeypatch, uri):
    """It would be gone with the sweep, which said where to look at it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackingError, match="^tracking.uri=.* names no file(.|\n)*tracking.uri must be sqlite:///FILE"):
        MlflowTracker.open(TrackingConfig(uri=uri), "x", tmp_path)
    with pytest.raises(TrackingError, match="^uri=.* names no file"):
        fetch_sweep(uri, "x", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_home_folder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(root))
    assert MlflowTracker.open(TrackingConfig(uri="sqlite:///~/mlflow/mlflow.db"), "x", root).where == default_uri(root)
    with pytest.raises(TrackingError, match="has no experiment 'y'; it has Default, unused, x"):
        fetch_sweep("sqlite:///~/mlflow/mlflow.db", "y", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [root.name]


def test_deleted_and_moved_experiments_are_refused(root, tracker):
    shutil.rmtree(root / "mlflow" / "artifacts")
    moved = root.rename(root.parent / "moved")
    with pytest.raises(UserError, match="artifacts in .*my runs(.|\n)*moved"):
        open_tracker(moved)
    client(moved).delete_experiment(client(moved).get_experiment_by_name("position tiny").experiment_id)
    with pytest.raises(UserError, match="experiments restore"):
        open_tracker(moved)


def test_roots_that_share_a_store(root, tmp_path):
    """Its artifacts are not those of the root that came first; where they are, as 0.2 did, the store of all is not to go when that root does."""
    config = TrackingConfig(uri=default_uri(root))
    first, second = (MlflowTracker.open(config, "shared", tmp_path / name) for name in ("A", "B"))
    first.text(first.begin("1", "sweep", **CONFIG), "a: 1\n", "config.yaml")
    run = second.begin("1", "sweep", **CONFIG)
    assert (root / "mlflow" / "artifacts" / run / "artifacts" / "config.yaml").read_text() == "a: 1\n"
    assert not (tmp_path / "A").exists() and not (tmp_path / "B").exists()
    client(root).create_experiment("old", artifact_location=(tmp_path / "A" / "artifacts").as_uri())
    with pytest.raises(TrackingError, match="which is gone.\nAnother root or machine made it: bring the folder back") as error:
        MlflowTracker.open(config, "old", tmp_path / "B")
    assert "aside" not in str(error.value)
    (tmp_path / "A" / "artifacts").mkdir(parents=True)
    assert MlflowTracker.open(config, "old", tmp_path / "B")


def test_the_environment_is_described(tmp_path):
    tags = environment_tags()
    assert {"git.commit", "git.dirty", "version.lit-long", "version.torch", "version.mlflow", "host"} <= tags.keys()
    assert tags["version.mlflow"].startswith("3.") and all(isinstance(value, str) for value in tags.values())


def test_the_git_tags_come_from_the_checkout_only(tmp_path, monkeypatch):
    (tmp_path / "lit_long").mkdir()
    monkeypatch.setattr(describe, "__file__", str(tmp_path / "lit_long" / "tracking" / "describe.py"))
    assert environment_tags()["git.commit"] == "unknown" == environment_tags()["git.dirty"]
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    assert len(environment_tags()["git.commit"]) == 40 and environment_tags()["git.dirty"] == "false"
    (tmp_path / "new.py").write_text("")
    assert environment_tags()["git.dirty"] == "true"
    monkeypatch.setattr(
        describe,
        "__file__",
        str(tmp_path / ".venv" / "site-packages" / "lit_long" / "tracking" / "describe.py"),
    )
    assert environment_tags()["git.commit"] == "unknown"  # installed in somebody else's checkout


# ---------------------------------------------------------------------------------------------------------- server


def test_against_a_real_server_started_by_serve_sh(root, tracker):
    folder = tracker.begin("local", "written before", **CONFIG)
    tracker.text(folder, "a: 1\n", "config.yaml")
    shutil.copy(ROOT / "mlflow" / "serve.sh", root / "mlflow" / "serve.sh")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    with pytest.raises(UserError, match="server up(.|\n)*serve.sh"):
        MlflowTracker.open(TrackingConfig(uri=uri), "x", root)

    env = {**os.environ, "PORT": str(port), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    options = dict(env=env, cwd="/", start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    server = subprocess.Popen([str(root / "mlflow" / "serve.sh")], **options)
    try:
        deadline = time.monotonic() + 600
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
            urllib.request.urlopen(foreign, timeout=200)

        tracker.begin("0dd", "the newest", **CONFIG)
        page = f"#/experiments/{tracker._experiment_id}/runs?workflowType=machine_learning"
        assert f'"{page}"' in read(f"{uri}/")  # no view of it was kept: the plain list
        assert f"/{page}&viewStateShareKey=0dd  (" in tracker.show("0dd", [])
        assert f'"{page}&viewStateShareKey=0dd"' in read(f"{uri}/")

        artifact = urllib.request.urlopen(f"{uri}/get-artifact?path=config.yaml&run_uuid={folder}", timeout=200)
        assert artifact.read() == b"a: 1\n"  # an artifact that was written to disk shows in the browser

        remote = MlflowTracker.open(TrackingConfig(uri=uri), "remote", root / "ignored")
        run = remote.begin("1", "remote", params={f"p{i}": i for i in range(150)}, tags={})
        assert remote.begin("1", "remote", **CONFIG) == run
        remote.text(run, "b: 2\n", "config.yaml")
        file = root / "metrics.jsonl"
        file.write_text(lines(*range(1200)))
        mirror = Mirror(remote, run, file)
        assert mirror.sync() == 1000 and mirror.sync(final=True) == 200 and len(points(root, run)) == 1200
        assert not (root / "ignored").exists()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.communicate(timeout=600)

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
    return subprocess.run([str(folder / "serve.sh")], env=env, capture_output=True, text=True, timeout=600)


def test_serve_sh_says_when_there_is_nothing_to_show(tmp_path, monkeypatch):
    result = serve_sh(tmp_path)
    assert result.returncode == 1 and "python -m lit_long.sweep" in result.stderr and f"{tmp_path}/mlflow.db" in result.stderr
    result = serve_sh(tmp_path, ROOT=str(tmp_path))
    assert result.returncode == 1 and f"{tmp_path}/mlflow/mlflow.db does not exist" in result.stderr
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    result = serve_sh(tmp_path, ROOT="mine", CDPATH=str(tmp_path), HOST="localhost")  # this machine, by its name
    assert result.returncode == 1 and f": {tmp_path}/mine/mlflow/mlflow.db does not exist" in result.stderr


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
