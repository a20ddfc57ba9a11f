"""Going through a plan: each stage in processes of its own, its metrics mirrored, its progress shown; side by side as far as the launcher lets them.

Finished stages are not run again, a failed one holds up only those that need it, and an interrupted one goes on from its last
checkpoint at the next command.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from lit_long.config import LauncherConfig, StageConfig, UserError
from lit_long.config.checkpoints import CHECKPOINTS
from lit_long.data.disk_space import estimate_disk_space
from lit_long.launch.display import Display, format_duration
from lit_long.launch.job import JOB, forget_job, read_job
from lit_long.launch.launcher import Launcher, ReadyStage, Running, make_launcher
from lit_long.planning.flops import parameters, trained_parameters
from lit_long.stages.folder import ERROR, is_done, note_failure, read_progress, take_lock, why_failed, write_stage
from lit_long.stages.plan import Plan, Stage
from lit_long.stages.resolve import uses_builtin
from lit_long.stages.sweep_folder import is_restored
from lit_long.tracking import Mirror
from lit_long.tracking.record import Record

POLL_SECONDS = 0.2
SYNC_SECONDS = 5.0  # between two requests to the tracker for one stage: a server with users takes a third of a second for each
CORPUS_BYTES = 400 * 2**20
INTERRUPTED = 130  # a stage's exit code


@dataclass
class Outcome:
    """How the stages of a sweep ended, by label."""

    done: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # what only_failed=true left alone

    @property
    def status(self) -> str:
        """Of the sweep, as its tracker calls it; KILLED is one that is to go on."""
        return "FAILED" if self.failed or self.skipped else "KILLED" if self.left else "FINISHED"


def check_disk(plan: Plan) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        UserError: with the space needed and the space there is.
    """
    needed = 0
    for stage in plan.chosen:
        if not stage.done:
            needed += estimate_bytes(stage)
    try:
        (plan.root / "runs").mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(plan.root).free
    except OSError as error:
        raise UserError(f"root={plan.root}: cannot be written: {error}; choose another with root=FOLDER") from None
    if free < needed:
        gib = 2**30
        raise UserError(
            f"{plan.root}: this sweep needs about {needed / gib:.1f} GiB and the disk has {free / gib:.1f} GiB free; "
            "free some, or write elsewhere with root=FOLDER"
        )


def estimate_bytes(stage: Stage) -> int:
    """What the stage will write at least, beside the checkpoints that it has."""
    data = stage.config.data
    if stage.config.kind == "data":
        return CORPUS_BYTES * uses_builtin(data) + estimate_disk_space(data.corpus, data.sources, stage.folder)[1]
    if stage.config.kind != "train":
        return 2**20
    trainer = stage.config.trainer
    checkpoints = trainer.keep_checkpoints + len(trainer.milestones) + 1  # one is written before another goes
    weights, checkpoint = weights_and_checkpoint(stage.config)
    return weights if is_restored(stage) else weights + max(0, checkpoints * checkpoint - bytes_below(stage.folder / CHECKPOINTS))


def bytes_below(folder: Path) -> int:
    """Of all files in it that are there still: a stage of another sweep may write and delete meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def weights_and_checkpoint(config: StageConfig) -> tuple[int, int]:
    """Bytes of a training stage's weights, and of a checkpoint: all parameters, and of those that are trained AdamW's two moments, or Muon's one of hidden
    matrices. All are in the parameters' precision."""
    width = 2 if config.trainer.precision == "bf16-true" else 4
    kept, (hidden, others) = parameters(config.model), trained_parameters(config.model, config.adapter)
    added = hidden if config.adapter.rank else 0
    moments = (1 if config.optim.name == "muon" else 2) * hidden + 2 * others
    return width * (kept + added), width * (kept + added + moments)


@dataclass
class Active:
    """A stage that runs, or is about to: its lock, its process or job, and its record."""

    stage: Stage
    lock: IO[str]
    ready: ReadyStage
    running: Running | None = None
    started: float = field(default_factory=time.monotonic)
    run: str = ""
    mirror: Mirror | None = None
    synced: float = 0.0


