"""A sweep of two independent trials, of a training and an evaluation each, for tests of launchers; and what must be the same under all of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from lit_long.stages.data import data_stage, prepare_stage
from lit_long.stages.folder import locked
from tests.data.own import TEXTS, write_text
from tests.integration.mini import REPOSITORY, command, with_database

EXPERIMENT = """
model: tiny
data:
  corpus: {vocab_size: 300}
  sources: {one: {path: TEXTS/one, validation_share: 0.3}, two: {path: TEXTS/two, validation_share: 0.3}}
seed: 0
grid: {position: [rope, abf]}
trainer: {option: cpu, precision: 32-true, threads: 1, micro_batch_tokens: 512, checkpoint_every: 2}
validation: {times: 1, sequences: 2}
stages:
  train: {context: 128, tokens: 4k, tokens_per_update: 512, optim: {lr: 2e-3}}
  evaluate: {kind: evaluate, parent: train}
evaluation: {domains: [one, two], lengths: [128], sequences: 4}
report: {title: Side by side, rows: evaluate}
"""
SHAPE = ["model.d_model=48", "model.n_layers=2", "model.n_heads=2", "model.n_kv_heads=1", "model.head_dim=24", "model.d_ffn=96"]
SIDE = ["experiment=side", *SHAPE]
UPDATES = 8
CHILDREN = {"corpus", *(f"{variant} | {stage} 128 | seed 0" for variant in ("rope", "abf") for stage in ("train", "evaluate"))}


def prepared() -> tuple[Path, Path]:
    """Folders of the texts of all workplaces, whose paths are among the settings that runs record, and of their data stage, which is run once."""
    folder = Path(os.environ["LIT_LONG_CACHE"]) / "side"
    folder.mkdir(exist_ok=True)
    sources = {name: {"path": str(folder / name), "validation_share": 0.3} for name in ("one", "two")}
    with locked(folder, lambda: None):
        if not (folder / "two").exists():
            long = [text for text in TEXTS if len(text) > 500]
            for i, name in enumerate(sources):
                write_text(folder / name, long[i::2])
        stage = data_stage({"data": {"corpus": {"vocab_size": 300}, "sources": sources}}, str(folder))
        prepare_stage(stage, 1, False, lambda message, done: None)
    return folder, stage.folder


def workplace(folder: Path) -> Path:
    """A folder to run the sweep from: its experiment, its prepared data, and an empty record."""
    (folder / "experiments").mkdir(parents=True, exist_ok=True)
    texts, data = prepared()
    (folder / "experiments" / "side.yaml").write_text(EXPERIMENT.replace("TEXTS", str(texts)))
    shutil.copytree(data, folder / "runs" / "stages" / data.name)
    return with_database(folder)


def sweep(work: Path, *words: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start it; its output can be read with communicate()."""
    environment = (environment or dict(os.environ)) | {"COLUMNS": "120", "PYTHONPATH": str(REPOSITORY)}
    words = command("lit_long.sweep", *SIDE, *words, f"root={work}")
    return subprocess.Popen(words, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(work: Path, *words: str, code: int = 0, environment: dict[str, str] | None = None, seconds: float = 800) -> str:
    """Run it to its end; what it printed."""
    process = sweep(work, *words, environment=environment)
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == code, output
    return output


def folders(work: Path, kind: str) -> list[Path]:
    return sorted((work / "runs" / "stages").glob(f"{kind}-*"))


def rows(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for(condition: Any, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def facts(work: Path) -> dict[str, Any]:
    """All that must not depend on the launcher: identities, the bytes of the table, losses, and the tree in MLflow with its curves."""
    from mlflow import MlflowClient

    latest = (work / "runs" / "side" / "latest").resolve()
    client = MlflowClient(tracking_uri=f"sqlite:///{work}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("side")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert len(runs) == 1 + len(children), "runs that belong to no sweep"
    changing = ("perf/", "result/seconds", "result/tokens_per_second", "result/peak_memory_gib", "result/mfu_causal")
    return {
        "key": latest.name,
        "table": (latest / "table.csv").read_bytes(),
        "stages": {folder.name for kind in ("train", "evaluate") for folder in folders(work, kind)},
        "losses": {
            folder.name: [row["train/loss"] for row in rows(folder) if "train/loss" in row] for folder in folders(work, "train")
        },
        "status": {name: run.info.status for name, run in children.items()} | {"": parent.info.status},
        "params": {name: run.data.params for name, run in children.items()},
        "metrics": {
            name: {key: value for key, value in run.data.metrics.items() if not key.startswith(changing)}
            for name, run in children.items()
        },
        "curves": {
            name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss")]
            for name, run in children.items()
        },
        "artifacts": sorted(one.path for one in client.list_artifacts(parent.info.run_id)),
    }
