"""What a tracker is: where sweeps, evaluations and instruct runs are recorded. MLflow is one, a plain folder of CSV files another.

A third one is a class with the methods of `Tracker` in a file beside this one, and a line in `TRACKERS`. What is recorded of a sweep or an
evaluation is said once for all of them (record.py), and how metrics get there while a stage runs, too (mirror.py).
"""

from __future__ import annotations

import math
import posixpath
import re
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lit_long.config import TrackingConfig, UserError, nearest, refuse_idle_keys

# Where each tracker lives, and the keys of tracking.… that mean something to it besides enabled and name.
TRACKERS = {
    "mlflow": ("lit_long.tracking.mlflow", "MlflowTracker", ("uri",)),
    "csv": ("lit_long.tracking.csv", "CsvTracker", ("folder",)),
}
STATUSES = ("FINISHED", "FAILED", "KILLED")  # KILLED: interrupted, and will be resumed
NOTE = "note"  # the tag that says in words what a run is for; a tracker shows it where people look
MEMBER = "lit_long.member_of"  # the tag of a sweep's parent and of its children: the sweep's key
SWEEP_YAML, SWEEP_JSON, RESULTS = "sweep.yaml", "sweep.json", "results.json"  # artifacts of a sweep that a report is made of


class TrackingError(UserError):
    """The tracker cannot be used, or did not take a record in time. The message says why and what to do."""


class TrackerAwayError(TrackingError):
    """The tracker was waited for in vain, and what is asked of it next would wait, too. Other errors come at once: it refused one record."""


class Point(NamedTuple):
    """One number of a run."""

    name: str  # such as val/python/loss
    step: int
    value: float
    time: float  # seconds since 1970, when it was measured


class Tracker(Protocol):
    """The runs of one experiment. Everything may be said twice: runs are found by their keys and resumed, files replace themselves.

    Every method may raise `TrackingError`; `TrackerAwayError` after waiting for a store in vain. Methods that take ``run`` want an id that `begin` returned.
    """

    where: str  # URI or folder, for people and for who wants to find the runs again

    @classmethod
    def open(cls, config: TrackingConfig, experiment: str, root: Path) -> Tracker:
        """The experiment of that name, made if need be; what lies in files is below ``root`` unless ``config`` says otherwise."""

    def begin(self, key: str, name: str, *, params: dict, tags: dict, parent: str = "", cached: bool = False) -> str:
        """Id of the run ``key``, running and owned by this process; it is made at the first call and resumed afterwards.

        Args:
            key: of a sweep, an evaluation …; with ``parent``, the identity of a stage. Letters, digits and ``_ . -``.
            params: settings, nested. tags: what else a result may depend on; `NOTE` and `MEMBER` have a meaning of their own.
            parent: id of the run that this one is a child of.
            cached: the child's stage was computed before. Where another run holds its history, a new child points there and gets no
                history of its own; where none does (the record was lost), it gets it. A child with a history keeps it.
        """

    def recorded(self, key: str, parent: str, values: dict[tuple[str, int], float], tags: dict[str, str]) -> bool:
        """Whether the child ``key`` of ``parent`` is FINISHED, with a history of its own, these final numbers and these tags: then nothing need be said
        of a stage that was done before. May answer from what was there when it was first asked."""

    def steps(self, run: str) -> dict[str, int] | None:
        """The last recorded step of each metric; None where the run points to another one that holds its history."""

    def log(self, run: str, points: Sequence[Point], patience: float | None = None) -> None:
        """Record points, at most `MAX_POINTS`: all of them or none. Wait for a busy store for ``patience`` seconds."""

    def metrics(self, run: str, values: dict[tuple[str, int], float]) -> None:
        """Record final numbers by (name, step); those that are recorded already are left out (`unrecorded`)."""

    def artifact(self, run: str, path: Path, folder: str = "") -> None:
        """Copy a file, or what is in a folder, into ``folder`` of the run's artifacts."""

    def text(self, run: str, text: str, file: str) -> None:
        """Record ``text`` as artifact ``file`` such as ``config.yaml``."""

    def table(self, run: str, rows: list[dict[str, Any]], file: str) -> None:
        """Record rows as the table ``file`` (``.json``; a tracker may keep it in a form of its own)."""

    def dataset(self, run: str, name: str, digest: str, context: str) -> None:
        """Record that the run read data ``name`` with ``digest`` for ``context`` (``train``, ``validation``, …)."""

    def show(self, key: str, names: Iterable[str]) -> str:
        """Where to look at sweep ``key``, as a line for people; ``names`` are the metrics that its page may show."""

    def finish(self, run: str, status: str) -> None:
        """End the run, now, with one of `STATUSES`. `ValueError`: another one."""

    def reconcile(self) -> int:
        """Mark as KILLED the running runs whose process on this host is gone (``kill -9``). Returns how many."""


