"""Going through a plan: each stage in a process of its own, its metrics mirrored, its progress shown.

Finished stages are not run again, a failed one holds up only those that need it, and an interrupted one goes on from its last
checkpoint at the next command.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from lit_long.config import UserError
from lit_long.data.room import disk_room
from lit_long.launch.display import Display, duration
from lit_long.launch.local import LocalProcess
from lit_long.launch.record import Record
from lit_long.planning.flops import parameters
from lit_long.stages.folder import is_done, locked, read_progress, write_stage
from lit_long.stages.mixture import uses_builtin
from lit_long.stages.plan import Plan, Stage

POLL_SECONDS = 0.2
SYNC_SECONDS = 2.0
CORPUS_BYTES = 400 * 2**20
WEIGHTS_BYTES, CHECKPOINT_BYTES = 4, 12  # of a parameter: fp32, and with AdamW's two moments
INTERRUPTED = 130  # a stage's exit code


@dataclass
class Outcome:
    """How the stages of a sweep ended, by label."""

    done: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def check_disk(plan: Plan) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        UserError: with the space needed and the space there is.
    """
    needed = 0
    for stage in plan.stages:
        if not stage.done:
            needed += bytes_of(stage)
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


def bytes_of(stage: Stage) -> int:
    """What the stage will write at least."""
    data = stage.config.data
    if stage.config.kind == "data":
        return CORPUS_BYTES * uses_builtin(data) + disk_room(data.corpus, data.sources, stage.folder)[1]
    if stage.config.kind != "train":
        return 2**20
    trainer = stage.config.trainer
    checkpoints = trainer.keep_checkpoints + len(trainer.milestones) + 1  # one is written before another goes
    return parameters(stage.config.model) * (WEIGHTS_BYTES + checkpoints * CHECKPOINT_BYTES)


def run_plan(plan: Plan, record: Record, display: Display) -> Outcome:
    """Run all stages. KeyboardInterrupt stops the running one in good order and passes on."""
    outcome = Outcome()
    for stage in plan.stages:
        label = plan.label(stage)
        display.begin(stage.identity, label)
        if stage.done:
            record.cached(stage)
            outcome.cached.append(label)
            display.end(f"{label}: done before")
        elif waiting_for := [folder.name for folder in stage.inputs if not is_done(folder)]:
            outcome.skipped.append(label)
            display.end(f"{label}: skipped, it needs {', '.join(waiting_for)}")
        else:
            run_one(stage, label, record, display, outcome)
    return outcome


def run_one(stage: Stage, label: str, record: Record, display: Display, outcome: Outcome) -> None:
    """One stage, from lock to result."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with locked(stage.folder, lambda: display.update("waiting for another sweep that runs this stage", 0.0)) as lock:
        if stage.done:
            record.cached(stage)
            outcome.cached.append(label)
            display.end(f"{label}: done by another sweep")
            return
        for leftover in ("error.txt", "progress.json"):
            (stage.folder / leftover).unlink(missing_ok=True)
        write_stage(stage.folder, stage.identity, stage.settings(), stage.store, stage.parent)
        run, mirror = record.begin(stage)
        process = LocalProcess(stage.folder, stage.config, lock)
        try:
            code = watch(process, stage, mirror, display)
        except BaseException:
            with signals_held():
                process.stop()
                with suppress(UserError):
                    record.end(stage, run, mirror, "KILLED")
            raise
        seconds = time.monotonic() - started
        succeeded = code == 0 and stage.done
        record.end(stage, run, mirror, "FINISHED" if succeeded else "KILLED" if code == INTERRUPTED else "FAILED")
    if succeeded:
        outcome.done.append(label)
        display.end(f"{label}: done in {duration(seconds)}{summary(stage)}", seconds)
    else:
        outcome.failed.append(label)
        display.end(f"{label}: FAILED: {reason(stage, code)}\n    full log: {stage.folder / 'log.txt'}", seconds)


def watch(process: LocalProcess, stage: Stage, mirror: object, display: Display) -> int:
    """Wait for the process, mirroring its metrics and showing its progress."""
    synced = 0.0
    while (code := process.exit_code()) is None:
        if time.monotonic() - synced >= SYNC_SECONDS:
            mirror.sync()
            synced = time.monotonic()
        display.update(*read_progress(stage.folder))
        time.sleep(POLL_SECONDS)
    return code


@contextmanager
def signals_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM do nothing while a stage is being stopped and its record closed."""
    old = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def summary(stage: Stage) -> str:
    """The stage's last words about its progress."""
    message, _ = read_progress(stage.folder)
    return f" · {message}" if message else ""


def reason(stage: Stage, code: int) -> str:
    """Why a stage failed: what it said itself, or how it was ended."""
    with suppress(OSError):
        return (stage.folder / "error.txt").read_text(encoding="utf-8").strip()
    if shutil.disk_usage(stage.folder).free < 2**20:  # then it could not even write why
        return f"no space left on the disk that holds {stage.folder}: free some, then run the same command again"
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (" (was the memory used up?)" if name == "SIGKILL" else "")
    return f"ended with exit code {code} and said nothing"
