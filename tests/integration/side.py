"""A sweep of two independent trials, of a training and an evaluation each, for tests of launchers; and what must be the same under all of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.integration.mini import CORPUS, REPOSITORY, command

EXPERIMENT = """
model: tiny
seed: 0
grid: {position: [rope, abf]}
trainer: {option: cpu, precision: 32-true, threads: 1, micro_batch_tokens: 512, checkpoint_every: 2}
validation: {times: 1, sequences: 2}
stages:
  train: {context: 128, tokens: 4k, tokens_per_update: 512, optim: {lr: 2e-3}}
  evaluate: {kind: evaluate, parent: train}
evaluation: {domains: [code, docs], lengths: [128], sequences: 4}
report: {title: Side by side, rows: evaluate}
"""
SHAPE = ["model.d_model=48", "model.n_layers=2", "model.n_heads=2", "model.n_kv_heads=1", "model.head_dim=24", "model.d_ffn=96"]
SIDE = ["experiment=side", *CORPUS, *SHAPE]
UPDATES = 8
CHILDREN = {"corpus", *(f"{variant} | {stage} 128 | seed 0" for variant in ("rope", "abf") for stage in ("train", "evaluate"))}


def workplace(folder: Path) -> Path:
    """A folder to run the sweep from, with its experiment."""
    (folder / "experiments").mkdir(parents=True, exist_ok=True)
    (folder / "experiments" / "side.yaml").write_text(EXPERIMENT)
    return folder


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


def with_corpus(source: Path, folder: Path) -> Path:
    """A new workplace that has the prepared corpus of another one."""
    work = workplace(folder)
    (corpus,) = (source / "runs" / "stages").glob("data-*")
    shutil.copytree(corpus, work / "runs" / "stages" / corpus.name)
    return work


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
