"""The plain folder by itself: what is in its files, and what happens to them. What it shares with MLflow: test_tracker.py."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from lit_long.config import TrackingConfig
from lit_long.tracking import Mirror, Point, TrackingError, open_tracker

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"params": {}, "tags": {}}


def tracker_below(root: Path, experiment: str = "tiny", **settings: str):
    return open_tracker(TrackingConfig(name="csv", **settings), experiment, root)


def test_the_files_of_a_run(tmp_path):
    tracker = tracker_below(tmp_path)
    parent = tracker.begin("3f2a", "tiny | 2 variants, 1 seed", params={"trials": 2}, tags={"host": "here"})
    run = tracker.begin("c0ffee", "abf", params={"model": {"n_layers": 4}}, tags={}, parent=parent)
    tracker.log(run, [Point("train/loss", 1, 0.1, 1.5), Point("train/loss", 2, 1 / 3, 2.5)])
    tracker.table(run, [{"task": "passkey", "value": 0.5}, {"task": "text, long", "depth": [0, 1]}], "scores.json")
    tracker.finish(run, "FINISHED")

    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "tracking/tiny/.lock",
        "tracking/tiny/3f2a.c0ffee/artifacts/scores.csv",
        "tracking/tiny/3f2a.c0ffee/metrics.csv",
        "tracking/tiny/3f2a.c0ffee/params.json",
        "tracking/tiny/3f2a.c0ffee/tags.json",
        "tracking/tiny/3f2a/params.json",
        "tracking/tiny/3f2a/tags.json",
        "tracking/tiny/runs.csv",
    ]
    folder = tmp_path / "tracking" / "tiny"
    runs = pandas.read_csv(folder / "runs.csv", keep_default_na=False).to_dict("records")
    assert [(row["run"], row["parent"], row["name"], row["status"]) for row in runs] == [
        ("3f2a", "", "tiny | 2 variants, 1 seed", "RUNNING"),
        ("3f2a.c0ffee", "3f2a", "abf", "FINISHED"),
    ]
    assert pandas.to_datetime(runs[1]["ended"]) > pandas.to_datetime(runs[1]["started"])
    assert (folder / run / "metrics.csv").read_text() == (
        f"name,step,value,time\ntrain/loss,1,0.1,1.5\ntrain/loss,2,{1 / 3!r},2.5\n"
    )
    assert json.loads((folder / run / "params.json").read_text()) == {"model": {"n_layers": 4}}
    with (folder / run / "artifacts" / "scores.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["task", "value", "depth"], ["passkey", "0.5", ""], ["text, long", "", "[0, 1]"]]


def test_the_folder_can_be_chosen(tmp_path):
    tracker = tracker_below(tmp_path / "root", folder=str(tmp_path / "shared"))
    assert tracker.show(tracker.begin("1", "sweep", **CONFIG), []) == str(tmp_path / "shared" / "tiny" / "runs.csv")
    assert tracker.where == str(tmp_path / "shared") and not (tmp_path / "root").exists()


@pytest.mark.parametrize("kept", range(0, 60, 7))
def test_a_half_written_line_is_written_again(tmp_path, kept):
    """Whatever part of the file a machine that went down has kept."""
    tracker, file = tracker_below(tmp_path), tmp_path / "metrics.jsonl"
    run = tracker.begin("1", "sweep", **CONFIG)
    file.write_text("".join(json.dumps({"step": step, "time": step, "train/loss": step / 7}) + "\n" for step in range(4)))
    Mirror(tracker, run, file).sync(final=True)
    metrics = tmp_path / "tracking" / "tiny" / run / "metrics.csv"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole[:kept])
    Mirror(tracker, run, file).sync(final=True)
    assert metrics.read_bytes() == whole


LIMIT = """
import resource, signal, sys
from pathlib import Path
from lit_long.tracking import Mirror
from tests.tracking.test_csv import tracker_below
root = Path(sys.argv[1])
mirror = Mirror(tracker_below(root), "1", root / "metrics.jsonl")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
sent = [mirror.sync() for _ in range(4)]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(sent, mirror.sync(final=True))
"""


def test_a_disk_that_takes_no_more_delays_points_and_loses_none(tmp_path):
    tracker_below(tmp_path).begin("1", "sweep", **CONFIG)
    steps = [{"step": step, "time": 1.5, "train/loss": step} for step in range(3000)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    done = subprocess.run([sys.executable, "-c", LIMIT, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[1000, 0, 0, 0] 2000", done.stdout + done.stderr
    frame = pandas.read_csv(tmp_path / "tracking" / "tiny" / "1" / "metrics.csv")
    assert frame.step.tolist() == list(range(3000))


MANY = """
import sys
from pathlib import Path
from tests.tracking.test_csv import CONFIG, tracker_below
tracker = tracker_below(Path(sys.argv[1]))
for number in range(40):
    tracker.finish(tracker.begin(f"{sys.argv[2]}-{number}", "sweep", **CONFIG), "FINISHED")
"""


def test_sweeps_at_once_keep_each_other_s_runs(tmp_path):
    start = [sys.executable, "-c", MANY, str(tmp_path)]
    sweeps = [subprocess.Popen([*start, name], cwd=ROOT) for name in "abc"]
    assert [sweep.wait(600) for sweep in sweeps] == [0, 0, 0]
    frame = pandas.read_csv(tmp_path / "tracking" / "tiny" / "runs.csv")
    assert sorted(frame.run) == sorted(f"{name}-{number}" for name in "abc" for number in range(40))
    assert set(frame.status) == {"FINISHED"}


@pytest.mark.parametrize("where", ["a file", "/proc/lit-long", "/sys/lit-long"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, where):
    (tmp_path / "a file").write_text("")
    with pytest.raises(TrackingError, match=r"may you write there(.|\n)*tracking\.folder"):
        tracker_below(tmp_path, folder=str(tmp_path / where))
