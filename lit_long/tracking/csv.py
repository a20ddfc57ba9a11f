"""A plain folder as the tracker, for those without MLflow.

    FOLDER/EXPERIMENT/runs.csv            a line a run: name, parent, status, times, where its history lies
    FOLDER/EXPERIMENT/RUN/params.json     settings; tags.json: versions, commit, variant …
                          metrics.csv     a line a point: name, step, value, time
                          datasets.csv    a line a set of data that it read
                          artifacts/      tables (CSV), texts, figures

Columns keep their order, so pandas and spreadsheets read all of it. A run's id is its key, a child's PARENT.KEY.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_long.config import TrackingConfig
from lit_long.files import replacing, waiting_lock, write_atomically
from lit_long.tracking.describe import HOST, PID, PID_STARTED, host, is_alive, owner
from lit_long.tracking.tracker import Point, TrackingError, check_status, unrecorded

OWNER = {"host": HOST, "pid": PID, "pid_started": PID_STARTED}  # of runs.csv, by the tags' names
RUN = ["run", "name", "parent", "key", "status", "started", "ended", "cached", "source_run", *OWNER]  # columns of runs.csv
METRIC, DATASET = ["name", "step", "value", "time"], ["name", "digest", "context"]
Row = dict[str, str]


class CsvTracker:
    """One experiment's runs. What the disk does not take is a `TrackingError`."""

    def __init__(self, folder: Path, experiment: str) -> None:
        self.where, self._root, self._folder = str(folder), folder, folder / experiment
        self._ended: dict[str, Row] | None = None  # lines of runs.csv, as they were when first asked for

    @classmethod
    def open(cls, config: TrackingConfig, experiment: str, root: Path) -> CsvTracker:
        """The experiment below ``tracking.folder`` (default: ``tracking/`` below ``root``)."""
        tracker = cls(Path(config.folder).expanduser().resolve() if config.folder else Path(root) / "tracking", experiment)
        with tracker._runs():
            return tracker

    def begin(self, key: str, name: str, *, params: dict, tags: dict, parent: str = "", cached: bool = False) -> str:
        run = f"{parent}.{key}" if parent else key
        if not re.fullmatch(r"[\w-][\w.-]*", run):
            raise ValueError(f"a run's key must be letters, digits and _ . -, not {run!r}")
        with self._runs() as runs:
            old = runs.get(run, {})
            light = bool(parent) and cached and old.get("cached", "true") == "true"
            elsewhere = self._holder(key) if light and (not old or old["source_run"]) else ""
            new = {"run": run, "parent": parent, "key": key, "started": now()} | old
            new |= {"name": name, "status": "RUNNING", "ended": "", "cached": str(light).lower(), "source_run": elsewhere}
            folder = self._folder / run
            for file, content in (("params.json", params), ("tags.json", tags)):
                write_atomically(folder / file, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")
            mine = owner()
            runs[run] = new | {column: mine[tag] for column, tag in OWNER.items()}
        return run

    def recorded(self, key: str, parent: str, values: dict[tuple[str, int], float], tags: dict[str, str]) -> bool:
        if self._ended is None:
            with self._runs() as runs:
                self._ended = dict(runs)
        row = self._ended.get(run := f"{parent}.{key}", {})
        if row.get("status") != "FINISHED" or row["source_run"]:
            return False
        with self._taking("tags.json"):
            known = json.loads((self._folder / run / "tags.json").read_text(encoding="utf-8"))
        return tags.items() <= known.items() and not unrecorded(values, self._latest(run), 0.0)

    def steps(self, run: str) -> dict[str, int] | None:
        with self._runs() as runs:
            if runs.get(run, {}).get("source_run"):
                return None
        return {name: step for name, (step, _) in self._latest(run).items()}

    def log(self, run: str, points: Sequence[Point], patience: float | None = None) -> None:
        with self._taking("metrics.csv"):
            append(self._folder / run / "metrics.csv", METRIC, [(p.name, p.step, repr(p.value), repr(p.time)) for p in points])

    def metrics(self, run: str, values: dict[tuple[str, int], float]) -> None:
        if new := unrecorded(values, self._latest(run), time.time()):
            self.log(run, new)

    def artifact(self, run: str, path: Path, folder: str = "") -> None:
        into = self._folder / run / "artifacts" / folder
        with self._taking(str(path)):
            if Path(path).is_dir():
                shutil.copytree(path, into, dirs_exist_ok=True)
                return
            with replacing(into / Path(path).name) as writing:
                shutil.copyfile(path, writing)

    def text(self, run: str, text: str, file: str) -> None:
        with self._taking(file):
            write_atomically(self._folder / run / "artifacts" / file, text)

    def table(self, run: str, rows: list[dict[str, Any]], file: str) -> None:
        """As CSV, whatever the ending of ``file``; cells that are lists or groups are JSON."""
        columns = list(dict.fromkeys(name for row in rows for name in row))
        cells = [[cell(row.get(name)) for name in columns] for row in rows]
        self.text(run, content(columns, cells), str(Path(file).with_suffix(".csv")))

    def dataset(self, run: str, name: str, digest: str, context: str) -> None:
        file, row = self._folder / run / "datasets.csv", [name, digest, context]
        with self._taking("datasets.csv"):
            if dict(zip(DATASET, row)) not in read(file):
                append(file, DATASET, [row])

    def show(self, key: str, names: Iterable[str]) -> str:
        return str(self._folder / "runs.csv")

    def finish(self, run: str, status: str) -> None:
        check_status(status)
        with self._runs() as runs:
            if run not in runs:
                raise TrackingError(f"{self._folder / 'runs.csv'} has no run {run} any more: its folder is gone.")
            runs[run] |= {"status": status, "ended": now()}

    def reconcile(self) -> int:
        killed = 0
        with self._runs() as runs:
            for row in runs.values():
                if row["status"] == "RUNNING" and row["host"] == host() and not is_alive({OWNER[c]: row[c] for c in OWNER}):
                    row |= {"status": "KILLED", "ended": now()}
                    killed += 1
        return killed

    def _latest(self, run: str) -> dict[str, tuple[int, float]]:
        """Of each metric the highest step, and what was recorded last at it."""
        latest: dict[str, tuple[int, float]] = {}
        with self._taking("metrics.csv"):
            for row in read(self._folder / run / "metrics.csv"):
                step = int(row["step"])
                if step >= latest.get(row["name"], (step, 0.0))[0]:
                    latest[row["name"]] = step, float(row["value"])
        return latest

    def _holder(self, identity: str) -> str:
        """EXPERIMENT/RUN that holds the history of a stage, the oldest one; "" if none does."""
        found = [
            (row["started"], f"{file.parent.name}/{row['run']}")
            for file in self._root.glob("*/runs.csv")
            for row in read(file)
            if row["key"] == identity and row["parent"] and not row["source_run"] and (file.parent / row["run"]).is_dir()
        ]
        return min(found, default=("", ""))[1]

    @contextlib.contextmanager
    def _runs(self) -> Iterator[dict[str, Row]]:
        """The lines of runs.csv by their ids, of runs that are there; what the block changes is written. Processes do so one by one."""
        file = self._folder / "runs.csv"
        with self._taking("runs.csv"), waiting_lock(self._folder / ".lock"):
            runs = {row["run"]: row for row in read(file) if (self._folder / row["run"]).is_dir()}
            before = {run: dict(row) for run, row in runs.items()}
            yield runs
            if runs != before or not file.exists():
                write_atomically(file, content(RUN, [[row[column] for column in RUN] for row in runs.values()]))

    @contextlib.contextmanager
    def _taking(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, shutil.Error) as error:
            reason = getattr(error, "strerror", "") or error
            raise TrackingError(
                f"{self._folder} did not take a record ({what}): {reason}\n"
                "Is there space, and may you write there? Else set tracking.folder=FOLDER."
            ) from error


def now() -> str:
    """UTC, in microseconds: text that sorts by time."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds := time.time())) + f".{int(seconds % 1 * 1e6):06d}Z"


def cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list | tuple) else value


def content(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def read(file: Path) -> list[Row]:
    """Its lines by the names of columns; none of a file that is not there. A last line that a killed process left half-written is none."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))


def append(file: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Add lines, all of them or none; a half-written line of a killed process goes. No cell may hold a line break."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as stream:
        stream.seek(0)
        size = os.fstat(stream.fileno()).st_size
        if size:
            stream.seek(max(0, size - 65536))
            end = stream.read().rfind(b"\n") + 1
            size = max(0, size - 65536) + end
            stream.truncate(size)
        lines = content(columns, rows)
        if size:
            lines = lines.partition("\n")[2]
        try:
            stream.write(lines.encode())
            stream.flush()
        except OSError:
            os.ftruncate(stream.fileno(), size)
            raise
