"""What the terminal shows while a sweep runs: the table of its trials, one bar for the sweep, one for each stage that runs.

    variant   seed   stage       progress            val. loss       perplexity    left
    abf          0   extend      ━━━━━━━───   71 %   3.012 (3.008)                 1:20
    rope         0   done        ━━━━━━━━━━  100 %   2.988           24.31

Everything is read from the stages' folders: the sweep itself trains nothing. Where standard output is not a terminal (a log file, CI) the same
facts come as lines, one every ten seconds at most. Tables, bars and the live screen are rich's; times left are ours, from what stages cost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lit_long.config import UserError
from lit_long.evaluation.measurement import PERPLEXITY, Measurement
from lit_long.stages.folder import read_result
from lit_long.stages.plan import Plan, Stage, Trial
from lit_long.stages.sweep_folder import cost_to_run

LINE_SECONDS, TABLE_SECONDS = 10.0, 1.0
BAR_WIDTH = 12
FRAME = 6  # lines of the table that are no trials: header, rule, note and blanks
OTHERS = 72  # columns of the terminal that all but the variants' names take
ORDER = ("runs", "failed", "waiting", "done")  # which trials are shown where the terminal cannot hold them all
STYLES = {"failed": "red", "waiting": "dim", "done": "green"}


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

    def hide(self, identity: str) -> None:
        """The stage neither runs nor is waited for at present."""
        if stage := self.shown.pop(identity, None):
            self.bars.remove_task(stage.bar)

    def update(self, identity: str, message: str, share: float) -> None:
        """``share`` of the stage is done."""
        stage = self.shown[identity]
        stage.update(message, share)
        sweep_eta = self.eta.of_sweep(self.shown)
        self.bars.update(stage.bar, completed=share, note=f"{message or 'starting'} · {format_duration(stage.eta())} to go")
        self.bars.update(
            self.sweep_bar,
            completed=self.finished + sum(one.share for one in self.shown.values()),
            note=f"{self.finished} of {self.stages} done · {format_duration(sweep_eta)} to go",
        )
        if time.monotonic() - self.drawn >= TABLE_SECONDS:
            self.draw()
        now, speakers = time.monotonic(), [one for one in self.shown.values() if one.message]
        due = min(speakers, key=lambda one: one.last_line, default=None)  # one line each in turn
        if not self.console.is_terminal and due is stage and now - self.last_line >= LINE_SECONDS:
            self.last_line = stage.last_line = now
            times = f"stage {format_duration(stage.eta())} to go · sweep {format_duration(sweep_eta)} to go"
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


@dataclass
class Curve:
    """The validation losses in a growing ``metrics.jsonl``: the mean over domains, each time it was measured."""

    file: Path
    offset: int = 0
    losses: list[float] = field(default_factory=list)

    def read(self) -> list[float]:
        """All so far. A stage that resumes may have cut its file back; then it is read anew."""
        try:
            with self.file.open("rb") as lines:
                if lines.seek(0, 2) < self.offset:
                    self.offset, self.losses = 0, []
                lines.seek(self.offset)
                new = lines.read()
        except OSError:
            return self.losses
        whole = new[: new.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            if b'"val/' in line:
                self.losses += mean_loss(line)
        return self.losses


def mean_loss(line: bytes) -> list[float]:
    """The mean of a record's validation losses, as a list of one; none of a torn line."""
    try:
        values = [value for name, value in json.loads(line).items() if name.startswith("val/") and name.endswith("/loss")]
    except ValueError:
        return []
    return [fmean(values)] if values else []


@dataclass
class Row:
    """A trial as it stands: one of ORDER's states, its stage in words, the share of its cost that is done, and what it measured."""

    trial: Trial
    state: str
    stage: str
    share: float
    losses: list[float]
    perplexity: float | None
    left: float | None


