"""What the terminal shows while a sweep runs: one bar for the sweep, one for each stage that runs, with times to go.

Where standard output is not a terminal (a log file, CI) the same facts come as lines, one every ten seconds at most.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from lit_long.planning.flops import stage_flops
from lit_long.stages.plan import Stage

LINE_SECONDS = 10.0


def duration(seconds: float | None) -> str:
    """``4:05`` or ``1:02:03``; ``-:--`` when nobody knows yet."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class Shown:
    """A stage on the screen. Its speed counts from the first share heard of: after the start, or the resume."""

    label: str
    bar: TaskID
    last_line: float
    share: float = 0.0
    first: tuple[float, float] | None = None  # when, and at which share, it was first heard of
    now: float = 0.0
    message: str = ""

    def hear(self, message: str, share: float) -> None:
        """``share`` of it is done by now."""
        self.now, self.message, self.share = time.monotonic(), message, share
        if self.first is None and share > 0:
            self.first = (self.now, share)

    @property
    def seconds(self) -> float:
        """That ``gained`` took."""
        return self.now - self.first[0] if self.first else 0.0

    @property
    def gained(self) -> float:
        return self.share - self.first[1] if self.first else 0.0

    def to_go(self) -> float | None:
        return self.seconds / self.gained * (1 - self.share) if self.gained > 0.01 else None


class Estimate:
    """Time to go of the whole sweep: every stage's expected cost, calibrated by the time that finished cost has taken."""

    def __init__(self, stages: list[Stage]) -> None:
        self.costs = {stage.identity: stage_flops(stage.config) for stage in stages}
        self.done_cost, self.done_seconds = 0.0, 0.0

    def finished(self, identity: str, seconds: float | None) -> None:
        """A stage is over; ``seconds`` is None when it had been done before and took no time."""
        cost = self.costs.pop(identity, 0.0)
        if seconds is not None and cost:
            self.done_cost, self.done_seconds = self.done_cost + cost, self.done_seconds + seconds

    def to_go(self, shown: dict[str, Shown]) -> float | None:
        """Seconds left in the sweep, while the stages ``shown`` run side by side and as many will. None before there is a measure."""
        cost, seconds, left = self.done_cost, self.done_seconds, sum(self.costs.values())
        for identity, stage in shown.items():
            own = self.costs.get(identity, 0.0)
            cost, seconds, left = cost + own * stage.gained, seconds + stage.seconds, left - own * stage.share
        if cost <= 0:
            return None
        slowest = max((stage.to_go() or 0.0 for stage in shown.values()), default=0.0)
        return max(seconds / cost * left / max(1, len(shown)), slowest)  # a slow stage is seen in its own pace first


class Display:
    """A context manager; ``begin`` and ``end`` frame each stage, ``update`` says how far it is."""

    def __init__(self, console: Console, stages: list[Stage]) -> None:
        self.console, self.estimate, self.stages = console, Estimate(stages), len(stages)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
        )
        self.bars = Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[note]}"), console=console, transient=True)
        self.finished = 0
        self.shown: dict[str, Shown] = {}
        self.last_line = time.monotonic()

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.bars.start()
        self.sweep_bar = self.bars.add_task("sweep", total=self.stages, note="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bars.stop()

    def begin(self, identity: str, label: str) -> None:
        """The stage runs, or waits for something. Again: nothing."""
        if identity in self.shown:
            return
        bar = self.bars.add_task(label, total=1.0, note="starting")
        self.last_line = max(self.last_line, time.monotonic() - LINE_SECONDS / 2)
        self.shown[identity] = Shown(label, bar, self.last_line)

    def update(self, identity: str, message: str, share: float) -> None:
        """``share`` of the stage is done."""
        stage = self.shown[identity]
        stage.hear(message, share)
        sweep_to_go = self.estimate.to_go(self.shown)
        self.bars.update(stage.bar, completed=share, note=f"{message or 'starting'} · {duration(stage.to_go())} to go")
        self.bars.update(
            self.sweep_bar,
            completed=self.finished + sum(one.share for one in self.shown.values()),
            note=f"{self.finished} of {self.stages} done · {duration(sweep_to_go)} to go",
        )
        now, speakers = time.monotonic(), [one for one in self.shown.values() if one.message]
        turn = min(speakers, key=lambda one: one.last_line, default=None)  # one line each in turn
        if not self.console.is_terminal and turn is stage and now - self.last_line >= LINE_SECONDS:
            self.last_line = stage.last_line = now
            times = f"stage {duration(stage.to_go())} to go · sweep {duration(sweep_to_go)} to go"
            self.line(f"[{self.finished + 1}/{self.stages}] {stage.label}: {share:4.0%} · {message} · {times}")

    def end(self, identity: str, line: str, seconds: float | None = None) -> None:
        """The stage is over: ``line`` stays on the screen."""
        self.finished += 1
        self.estimate.finished(identity, seconds)
        if stage := self.shown.pop(identity, None):
            self.bars.remove_task(stage.bar)
        self.bars.update(self.sweep_bar, completed=self.finished + sum(one.share for one in self.shown.values()))
        self.line(f"[{self.finished}/{self.stages}] {line}")

    def line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
