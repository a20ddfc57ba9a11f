"""What a sweep measured, in one small file that can be kept when its runs are gone: what findings.md is made from.
And what of its stages is archived beside (stages/archive.py): curves in short, and whose weights others start from.

experiment, scale, key          which sweep
unfinished                      of a sweep that is not complete: the stages without a result
date, machine, versions         when and where its training stages ran
runs                            per evaluate stage and seed: its measurements; of a sweep of one seed also documents, the nats per token of each
                                held-out one by domain and length
training                        per training stage and seed: tokens, loss over fifths of the run, validation, seconds
"""

from __future__ import annotations

import datetime
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from lit_long.config import UserError
from lit_long.evaluation.measurement import PERPLEXITY
from lit_long.files import lines_of, write_atomically
from lit_long.report.results import ARCHIVE, DONE, StageResult, SweepResult, load_yaml, read_sweep

PARTS, POINTS = 5, 100
METRICS, CURVE = "metrics.jsonl", "curve.json"


def archive_results(folder: Path, file: Path) -> None:
    """Write what the sweep in ``folder`` has measured so far to ``file``.

    Raises:
        UserError: no stage has finished.
    """
    sweep = read_sweep(folder)
    if all(stage.result is None for stage in sweep.stages):
        raise UserError(f"{folder}: none of its {len(sweep.stages)} stages has finished, so there is nothing to keep yet")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(archived_results(sweep), indent=1, ensure_ascii=False) + "\n")


def archived_results(sweep: SweepResult) -> dict[str, Any]:
    settings = load_yaml((sweep.folder / "sweep.yaml").read_text(encoding="utf-8"))
    finished = [stage for stage in sweep.stages if stage.result is not None]
    trained = [stage for stage in finished if stage.result["kind"] == "train"]
    unfinished = [sweep.label(stage) for stage in sweep.stages if stage.result is None]
    return {
        "experiment": sweep.experiment,
        "scale": settings.get("scale", ""),
        "key": sweep.key,
        "date": max(map(day, finished)),
        "machine": sorted({stage.result["machine"] for stage in trained}),
        "versions": trained[0].result["versions"] if trained else {},
        "runs": [evaluated(stage, sweep) for stage in finished if stage.measurements is not None],
        "training": [training(stage) for stage in trained],
    } | ({"unfinished": unfinished} if unfinished else {})


def day(stage: StageResult) -> str:
    """When it finished (UTC)."""
    if stage.archived:
        return read(stage.folder / ARCHIVE)["ended"][:10]
    return datetime.datetime.fromtimestamp((stage.folder / DONE).stat().st_mtime, datetime.UTC).date().isoformat()


def read(file: Path) -> dict[str, Any]:
    """A file of an archived stage."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}; delete {file.parent} and run the sweep again") from None


def named(stage: StageResult) -> dict[str, Any]:
    """Which variants and seeds a stage stands for: a shared one stands for several variants."""
    return {
        "stage": stage.name,
        "identity": stage.folder.name,
        "variants": list(dict.fromkeys(variant for variant, _ in stage.users)),
        "seeds": sorted({seed for _, seed in stage.users}),
    }


def evaluated(stage: StageResult, sweep: SweepResult) -> dict[str, Any]:
    """Its measurements, the rows of the table that they are: its variants', or (the model before it was extended) its own; and its encoder."""
    found, name = named(stage), stage.name.removeprefix("evaluate_")
    others = {(seed, other.folder) for other in sweep.stages if other.name == stage.name for _, seed in other.users}
    own = found["variants"] if stage.name in (sweep.report.rows, *sweep.report.rows_also) else [name]
    if stage.name == sweep.report.reference and len(others) > len(sweep.seeds):  # one for each variant, as in the report
        own = [f"{name} of {variant}" for variant in found["variants"]]
    about = {"position": stage.settings["position"], "head_dim": stage.settings["model"]["head_dim"]} if stage.settings else {}
    kept = {"rows": own, "measurements": [[each.metric, each.domain, each.length, each.value] for each in stage.measurements]}
    texts = [each for each in stage.measurements if each.metric == PERPLEXITY and each.settings.get("document_nats")]
    if len(sweep.seeds) == 1 and texts:
        kept["documents"] = [[each.domain, each.length, each.settings["document_nats"]] for each in texts]
    return found | about | kept


def training(stage: StageResult) -> dict[str, Any]:
    keys = ("context", "tokens", "parameters", "train_loss", "validation", "seconds", "tokens_per_second", "machine", "precision")
    return named(stage) | {key: stage.result[key] for key in keys} | {"loss_by_fifths": curve(stage)["loss_by_fifths"]}


def curves(sweep: SweepResult) -> dict[Path, dict[str, Any] | None]:
    """The folders of the finished stages, inputs first, each with its curve in short if it trained."""
    return {
        stage.folder: curve(stage) if stage.result["kind"] == "train" else None
        for stage in sweep.stages
        if stage.result is not None
    }


def curve(stage: StageResult) -> dict[str, Any]:
    """A training stage's losses (nats per token) in short: means over fifths, and over up to 100 equal parts; validation as it was measured."""
    if stage.archived or (stage.folder / CURVE).is_file():  # archived, or restored from an archive
        return read(stage.folder / CURVE)
    if not (file := stage.folder / METRICS).is_file():
        raise UserError(f"{file}: is not there, so the curve cannot be kept; keep a sweep from the folders that it ran in")
    rows = rows_of(file)
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    validated = [{key: value for key, value in row.items() if key == "step" or key.startswith("val/")} for row in rows]
    return {
        "updates": len(losses),
        "loss_by_fifths": means(losses, PARTS),
        "train/loss": means(losses, POINTS),
        "validation": [row for row in validated if len(row) > 1],
    }


def starting_points(sweep: SweepResult) -> list[Path]:
    """Folders of finished stages whose weights others of the plan start from: first those that a stage without a result needs, then
    those that training stages started from."""
    needed, used = [], []
    for trial in sweep.trials:
        for stage in trial.stages.values():
            parent = sweep.parent(trial, stage)
            if parent is not None and parent.result is not None:
                if stage.result is None:
                    needed.append(parent.folder)
                elif stage.result["kind"] == "train":
                    used.append(parent.folder)
    return list(dict.fromkeys(needed + used))


def loss_by_parts(metrics: Path, parts: int = PARTS) -> list[float]:
    """Mean training loss (nats per token) of each fifth of a run's updates."""
    return means([row["train/loss"] for row in rows_of(metrics) if "train/loss" in row], parts)


def rows_of(metrics: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(metrics.read_text(encoding="utf-8"))]


def means(losses: list[float], parts: int) -> list[float]:
    """Of each of so many equal parts that hold something."""
    edges = [round(part * len(losses) / parts) for part in range(parts + 1)]
    return [statistics.fmean(losses[a:b]) for a, b in itertools.pairwise(edges) if b > a]
