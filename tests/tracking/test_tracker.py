"""What every tracker promises, of MLflow and of the plain folder by the same tests: nothing twice, nothing lost, and clear errors."""

from __future__ import annotations

import errno
import inspect
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from lit_long.config import TrackingConfig, UserError
from lit_long.tracking import Mirror, NoTracker, Tracker, TrackingError, open_tracker
from lit_long.tracking.tracker import MAX_POINTS, TRACKERS, TrackerAwayError
from tests.tracking.sides import SIDES, Side

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"params": {}, "tags": {}}


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> dict[str, Path]:
    """A root with an empty record of each tracker: making MLflow's tables takes a second, copying them does not."""
    roots = {name: tmp_path_factory.mktemp(name) for name in SIDES}
    for name, side in SIDES.items():
        side(roots[name]).open("unused")
    return roots


@pytest.fixture(params=list(SIDES))
def side(request, tmp_path, empty) -> Side:
    """A tracker with a root of its own, whose path holds a space, as homes do."""
    shutil.copytree(empty[request.param], root := tmp_path / "my runs")
    shutil.rmtree(root / "mlflow" / "artifacts", ignore_errors=True)
    return SIDES[request.param](root)


@pytest.fixture
def tracker(side) -> Tracker:
    return side.open()


@pytest.fixture
def file(side) -> Path:
    return side.root / "metrics.jsonl"


def lines(*steps: int, value: float = 0.0, **more: float) -> str:
    """Records as a stage writes them; ``value`` tells the first writing of a step from the second."""
    records = [{"step": s, "time": time.time(), "train/loss": s + value, **more} for s in steps]
    return "".join(json.dumps(record) + "\n" for record in records)


# ------------------------------------------------------------------------------------------------------- the class


def test_every_tracker_has_the_methods_of_the_protocol():
    wanted = {name for name in vars(Tracker) if not name.startswith("_")}
    classes = [NoTracker, *(getattr(import_module(module), name) for module, name, _ in TRACKERS.values())]
    assert len(wanted) == 13 and [one.__name__ for one in classes] == ["NoTracker", "MlflowTracker", "CsvTracker"]
    for one in classes:
        assert {name for name in vars(one) if not name.startswith("_")} - {"patience", "where"} == wanted, one
        for name in wanted - {"open"}:
            assert inspect.signature(getattr(one, name)) == inspect.signature(getattr(Tracker, name)), (one, name)