def run_plan(plan: Plan, record: Record, display: Display, launcher: Launcher) -> Outcome:
    """Run all stages. KeyboardInterrupt stops those that run in good order and passes on."""
    runner = Runner(plan, record, display, launcher)
    try:
        while runner.waiting or runner.active:
            runner.pass_over()
            runner.start_ready()
            if not runner.poll():
                time.sleep(POLL_SECONDS)
    except BaseException:
        with signals_held():
            runner.stop()
        raise
    if plan.left:
        display.line(f"left alone: {len(plan.left)} stages that were never tried; without only_failed=true they run")
    return runner.outcome


class Runner:
    """The stages of a plan that wait, in its order, and those that run."""

    def __init__(self, plan: Plan, record: Record, display: Display, launcher: Launcher) -> None:
        self.plan, self.record, self.display, self.launcher = plan, record, display, launcher
        self.parallel = plan.sweep.launcher.parallel
        self.labels = {stage.identity: plan.label(stage) for stage in plan.stages}
        self.waiting, self.active, self.outcome = list(plan.chosen), dict[str, Active](), Outcome()
        self.outcome.left = [plan.label(stage) for stage in plan.left]
        self.held_up: set[Path] = set()  # folders of stages that failed or were skipped
        self.elsewhere: set[str] = set()  # stages that another sweep was seen to run

    def pass_over(self) -> None:
        """Stages that are done, and those whose inputs will not come."""
        for stage in list(self.waiting):
            label = self.labels[stage.identity]
            if stage.done:
                self.waiting.remove(stage)
                forget_job(stage.folder)  # one that outlived the sweep that watched it
                self.say_owed(label, self.record.cached(stage))
                self.outcome.cached.append(label)
                by = "by another sweep" if stage.identity in self.elsewhere else "before"
                self.display.end(stage.identity, f"{label}: archived" if stage.archived else f"{label}: done {by}")
            elif lacking := [folder.name for folder in stage.inputs if folder in self.held_up]:
                self.waiting.remove(stage)
                self.held_up.add(stage.folder)
                self.outcome.skipped.append(label)
                self.display.end(stage.identity, f"{label}: skipped, it needs {', '.join(lacking)}")

    def start_ready(self) -> None:
        """Start the stages that can run now; join those that a cluster runs already."""
        entered, fresh = self.take_ready(), []
        for active in entered:
            folder = active.stage.folder
            self.waiting.remove(active.stage)
            if job := read_job(folder):
                active.running = self.launcher_of(job).join(active.ready, job)
            if active.running is None:
                for leftover in (ERROR, "progress.json", JOB):
                    (folder / leftover).unlink(missing_ok=True)
                write_stage(folder, active.stage.key, active.stage.settings(), active.stage.store, active.stage.parent)
                fresh.append(active)
            else:
                self.active[active.stage.identity] = active
        if fresh:
            for active, running in zip(
                fresh, self.launcher.start([active.ready for active in fresh], self.display.line), strict=True
            ):
                active.running, self.active[active.stage.identity] = running, active
        for active in entered:
            active.run, active.mirror = self.record.begin(active.stage)

    def take_ready(self) -> list[Active]:
        """The first stages whose inputs are done, locked, as many as fit beside those that run."""
        ready: list[Active] = []
        locked: set[str] = set()
        for stage in self.waiting:
            if not all(is_done(folder) for folder in stage.inputs):
                continue
            beside = [active.stage.config for active in [*self.active.values(), *ready]]
            if len(beside) >= self.parallel or not self.launcher.fits(stage.config, beside):
                break  # what comes later in the plan does not overtake it
            label = self.labels[stage.identity]
            stage.folder.mkdir(parents=True, exist_ok=True)
            self.display.begin(stage.identity, label)
            if (lock := take_lock(stage.folder)) is None:
                self.elsewhere.add(stage.identity)
                locked.add(stage.identity)
                self.display.update(stage.identity, "waiting for another sweep that runs this stage", 0.0)
            elif stage.done:
                lock.close()  # another sweep has just finished it
            else:
                ready.append(Active(stage, lock, ReadyStage(stage.folder, label, stage.config, lock.fileno())))
        for stage in self.waiting:
            if stage.identity in self.elsewhere - locked and all(stage is not active.stage for active in ready):
                self.display.hide(stage.identity)  # its turn is over: others run now
        return ready

    def launcher_of(self, job: dict[str, str]) -> Launcher:
        """Ours, or another one that a job of an earlier sweep was started with."""
        if job["launcher"] == self.plan.sweep.launcher.name:
            return self.launcher
        keys = {key: job[key] for key in ("cluster", "address") if key in job}
        return make_launcher(LauncherConfig(name=job["launcher"], **keys), self.plan.root)

    def poll(self) -> bool:
        """Look at every stage that runs. Returns whether one has ended."""
        codes = {identity: active.running.exit_code() for identity, active in self.active.items()}
        for identity, code in codes.items():
            active = self.active[identity]
            if code is not None:
                self.ended(active, code)
                continue
            if active.mirror is not None and time.monotonic() - active.synced >= SYNC_SECONDS:
                active.mirror.sync()
                active.synced = time.monotonic()
            message, share = read_progress(active.stage.folder)
            self.display.update(identity, active.running.waits_for() or message, share)
        return any(code is not None for code in codes.values())

    def ended(self, active: Active, code: int) -> None:
        """A stage is over: its record, its place in the outcome, its line."""
        stage, label, seconds = active.stage, active.ready.label, time.monotonic() - active.started
        succeeded = code == 0 and stage.done
        status = "FINISHED" if succeeded else "KILLED" if code == INTERRUPTED else "FAILED"
        self.say_owed(label, self.record.end(stage, active.run, active.mirror, status))
        del self.active[stage.identity]
        active.lock.close()
        if succeeded:
            self.outcome.done.append(label)
            line = f"{label}: done in {format_duration(seconds)}{last_message(stage)}"
        else:
            self.held_up.add(stage.folder)
            self.outcome.failed.append(label)
            why = find_reason(stage, code, active.running.why())
            with suppress(OSError):  # a full disk may refuse it
                note_failure(stage.folder, why)
            line = f"{label}: FAILED: {why}\n    full log: {stage.folder / 'log.txt'}"
        self.display.end(stage.identity, line, seconds)

    def say_owed(self, label: str, why: str) -> None:
        """``why``: what the tracker said, if it has not taken the stage's record."""
        if why:
            self.display.line(f"{label}: not recorded yet, but with a later stage or at the end: {why}")

    def stop(self) -> None:
        """End all that run, at once, and close their records."""
        running = list(self.active.values())
        with ThreadPoolExecutor(max(1, len(running))) as pool:
            notes = list(pool.map(lambda active: active.running.stop(), running))
        for active, note in zip(running, notes, strict=True):
            if note:
                self.display.line(f"{active.ready.label}: {note}")
            if active.mirror is not None:
                with suppress(Exception):  # whatever it is, the records of the others are closed, too
                    self.record.end(active.stage, active.run, active.mirror, "KILLED")


@contextmanager
def signals_held() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP do nothing while stages are being stopped and their records closed."""
    old = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def last_message(stage: Stage) -> str:
    """The stage's last words about its progress."""
    message, _ = read_progress(stage.folder)
    return f" · {message}" if message else ""


def find_reason(stage: Stage, code: int, known: str) -> str:
    """Why a stage failed: what it said itself, what its launcher knows, or how it was ended."""
    if said := why_failed(stage.folder):
        return said
    if known:
        return known
    if shutil.disk_usage(stage.folder).free < 2**20:  # then it could not even write why
        return f"no space left on the disk that holds {stage.folder}: free some, then run the same command again"
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (" (was the memory used up?)" if name == "SIGKILL" else "")
    return f"ended with exit code {code} and said nothing"
