"""A sweep's folder, runs/EXPERIMENT/KEY/: what was asked for, and which stage folders answer it.

sweep.yaml   every setting, resolved
sweep.json   the trials and their stage folders, for the report
../latest    a link to the newest configuration
"""

from __future__ import annotations

import json
import os
from typing import Any

import yaml

from lit_long.config import plain
from lit_long.files import write_atomically
from lit_long.planning.flops import stage_flops
from lit_long.stages.archive import find_adapter
from lit_long.stages.folder import why_failed
from lit_long.stages.plan import Plan, Stage


def sweep_settings(plan: Plan) -> dict[str, Any]:
    """The sweep's own settings, then every distinct stage's, complete."""
    sweep = plain(plan.sweep)
    shown = ("experiment", "description", "base", "seed", "grid", "exclude", "launcher", "tracking", "report")
    stages = {plan.label(stage): stage.settings() | {"identity": stage.key} for stage in plan.stages}
    scale = {"scale": plan.sweep.scale} if plan.sweep.scale else {}
    return scale | {name: sweep[name] for name in shown} | {"root": str(plan.root), "stages": stages}


def outline(plan: Plan) -> str:
    """The stages in running order, whether each is done and what it costs, for people."""
    lines = [f"{plan.title} {plan.key}: {len(plan.trials)} trials, {len(plan.stages)} distinct stages"]
    width = min(60, max(28, *map(len, plan.labels.values())))
    lines += [f"  {note}" for note in plan.notes]
    lines += [f"  {'shipped':<10} {name:<{width}} {'':<14}  {folder}" for name, folder in plan.shipped.items()]
    untouched = {stage.identity for stage in plan.left}
    costs = {stage.identity: cost_to_run(stage) for stage in plan.stages}
    for stage in plan.stages:
        flops = costs[stage.identity]
        shown = f"{flops:.1e} FLOPs" if flops else ""
        lines.append(f"  {state(stage, untouched):<10} {plan.label(stage):<{width}} {shown:<14}  {stage.folder}")
        if stage.failed:
            reason, _, _ = why_failed(stage.folder).partition("\n")
            lines.append(f"             failed: {reason}")
    left = sum(costs[stage.identity] for stage in plan.chosen if not stage.done)
    scale = f" scale={plan.sweep.scale}" if plan.sweep.scale else ""
    lines.append(
        f"to do: {left:.2e} FLOPs (causal); hours and memory on GPUs: python -m lit_long.plan experiment={plan.sweep.experiment}{scale}"
    )
    lines += [f"missing, so the sweep would stop there, and identities may change: {reason}" for reason in plan.unseen]
    return "\n".join(lines) + "\n"


def state(stage: Stage, left: set[str]) -> str:
    """What this command would do with the stage. ``left``: identities of those that it leaves alone."""
    if stage.done:
        return "archived" if stage.archived else "cached"
    if stage.identity in left:
        return "left"
    if is_restored(stage):
        return "to restore"
    return "to resume" if (stage.folder / "checkpoints").is_dir() else "to run"


def cost_to_run(stage: Stage) -> float:
    """FLOPs of the whole stage; 0 where it is restored, which takes seconds."""
    return 0.0 if is_restored(stage) else stage_flops(stage.config)


def is_restored(stage: Stage) -> bool:
    """Whether it is not trained, since its archive holds the adapter."""
    return not stage.done and find_adapter(stage.folder, stage.config) is not None


def resolved_yaml(plan: Plan) -> str:
    return yaml.safe_dump(sweep_settings(plan), sort_keys=False, allow_unicode=True, width=120)


def write_sweep(plan: Plan) -> None:
    """Write the folder's two files and point ``latest`` to it."""
    trials = []
    for trial in plan.trials:
        folders = {name: os.path.relpath(stage.folder, plan.folder) for name, stage in trial.stages.items()}
        trials.append({"variant": trial.variant, "seed": trial.seed, "point": trial.point, "stages": folders})
    parents = {name: stage.config.parent for name, stage in plan.trials[0].stages.items() if stage.config.parent}
    content = {"experiment": plan.sweep.experiment, "key": plan.key, "parents": parents, "trials": trials}
    write_atomically(plan.folder / "sweep.yaml", resolved_yaml(plan))
    write_atomically(plan.folder / "sweep.json", json.dumps(content, indent=1) + "\n")
    link = plan.folder.parent / f".latest.{os.getpid()}"
    link.symlink_to(plan.folder.name)
    os.replace(link, plan.folder.parent / "latest")