def test_no_tracker_does_nothing(tmp_path):
    tracker = open_tracker(TrackingConfig(enabled=False), "x", tmp_path)
    run = tracker.begin("2", "y", **CONFIG, parent=tracker.begin("1", "x", **CONFIG))
    (tmp_path / "metrics.jsonl").write_text(lines(1))
    assert Mirror(tracker, run, tmp_path / "metrics.jsonl").sync(final=True) == 0 and tracker.reconcile() == 0
    tracker.table(run, [], "table.json")
    tracker.finish(run, "FINISHED")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"] and tracker.where == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cvs"}, r"tracking\.name=cvs: there is no such tracker.*'csv'"),
        (
            {"name": "csv", "uri": "http://x"},
            r"tracking\.uri says nothing to tracking\.name=csv; it is for tracking\.name=mlflow",
        ),
        ({"folder": "/x"}, r"tracking\.folder says nothing to tracking\.name=mlflow; it is for tracking\.name=csv"),
    ],
)
def test_an_unknown_tracker_and_keys_of_another_are_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        open_tracker(TrackingConfig(**settings), "x", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_importing_does_not_import_mlflow():
    modules = "lit_long.tracking, lit_long.tracking.csv, lit_long.tracking.mlflow, lit_long.tracking.record"
    code = f"import sys, {modules}; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# ------------------------------------------------------------------------------------------------------------ runs


def test_a_sweep_is_a_parent_and_its_stages_are_children(side, tracker):
    parent = tracker.begin("3f2a", "position tiny", params={"grid": {"position": ["rope", "abf"]}}, tags={"paper": "t5"})
    child = tracker.begin("c0ffee", "train abf", params={"model": {"n_layers": 4}}, tags={"kind": "train"}, parent=parent)
    tracker.finish(child, "FINISHED")
    tracker.finish(parent, "FAILED")

    assert side.params(parent) == {"grid.position": '["rope", "abf"]'} and side.tags(parent)["paper"] == "t5"
    assert side.params(child) == {"model.n_layers": "4"} and side.tags(child)["kind"] == "train"
    assert side.name(child) == "train abf" and side.count() == 2
    assert (side.status(child), side.status(parent)) == ("FINISHED", "FAILED")
    with pytest.raises(ValueError, match="KILLED"):
        tracker.finish(child, "DONE")


def test_a_file_system_without_locks_takes_a_record(side, monkeypatch):
    """As Lustre and old NFS may be; SQLite has locks of its own."""

    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    tracker = side.open()
    tracker.finish(tracker.begin("1", "sweep", **CONFIG), "FINISHED")


@pytest.mark.parametrize("status", ["RUNNING", "FINISHED", "FAILED", "KILLED"])
def test_the_same_sweep_and_stage_resume_their_runs(side, tracker, status):
    parent = tracker.begin("3f2a", "first", **CONFIG)
    child = tracker.begin("c0ffee", "train", **CONFIG, parent=parent)
    if status != "RUNNING":
        tracker.finish(child, status)
        tracker.finish(parent, status)
    again = side.open()

    assert again.begin("3f2a", "second", **CONFIG) == parent
    assert again.begin("c0ffee", "train", **CONFIG, parent=parent) == child
    assert {side.status(run) for run in (parent, child)} == {"RUNNING"}
    other = again.begin("77b1", "another", **CONFIG)
    assert other != parent
    assert again.begin("c0ffee", "train", **CONFIG, parent=other) != child


def test_a_run_that_somebody_deleted_is_a_tracking_error(side, tracker):
    """Or whose folder went away with its disk: a sweep owes the record, and goes on."""
    child = tracker.begin("c0ffee", "train", **CONFIG, parent=tracker.begin("1", "sweep", **CONFIG))
    side.forget(child)
    with pytest.raises(TrackingError, match=child) as error:
        tracker.finish(child, "FINISHED")
    assert not isinstance(error.value, TrackerAwayError)  # it takes the others


@pytest.mark.parametrize("key", ["quo'te", "back\\slash"])
def test_a_key_that_no_run_can_be_found_by_is_refused(side, tracker, key):
    with pytest.raises(ValueError, match="key"):
        tracker.begin(key, "sweep", **CONFIG)


def test_a_cached_child_is_light_and_points_to_the_history(side, tracker, file):
    elsewhere = side.open("another experiment")
    full = elsewhere.begin("c0ffee", "train", **CONFIG, parent=elsewhere.begin("1", "first", **CONFIG))
    parent = tracker.begin("2", "second", **CONFIG)
    file.write_text(lines(1, 2, 3))

    light = tracker.begin("c0ffee", "train", **CONFIG, parent=parent, cached=True)
    assert Mirror(tracker, light, file).sync(final=True) == 0
    for _ in range(2):  # a sweep that is started again says it again
        tracker.metrics(light, {("eval/ppl/python/512", 3): 5.5})
    assert side.cached(light) == (True, True) and side.holder(light) == full
    assert side.points(light) == [] and side.points(light, "eval/ppl/python/512") == [(3, 5.5)]
    assert tracker.begin("c0ffee", "train", **CONFIG, parent=parent, cached=True) == light


def test_a_cached_child_gets_the_history_when_no_run_holds_it(side, tracker, file):
    first, second = tracker.begin("1", "first", **CONFIG), tracker.begin("2", "second", **CONFIG)
    file.write_text(lines(1, 2))
    for _ in range(2):
        orphan = tracker.begin("beef", "train", **CONFIG, parent=first, cached=True)  # the record was lost, the folder was not
        Mirror(tracker, orphan, file).sync(final=True)
    light = tracker.begin("beef", "train", **CONFIG, parent=second, cached=True)

    assert side.points(orphan) == [(1, 1), (2, 2)]
    assert side.cached(orphan) == (True, False) and side.holder(light) == orphan
    side.forget(orphan)
    tracker.begin("beef", "train", **CONFIG, parent=second, cached=True)
    Mirror(tracker, light, file).sync(final=True)
    assert side.points(light) == [(1, 1), (2, 2)]


def test_a_child_with_a_history_keeps_it_when_its_stage_is_cached(side, tracker, file):
    parent = tracker.begin("1", "sweep", **CONFIG)
    child = tracker.begin("c0ffee", "train", **CONFIG, parent=parent)
    file.write_text(lines(1, 2))
    Mirror(tracker, child, file).sync()
    file.write_text(lines(1, 2, 3))  # the sweep was killed, its stage finished

    assert tracker.begin("c0ffee", "train", **CONFIG, parent=parent, cached=True) == child
    Mirror(tracker, child, file).sync(final=True)
    assert side.points(child) == [(1, 1), (2, 2), (3, 3)]
    assert side.cached(child) == (False, False)


def test_what_is_recorded_whole_need_not_be_said_again(side, tracker, file):
    final, tags = {("result/loss", 0): 2.5, ("eval/curve/docs", 10): 1.0, ("eval/curve/docs", 20): 0.5}, {"where": "here"}
    parent = tracker.begin("1", "sweep", **CONFIG)
    child = tracker.begin("c0ffee", "train", params={}, tags=tags, parent=parent)
    tracker.metrics(child, final)
    assert not side.open().recorded("c0ffee", parent, final, tags)  # it may still run, or was killed
    tracker.finish(child, "FINISHED")
    again, other = side.open(), side.open("another experiment")
    assert again.recorded("c0ffee", parent, final, tags)
    assert not again.recorded("beef", parent, final, tags)
    assert not again.recorded("c0ffee", parent, final | {("result/loss", 0): 2.25}, tags)  # measured anew
    assert not again.recorded("c0ffee", parent, final, {"where": "moved"})
    light = other.begin(
        "c0ffee", "train", params={}, tags=tags, parent=(second := other.begin("2", "other", **CONFIG)), cached=True
    )
    other.metrics(light, final)
    other.finish(light, "FINISHED")
    assert not side.open("another experiment").recorded("c0ffee", second, final, tags)  # who holds its history may be gone


def test_a_light_child_becomes_full_when_its_stage_runs_again(side, tracker, file):
    first, second = tracker.begin("1", "first", **CONFIG), tracker.begin("2", "second", **CONFIG)
    tracker.begin("c0ffee", "train", **CONFIG, parent=first)
    light = tracker.begin("c0ffee", "train", **CONFIG, parent=second, cached=True)
    file.write_text(lines(1))

    assert tracker.begin("c0ffee", "train", **CONFIG, parent=second) == light
    Mirror(tracker, light, file).sync(final=True)
    assert side.points(light) == [(1, 1)] and side.cached(light) == (False, False)


# --------------------------------------------------------------------------------------------------------- metrics


def test_a_mirror_sends_whole_lines_once_with_their_times(side, tracker, file):
    run = tracker.begin("1", "sweep", **CONFIG)
    mirror = Mirror(tracker, run, file)
    assert mirror.sync() == 0  # the stage has not started
    whole = lines(1, 2, 3, **{"perf/tokens_per_second": 1000})
    file.write_text(whole[:-10])
    assert mirror.sync() == 4
    file.write_text(whole)
    assert mirror.sync() == 2 and mirror.sync() == 0

    assert side.points(run) == [(1, 1), (2, 2), (3, 3)] and len(side.points(run, "perf/tokens_per_second")) == 3
    written = json.loads(whole.splitlines()[0])["time"]
    assert side.time(run, "train/loss") == pytest.approx(written, abs=1e-3)


def test_steps_written_again_after_a_resume_are_sent_once(side, tracker, file):
    run = tracker.begin("1", "sweep", **CONFIG)
    mirror = Mirror(tracker, run, file)
    file.write_text(lines(1, 2, 3, 4) + lines(4)[:20])  # killed in mid-line
    mirror.sync()
    with file.open("a") as stream:  # resumed from step 2, in append mode: the torn line and a new one are one line
        stream.write(lines(3, 4, value=0.5) + lines(5))
    mirror.sync()
    assert side.points(run) == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]

    file.write_text(lines(1, 2) + lines(3, 4, 5, 6, 7, 8, value=0.5))  # truncated, and longer again than before
    mirror.sync()
    other = Mirror(side.open(), run, file)  # a sweep started anew reads all of it
    with file.open("a") as stream:
        stream.write(lines(8, 9))
    assert other.sync(final=True) == 1
    assert side.points(run) == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6.5), (7, 7.5), (8, 8.5), (9, 9)]


