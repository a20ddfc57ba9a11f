"""What a sweep measured, in one small file that can be kept when its runs are gone: what findings.md is made from.

experiment, scale, key          which sweep
date, machine, versions         when and where its training stages ran
runs                            per evaluate stage and seed: its measurements
training                        per training stage and seed: tokens, loss over fifths of the run, validation, seconds
"""

from __future__ import annotations

import datetime
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import yaml

from lit_long.config import UserError
from lit_long.files import lines_of, write_atomically
from lit_long.report.folder import Stage, Sweep, read_sweep

PARTS = 5


def keep(folder: Path, file: Path) -> None:
    """Write what the sweep in ``folder`` measured to ``file``.

    Raises:
        UserError: a stage has not finished.
    """
    sweep = read_sweep(folder)
    if missing := [stage for stage in sweep.stages if stage.result is None]:
        raise UserError(
            f"{folder}: {len(missing)} stages have not finished, the first is {missing[0].folder}; run the sweep again first"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(kept(sweep), indent=1, ensure_ascii=False) + "\n")


def kept(sweep: Sweep) -> dict[str, Any]:
    settings = yaml.safe_load((sweep.folder / "sweep.yaml").read_text(encoding="utf-8"))
    trained = [stage for stage in sweep.stages if stage.result["kind"] == "train"]
    newest = max((stage.folder / "DONE").stat().st_mtime for stage in sweep.stages)
    return {
        "experiment": sweep.experiment,
        "scale": settings.get("scale", ""),
        "key": sweep.key,
        "date": datetime.datetime.fromtimestamp(newest, datetime.UTC).date().isoformat(),
        "machine": sorted({stage.result["machine"] for stage in trained}),
        "versions": trained[0].result["versions"] if trained else {},
        "runs": [evaluated(stage, sweep.report.rows) for stage in sweep.stages if stage.measurements is not None],
        "training": [training(stage) for stage in trained],
    }


def named(stage: Stage) -> dict[str, Any]:
    """Which variants and seeds a stage stands for: a shared one stands for several variants."""
    return {
        "stage": stage.name,
        "identity": stage.folder.name,
        "variants": list(dict.fromkeys(variant for variant, _ in stage.users)),
        "seeds": sorted({seed for _, seed in stage.users}),
    }


def evaluated(stage: Stage, rows: str) -> dict[str, Any]:
    """Its measurements, and the rows of the table that they are: its variants', or (the model before it was extended) its own."""
    found = named(stage)
    own = found["variants"] if stage.name == rows else [stage.name.removeprefix("evaluate_")]
    return found | {
        "rows": own,
        "measurements": [[each.metric, each.domain, each.length, each.value] for each in stage.measurements],
    }


def training(stage: Stage) -> dict[str, Any]:
    keys = ("context", "tokens", "parameters", "train_loss", "validation", "seconds", "tokens_per_second", "machine", "precision")
    return (
        named(stage)
        | {key: stage.result[key] for key in keys}
        | {"loss_by_fifths": loss_by_parts(stage.folder / "metrics.jsonl")}
    )


def loss_by_parts(metrics: Path, parts: int = PARTS) -> list[float]:
    """Mean training loss (nats per token) of each fifth of a run's updates."""
    rows = map(json.loads, lines_of(metrics.read_text(encoding="utf-8")))
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    edges = [round(part * len(losses) / parts) for part in range(parts + 1)]
    return [statistics.fmean(losses[a:b]) for a, b in itertools.pairwise(edges) if b > a]