MAX_POINTS = 1000  # of one `log`


class NoTracker:
    """Records nothing (``tracking.enabled=false``)."""

    where = ""

    @classmethod
    def open(cls, config: TrackingConfig, experiment: str, root: Path) -> NoTracker:
        return cls()

    def begin(self, key: str, name: str, *, params: dict, tags: dict, parent: str = "", cached: bool = False) -> str:
        return ""

    def recorded(self, key: str, parent: str, values: dict[tuple[str, int], float], tags: dict[str, str]) -> bool:
        return True

    def steps(self, run: str) -> dict[str, int] | None:
        return None

    def log(self, run: str, points: Sequence[Point], patience: float | None = None) -> None: ...

    def metrics(self, run: str, values: dict[tuple[str, int], float]) -> None: ...

    def artifact(self, run: str, path: Path, folder: str = "") -> None: ...

    def text(self, run: str, text: str, file: str) -> None: ...

    def table(self, run: str, rows: list[dict[str, Any]], file: str) -> None: ...

    def dataset(self, run: str, name: str, digest: str, context: str) -> None: ...

    def show(self, key: str, names: Iterable[str]) -> str:
        return ""

    def finish(self, run: str, status: str) -> None: ...

    def reconcile(self) -> int:
        return 0


def open_tracker(config: TrackingConfig, experiment: str, root: Path) -> Tracker:
    """The experiment in the tracker that ``tracking.name`` chooses.

    Raises:
        UserError: an unknown name, or a key of another tracker.
        TrackingError: the tracker cannot be used.
    """
    if config.name not in TRACKERS:
        raise UserError(f"tracking.name={config.name}: there is no such tracker{nearest(config.name, TRACKERS)}")
    if not config.enabled:
        return NoTracker()
    module, name, _ = TRACKERS[config.name]
    refuse_idle_keys(config, "tracking.name", {name: own for name, (_, _, own) in TRACKERS.items()}, ("enabled", "name"))
    return getattr(import_module(module), name).open(config, experiment, root)


def metric_name(name: str) -> str:
    """``name``, or `ValueError` when a tracker would refuse it or change it."""
    if not re.fullmatch(r"[A-Za-z0-9_/. -]{1,250}", name) or posixpath.normpath(name) != name or name[0] in "/.":
        raise ValueError(f"no name for a metric: {name!r}. Use letters, digits and _ / . - as in val/python/loss")
    return name


def unrecorded(values: dict[tuple[str, int], float], latest: dict[str, tuple[int, float]], now: float) -> list[Point]:
    """Of final numbers those that are not yet recorded: above the latest step of their name, or another value at that step."""
    return [
        Point(metric_name(name), step, float(value), now)
        for (name, step), value in values.items()
        if name not in latest or step > latest[name][0] or (step == latest[name][0] and not is_same(value, latest[name][1]))
    ]


def is_same(value: float, recorded: float) -> bool:
    """Whether it was recorded as that: NaN, too, and an infinity, for which MLflow takes the largest number."""
    largest = math.copysign(sys.float_info.max, value)
    return recorded == value or (math.isnan(value) and math.isnan(recorded)) or (math.isinf(value) and recorded == largest)


def check_status(status: str) -> None:
    if status not in STATUSES:
        raise ValueError(f"a run ends as FINISHED, FAILED or KILLED, not as {status!r}")