def test_a_torn_line_loses_neither_neighbour(side, tracker, file):
    run = tracker.begin("1", "sweep", **CONFIG)
    file.write_text(lines(1) + lines(2)[:25] + lines(3) + "\0\0\0\n" + "[1]\n" + lines(4))
    Mirror(tracker, run, file).sync(final=True)
    assert side.points(run) == [(1, 1), (3, 3), (4, 4)]


def test_each_metric_has_steps_of_its_own(side, tracker, file):
    run = tracker.begin("1", "sweep", **CONFIG)
    file.write_text(lines(10) + json.dumps({"step": 5, "time": 1.0, "val/python/loss": 2.0}) + "\n")
    Mirror(tracker, run, file).sync(final=True)
    assert side.points(run, "val/python/loss") == [(5, 2.0)]


def test_long_histories_go_in_batches_and_nan_passes(side, tracker, file):
    run = tracker.begin("1", "sweep", **CONFIG)
    file.write_text(lines(*range(2500)) + lines(2500, value=math.nan) + lines(2501, value=math.inf))
    mirror = Mirror(tracker, run, file)
    assert mirror.sync() == 1000 and mirror.sync(final=True) == 1502  # one request while the stage runs
    history = side.points(run)
    assert history[:2500] == [(s, s) for s in range(2500)]
    assert math.isnan(history[2500][1]) and history[2501][1] > 1e308  # SQLite has no infinity: MLflow stores the largest float


