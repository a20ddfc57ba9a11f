"""Stages that failed, and ``only_failed=true``: what is run again then, and what is left alone.

A stage has failed when its folder holds ``error.txt``: it was begun and ended without a result, whether it broke, was killed or was
interrupted. The file goes when the stage is begun again. A stage that was skipped, because it needs one that failed, has none.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lit_long.files import write_atomically
from lit_long.stages.plan import Plan, Stage

ERROR = "error.txt"


def has_failed(stage: Stage) -> bool:
    return not stage.done and (stage.folder / ERROR).is_file()


def why_failed(folder: Path) -> str:
    """What ``error.txt`` says; "" without one."""
    try:
        return (folder / ERROR).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def note_failure(folder: Path, reason: str) -> None:
    """Leave ``reason`` where the stage could not say itself why it ended, such as after kill -9. Raises OSError."""
    if not (folder / ERROR).exists():
        write_atomically(folder / ERROR, reason + "\n")


def only_failed(plan: Plan) -> Plan:
    """The plan that leaves alone what was never tried: stages that failed go again, and what was skipped because of them.

    Unchanged when ``plan.sweep.only_failed`` is false.
    """
    if not plan.sweep.only_failed:
        return plan
    chosen = {stage.folder for stage in plan.stages if has_failed(stage)}
    for stage in plan.stages:  # inputs come first
        if chosen.intersection(stage.inputs):
            chosen.add(stage.folder)
    for stage in reversed(plan.stages):  # an input that is not there any more
        if stage.folder in chosen and not stage.done:
            chosen.update(stage.inputs)
    return replace(plan, left=[s for s in plan.stages if not s.done and s.folder not in chosen])


def nothing_failed(plan: Plan) -> str:
    """A line for people when ``only_failed=true`` finds nothing to do; "" when there is something, or all is to run."""
    if not plan.sweep.only_failed or any(not stage.done for stage in plan.chosen):
        return ""
    done = len(plan.chosen)
    rest = f"; {len(plan.left)} were never tried: the same command without only_failed=true runs them" if plan.left else ""
    return f"only_failed=true: no stage of {plan.title} {plan.key} has failed. {done} of {len(plan.stages)} are done{rest}"
