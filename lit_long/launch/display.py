"""What the terminal shows while a sweep runs: the table of its trials (dashboard.py), one bar for the sweep, one for each stage that runs.

Where standard output is not a terminal (a log file, CI) the same facts come as lines, one every ten seconds at most.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from lit_long.launch.dashboard import Dashboard
from lit_long.launch.eta import RunningStage, SweepEta, duration
from lit_long.stages.plan import Plan

LINE_SECONDS, TABLE_SECONDS = 10.0, 1.0


class Display:
    """A context manager; ``begin`` and ``end`` frame each stage, ``update`` says how far it is."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self.console, self.eta, self.stages = console, SweepEta(plan.chosen), len(plan.chosen)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
        )
        self.bars = Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[note]}"), console=console)
        self.dashboard, self.table, self.drawn = Dashboard(plan, self.eta), None, 0.0
        self.live = Live(get_renderable=self.screen, console=console, refresh_per_second=4, transient=True)
        self.finished = 0
        self.shown: dict[str, RunningStage] = {}
        self.last_line = time.monotonic()

    def __enter__(self) -> Display:
        self.sweep_bar = self.bars.add_task("sweep", total=self.stages, note="")
        self.draw()
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.live.stop()

    def screen(self) -> RenderableType:
        """The table over the bars; called by the thread that keeps the terminal fresh."""
        return Group(self.table, self.bars) if self.table else self.bars

    def draw(self) -> None:
        """Make the table again, from what is known by now."""
        if self.console.is_terminal:
            self.drawn = time.monotonic()
            self.table = self.dashboard.table(self.shown, self.console.width, self.console.height - len(self.shown) - 1)

    def begin(self, identity: str, label: str) -> None:
        """The stage runs, or waits for something. Again: nothing."""
        if identity in self.shown:
            return
        bar = self.bars.add_task(label, total=1.0, note="starting")
        self.last_line = max(self.last_line, time.monotonic() - LINE_SECONDS / 2)
        self.shown[identity] = RunningStage(label, bar, self.last_line)

    def update(self, identity: str, message: str, share: float) -> None:
        """``share`` of the stage is done."""
        stage = self.shown[identity]
        stage.update(message, share)
        sweep_eta = self.eta.of_sweep(self.shown)
        self.bars.update(stage.bar, completed=share, note=f"{message or 'starting'} · {duration(stage.eta())} to go")
        self.bars.update(
            self.sweep_bar,
            completed=self.finished + sum(one.share for one in self.shown.values()),
            note=f"{self.finished} of {self.stages} done · {duration(sweep_eta)} to go",
        )
        if time.monotonic() - self.drawn >= TABLE_SECONDS:
            self.draw()
        now, speakers = time.monotonic(), [one for one in self.shown.values() if one.message]
        turn = min(speakers, key=lambda one: one.last_line, default=None)  # one line each in turn
        if not self.console.is_terminal and turn is stage and now - self.last_line >= LINE_SECONDS:
            self.last_line = stage.last_line = now
            times = f"stage {duration(stage.eta())} to go · sweep {duration(sweep_eta)} to go"
            self.line(f"[{self.finished + 1}/{self.stages}] {stage.label}: {share:4.0%} · {message} · {times}")

    def end(self, identity: str, line: str, seconds: float | None = None) -> None:
        """The stage is over: ``line`` stays on the screen."""
        self.finished += 1
        self.dashboard.ended.add(identity)
        self.eta.finished(identity, seconds)
        if stage := self.shown.pop(identity, None):
            self.bars.remove_task(stage.bar)
        self.bars.update(self.sweep_bar, completed=self.finished + sum(one.share for one in self.shown.values()))
        self.draw()
        self.line(f"[{self.finished}/{self.stages}] {line}")

    def line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