def test_a_long_stage_goes_in_a_hundred_requests(tmp_path):
    """What a stage of four domains writes for each update is 25 numbers; of losses every one is sent."""
    side = SIDES["csv"](tmp_path)
    tracker, sent = side.open(), []
    run, log, file = tracker.begin("1", "sweep", **CONFIG), tracker.log, tmp_path / "metrics.jsonl"
    tracker.log = lambda run, points, patience=None: sent.append(len(points)) or log(run, points, patience)
    counts = [f"data/{domain}/{what}" for domain in ("a", "b", "c", "d") for what in ("tokens", "documents", "cut", "cropped")]
    speeds = [f"perf/{what}" for what in ("seconds", "mfu", "mfu_causal", "tokens", "memory", "wait")]
    file.write_text(lines(*range(1, 20_001), **dict.fromkeys(["train/lr", "train/grad_norm", *counts, *speeds], 0.5)))
    Mirror(tracker, run, file).sync(final=True)
    assert len(sent) <= 130 and max(sent) == MAX_POINTS
    assert [step for step, _ in side.points(run)] == list(range(1, 20_001))
    steps = [step for step, _ in side.points(run, "perf/mfu")]
    assert steps[:1000] == [*range(1, 1000), 1000] and steps[1000:1002] == [1002, 1004] and steps[-1] == 20_000
    assert Mirror(side.open(), run, file).sync(final=True) == 0  # nothing twice


