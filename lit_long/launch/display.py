"""What the terminal shows while a sweep runs: one bar for the sweep, one for the stage, with times to go.

Where standard output is not a terminal (a log file, CI) the same facts come as lines, one every ten seconds at most.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

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

    def to_go(self, identity: str, seconds: float, gained: float, left: float) -> float | None:
        """Seconds left in the sweep, when stage ``identity`` took ``seconds`` for a share ``gained`` and has ``left`` to do.

        None before there is a measure.
        """
        current = self.costs.get(identity, 0.0)
        cost = self.done_cost + current * gained
        if cost <= 0:
            return None
        rate = (self.done_seconds + seconds) / cost
        return rate * (sum(self.costs.values()) - current * (1 - left))


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
        self.finished, self.identity, self.label = 0, "", ""
        self.last_line = time.monotonic()
        self.first: tuple[float, float] | None = None  # when, and at which share, the stage was first heard of

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.bars.start()
        self.sweep_bar = self.bars.add_task("sweep", total=self.stages, note="")
        self.stage_bar = self.bars.add_task("", total=1.0, note="", visible=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bars.stop()

    def begin(self, identity: str, label: str) -> None:
        self.identity, self.label, self.first = identity, label, None
        self.last_line = time.monotonic() - LINE_SECONDS / 2
        self.bars.reset(self.stage_bar, description=label, total=1.0, note="starting", visible=True)

    def update(self, message: str, share: float) -> None:
        """``share`` of the stage is done. Speed counts from the first share heard of: after the start, or the resume."""
        now = time.monotonic()
        if self.first is None and share > 0:
            self.first = (now, share)
        since, from_share = self.first or (now, share)
        gained = share - from_share
        stage_to_go = (now - since) / gained * (1 - share) if gained > 0.01 else None
        sweep_to_go = self.estimate.to_go(self.identity, now - since, gained, 1 - share) if self.identity else None
        if stage_to_go is not None and sweep_to_go is not None:
            sweep_to_go = max(sweep_to_go, stage_to_go)  # a stage slower than those before it is seen in its own pace first
        times = f"stage {duration(stage_to_go)} to go · sweep {duration(sweep_to_go)} to go"
        self.bars.update(self.stage_bar, completed=share, note=f"{message or 'starting'} · {duration(stage_to_go)} to go")
        self.bars.update(
            self.sweep_bar,
            completed=self.finished + share,
            note=f"stage {self.finished + 1} of {self.stages} · {duration(sweep_to_go)} to go",
        )
        if not self.console.is_terminal and message and time.monotonic() - self.last_line >= LINE_SECONDS:
            self.last_line = time.monotonic()
            self.line(f"[{self.finished + 1}/{self.stages}] {self.label}: {share:4.0%} · {message} · {times}")

    def end(self, line: str, seconds: float | None = None) -> None:
        """The stage is over: ``line`` stays on the screen."""
        self.finished += 1
        self.estimate.finished(self.identity, seconds)
        self.bars.update(self.stage_bar, visible=False)
        self.bars.update(self.sweep_bar, completed=self.finished)
        self.line(f"[{self.finished}/{self.stages}] {line}")

    def line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