class Dashboard:
    """``ended`` holds the identities of stages that are over, however they ended."""

    def __init__(self, plan: Plan, eta: SweepEta) -> None:
        self.plan, self.eta, self.ended = plan, eta, set[str]()
        self.costs = dict(eta.costs)  # of all stages; the own ones of ``eta`` shrink
        self.left = {stage.identity for stage in plan.left}
        self.curves: dict[str, Curve] = {}
        self.results: dict[str, dict[str, Any]] = {}

    def table(self, shown: dict[str, RunningStage], width: int, height: int) -> Table:
        """What the terminal shows, in at most ``height`` lines of ``width`` columns."""
        rows = [self.row(trial, shown) for trial in self.plan.trials]
        fitting = max(1, height - FRAME)
        order = sorted(range(len(rows)), key=lambda number: ORDER.index(rows[number].state))  # stable
        kept = sorted(order[:fitting])
        rest = [row for number, row in enumerate(rows) if number not in kept]
        measured = [row.perplexity for row in rows if row.perplexity is not None]
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=self.note(rows, rest), caption_justify="left")
        table.add_column("variant", no_wrap=True)
        table.add_column("seed", justify="right")
        table.add_column("stage", no_wrap=True)
        table.add_column("progress", no_wrap=True)
        for name in ("val. loss", "perplexity", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in (rows[number] for number in kept):
            best = row.perplexity is not None and row.perplexity == min(measured) and len(measured) > 1
            perplexity = "" if row.perplexity is None else f"{row.perplexity:.2f}"
            name = Text(row.trial.variant)
            name.truncate(max(8, width - OTHERS), overflow="ellipsis")
            table.add_row(
                name,
                str(row.trial.seed),
                Text(row.stage, style=STYLES.get(row.state, "")),
                make_bar(row.share),
                format_losses(row.losses),
                Text(perplexity, style="bold" if best else ""),
                "" if row.state in ("done", "failed") else format_duration(row.left),
            )
        return table

    def row(self, trial: Trial, shown: dict[str, RunningStage]) -> Row:
        stages = list(trial.stages.values())
        running = [stage for stage in stages if stage.identity in shown]
        broken = [stage for stage in stages if stage.identity in self.ended and not stage.done]
        if running:
            state, words = "runs", ", ".join(stage.name for stage in running)
        elif broken:
            state, words = "failed", f"{broken[0].name} failed"
        elif all(stage.done for stage in stages):
            state, words = "done", "done"
        else:
            left = self.left.intersection(stage.identity for stage in stages)
            state, words = "waiting", "left alone" if left else "waiting"
        cost = {stage.identity: self.costs.get(stage.identity, 0.0) for stage in stages}
        shares = {s.identity: 1.0 if s.done else shown[s.identity].share if s in running else 0.0 for s in stages}
        total = sum(cost.values())
        share = sum(shares[one] * cost[one] for one in cost) / total if total else fmean(shares.values())
        left = self.eta.of_stages([stage.identity for stage in stages if not stage.done], shown)
        return Row(trial, state, words, share, self.losses(stages), self.perplexity(trial), left)

    def losses(self, stages: list[Stage]) -> list[float]:
        """Validation losses of the latest training stage that has any."""
        for stage in reversed([stage for stage in stages if stage.config.kind == "train"]):
            curve = self.curves.setdefault(stage.identity, Curve(stage.folder / "metrics.jsonl"))
            if losses := curve.losses if stage.done and curve.offset else curve.read():
                return losses
        return []

    def perplexity(self, trial: Trial) -> float | None:
        """Of the report's rows: the first domain's, at the longest length. None until it was measured."""
        stage = trial.stages.get(self.plan.sweep.report.rows)
        if stage is None or not stage.done:
            return None
        if stage.identity not in self.results:
            try:
                self.results[stage.identity] = read_result(stage.folder)
            except UserError:  # the report will say so
                return None
        domain, length = measured_at(stage)
        for row in self.results[stage.identity].get("measurements", []):
            each = Measurement.from_row(row)
            if (each.metric, each.domain, each.length) == (PERPLEXITY, domain, length):
                return each.value
        return None

    def note(self, rows: list[Row], rest: list[Row]) -> Text:
        """Which trials are not shown, and what the numbers are."""
        counts = {state: sum(row.state == state for row in rest) for state in ORDER}
        more = f"… {len(rest)} more: {', '.join(f'{n} {state}' for state, n in counts.items() if n)}\n" if rest else ""
        words = ["val. loss: last (best), mean over domains"] if any(row.losses for row in rows) else []
        stage = self.plan.trials[0].stages.get(self.plan.sweep.report.rows)
        if any(row.perplexity is not None for row in rows):
            domain, length = measured_at(stage)
            words.append(f"perplexity: {domain} at {length:,}")
        return Text(more + " · ".join(words), style="dim")


def measured_at(stage: Stage) -> tuple[str, int]:
    """The domain and the length whose perplexity stands for an evaluation."""
    evaluation = stage.config.evaluation
    return next(iter(evaluation.domains), ""), max(evaluation.lengths, default=0)


def format_losses(losses: list[float]) -> str:
    """``3.012``, or ``3.012 (3.008)`` when an earlier one was better."""
    if not losses:
        return ""
    return f"{losses[-1]:.3f}" + (f" ({min(losses):.3f})" if min(losses) < losses[-1] else "")


def make_bar(share: float) -> Table:
    """A bar and its number."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_row(ProgressBar(total=1.0, completed=share, width=BAR_WIDTH), f"{share:4.0%}")
    return grid


def format_duration(seconds: float | None) -> str:
    """``4:05`` or ``1:02:03``; ``-:--`` when nobody knows yet."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class RunningStage:
    """A stage on the screen. Its speed counts from the first share heard of: after the start, or the resume."""

    label: str
    bar: int  # the bar's number
    last_line: float
    share: float = 0.0
    first: tuple[float, float] | None = None  # when, and at which share, it was first heard of
    now: float = 0.0
    message: str = ""

    def update(self, message: str, share: float) -> None:
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

    def eta(self) -> float | None:
        return self.seconds / self.gained * (1 - self.share) if self.gained > 0.01 else None


class SweepEta:
    """Time to go of the whole sweep: every stage's expected cost, calibrated by the time that finished cost has taken."""

    def __init__(self, stages: list[Stage]) -> None:
        self.costs = {stage.identity: cost_to_run(stage) for stage in stages}
        self.done_cost, self.done_seconds = 0.0, 0.0

    def finished(self, identity: str, seconds: float | None) -> None:
        """A stage is over; ``seconds`` is None when it had been done before and took no time."""
        cost = self.costs.pop(identity, 0.0)
        if seconds is not None and cost:
            self.done_cost, self.done_seconds = self.done_cost + cost, self.done_seconds + seconds

    def of_sweep(self, shown: dict[str, RunningStage]) -> float | None:
        """Seconds left in the sweep, while the stages ``shown`` run side by side and as many will. None before there is a measure."""
        if (left := self.of_stages(self.costs, shown)) is None:
            return None
        slowest = max((stage.eta() or 0.0 for stage in shown.values()), default=0.0)
        return max(left / max(1, len(shown)), slowest)  # a slow stage shows in its own ETA first

    def of_stages(self, identities: Iterable[str], shown: dict[str, RunningStage]) -> float | None:
        """Seconds that what is left of these stages will take, one after the other. None before there is a measure."""
        cost, seconds = self.done_cost, self.done_seconds
        for identity, stage in shown.items():
            cost, seconds = cost + self.costs.get(identity, 0.0) * stage.gained, seconds + stage.seconds
        if cost <= 0:
            return None
        shares = {identity: stage.share for identity, stage in shown.items()}
        return seconds / cost * sum(self.costs.get(one, 0.0) * (1 - shares.get(one, 0.0)) for one in identities)