def test_final_numbers_are_recorded_once_and_a_curve_whole(side, tracker):
    run = tracker.begin("1", "sweep", **CONFIG)
    curve = {("eval/loss_by_position/docs", step): 5.0 - step / 10 for step in (0, 10, 20)}
    for _ in range(2):  # the record is written again
        tracker.metrics(run, curve | {("eval/perplexity/docs/32", 0): 9.5})
    assert side.points(run, "eval/loss_by_position/docs") == [(0, 5.0), (10, 4.0), (20, 3.0)]
    assert side.points(run, "eval/perplexity/docs/32") == [(0, 9.5)]
    tracker.metrics(run, {("eval/perplexity/docs/32", 0): 9.25})  # measured anew
    assert side.points(run, "eval/perplexity/docs/32") == [(0, 9.5), (0, 9.25)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_final_number_that_is_none_is_recorded_once(side, tracker, value):
    """It does not equal what is recorded: NaN not even itself, and for MLflow infinity is the largest number."""
    final = {("result/loss", 7): value}
    parent = tracker.begin("1", "sweep", **CONFIG)
    child = tracker.begin("c0ffee", "train", **CONFIG, parent=parent)
    for _ in range(2):
        tracker.metrics(child, final)
    tracker.finish(child, "FINISHED")
    assert len(side.points(child, "result/loss")) == 1
    assert side.open().recorded("c0ffee", parent, final, {})
    assert not side.open().recorded("c0ffee", parent, {("result/loss", 7): 1.0}, {})


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
def test_a_mirror_refuses_what_a_tracker_would_change(side, tracker, file, record):
    file.write_text(json.dumps(record) + "\n")
    mirror = Mirror(tracker, tracker.begin("1", "sweep", **CONFIG), file)
    for _ in range(2):
        with pytest.raises(ValueError):
            mirror.sync()


@pytest.mark.parametrize("enough", [1, 3000])
def test_a_recorder_killed_at_any_moment_loses_and_repeats_nothing(side, tracker, file, enough):
    """``enough``: points after which it is killed, in the midst of more."""
    run, steps = tracker.begin("1", "sweep", **CONFIG), 6_000
    file.write_text(lines(*range(steps), **{"train/lr": 0.5}))
    code = f"""
from tests.tracking.sides import SIDES, Path
from lit_long.tracking import Mirror
mirror = Mirror(SIDES[{side.config.name!r}](Path({str(side.root)!r})).open(), {run!r}, Path({str(file)!r}))
sent = 0
while more := mirror.sync():
    print(sent := sent + more, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
        while int(process.stdout.readline()) < enough:
            pass
        process.kill()
    Mirror(side.open(), run, file).sync(final=True)
    assert side.points(run) == [(step, step) for step in range(steps)]
    assert side.points(run, "train/lr") == [(step, 0.5) for step in range(steps)]


# ------------------------------------------------------------------------------------------------------- artifacts


def test_artifacts_tables_and_datasets(side, tracker):
    run = tracker.begin("1", "sweep", **CONFIG)
    (side.root / "figures").mkdir()
    (side.root / "figures" / "a.txt").write_text("a")
    tracker.artifact(run, side.root / "figures" / "a.txt", "single")
    tracker.artifact(run, side.root / "figures", "folder")
    for rows in (
        [{"position": "rope", "ppl": 9.0}],
        [{"position": "rope", "ppl": 8.0}, {"position": "abf", "ppl": math.nan}],
    ):
        tracker.table(run, rows, "tables/table.json")
        tracker.text(run, f"rows: {len(rows)}\n", "config.yaml")
        tracker.dataset(run, "builtin", "d" * 64, "train")

    folder = side.artifacts(run)
    assert (folder / "config.yaml").read_text() == "rows: 2\n"
    assert (folder / "single" / "a.txt").read_text() == "a" == (folder / "folder" / "a.txt").read_text()
    first, second = side.table(run, "tables/table.json")
    assert first == {"position": "rope", "ppl": 8.0} and second["position"] == "abf"
    assert second["ppl"] is None or math.isnan(second["ppl"])
    assert side.datasets(run) == [("builtin", "d" * 36, "train")]
    with pytest.raises(TrackingError, match="missing"):
        tracker.artifact(run, side.root / "missing.txt")


def test_a_sweep_says_where_to_look(side, tracker):
    tracker.begin("3f2a", "sweep", **CONFIG)
    shown = tracker.show("3f2a", ["eval/perplexity/docs/256"])
    assert str(side.root) in shown and "\n" not in shown


# ------------------------------------------------------------------------------------------------------- reconcile


def test_runs_of_a_killed_process_become_killed(side, tracker):
    mine = tracker.begin("mine", "sweep", **CONFIG)
    code = f"""
import time
from tests.tracking.sides import SIDES, Path
tracker = SIDES[{side.config.name!r}](Path({str(side.root)!r})).open()
parent = tracker.begin("dead", "sweep", params={{}}, tags={{}})
child = tracker.begin("c0ffee", "train", params={{}}, tags={{}}, parent=parent)
done = tracker.begin("beef", "train", params={{}}, tags={{}}, parent=parent)
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
    assert [side.status(run) for run in (parent, child, done, mine)] == ["KILLED", "KILLED", "FINISHED", "RUNNING"]
    assert chatter == ""  # mlflow and alembic say nothing


def test_only_dead_owners_on_this_host_are_reconciled(side, tracker):
    runs = {name: tracker.begin(name, name, **CONFIG) for name in ("elsewhere", "recycled", "unknown", "mine")}
    side.own(runs["elsewhere"], host="another-host", pid="999999999")
    side.own(runs["recycled"], pid_started=str(time.time() - 10**7))  # our number, another process
    side.own(runs["unknown"], pid="")

    assert tracker.reconcile() == 1
    assert [name for name, run in runs.items() if side.status(run) == "KILLED"] == ["recycled"]
