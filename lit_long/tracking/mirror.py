"""A stage's ``metrics.jsonl`` as its run's metrics, while the stage runs; the same for every tracker."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from lit_long.tracking.tracker import MAX_POINTS, Point, Tracker, TrackingError, metric_name

COUNTS = ("data/", "perf/")


class Mirror:
    """Sends a ``metrics.jsonl`` to its run: whole lines only, of each metric only steps above the last one sent, and of those what `is_sent` says.

    A stage that was killed writes the steps since its last checkpoint again, and may have truncated the file before.
    """

    def __init__(self, tracker: Tracker, run: str, path: Path) -> None:
        self._tracker, self._run, self._path = tracker, run, Path(path)
        self._steps = tracker.steps(run)  # None: another run holds the history, and nothing is sent
        self._offset, self._last_line = 0, b""  # bytes read; the last line read, to notice that the file was rewritten
        self._waiting: list[Point] = []

    def sync(self, final: bool = False) -> int:
        """Send what is new, up to 1,000 points in one request, or with ``final`` all of it; returns the number of points sent.

        What a busy store does not take within a second waits for the next call; with ``final`` it is a `TrackingError`
        after the tracker's patience. `ValueError`: a record is not what a stage should write.
        """
        if self._steps is None or not self._path.exists():
            return 0
        self._read(self._steps)
        sent = 0
        while batch := self._waiting[:MAX_POINTS]:
            try:
                self._tracker.log(self._run, batch, None if final else 1.0)
            except TrackingError:
                if final:
                    raise
                break
            del self._waiting[: len(batch)]
            sent += len(batch)
            if not final:
                break
        return sent

    def _read(self, steps: dict[str, int]) -> None:
        with self._path.open("rb") as file:
            file.seek(self._offset - len(self._last_line))
            if file.read(len(self._last_line)) != self._last_line:
                self._offset, self._last_line = 0, b""
            file.seek(self._offset)
            data = file.read()
        lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
        steps, points = dict(steps), []
        for line in lines:
            record = _record(line)
            if not {"step", "time"} <= record.keys() and record:
                raise ValueError(f"{self._path}: a line without step or time: {line[:200]!r}")
            step, seconds = record.pop("step", 0), record.pop("time", 0)
            for name, value in record.items():
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError(f"{self._path}: {name} at step {step} is no number: {value!r}")
                if step > steps.get(metric_name(name), -1) and is_sent(name, step):
                    points.append(Point(name, step, float(value), seconds))
                    steps[name] = step
        self._steps, self._offset = steps, self._offset + sum(map(len, lines))  # only now: a bad line is met again
        self._last_line = lines[-1] if lines else self._last_line
        self._waiting += points


def is_sent(name: str, step: int) -> bool:
    """Whether the tracker gets a point. Of what counts data and measures speed, most of what a stage writes, it gets every step to 1,000, every second to
    2,000, every fourth to 4,000 and so on: of 20,000 updates 3,125."""
    return not name.startswith(COUNTS) or step % (1 << (step // 1000).bit_length()) == 0


def _record(line: bytes) -> dict[str, Any]:
    """A line's content; empty when torn. A process killed in mid-line leaves half a record before the next one's."""
    for start in (0, line.rfind(b"{")):
        with contextlib.suppress(ValueError):
            if isinstance(record := json.loads(line[start:]), dict):
                return record
    return {}
