"""A sweep goes on on another machine: killed half-way, kept, and continued where only its archive is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_long.stages.folder import take_lock
from tests.integration.mini import (
    MINI,
    REPOSITORY,
    TASKS,
    command,
    losses,
    record,
    run_here,
    runs,
    stages,
    table,
    with_corpus,
    with_database,
)

WORDS = [*MINI, *TASKS, "grid.position=[rope,abf]", "stages.extend.tokens=8k"]


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """Where the sweep was killed when one variant was measured, and kept."""
    root = with_corpus(tmp_path_factory.mktemp("first"))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    words = command("lit_long.sweep", *WORDS, "tracking.enabled=false", f"root={root}")
    sweep = subprocess.Popen(words, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    latest = root / "runs" / "position_tiny" / "latest" / "sweep.json"
    deadline = time.monotonic() + 900  # of a busy machine
    while not (latest.is_file() and (stages(root)["evaluate rope"] / "DONE").is_file()):
        assert time.monotonic() < deadline and sweep.poll() is None, sweep.communicate()[0]
        time.sleep(0.02)
    sweep.send_signal(signal.SIGKILL)
    sweep.communicate()
    assert not (stages(root)["evaluate abf"] / "DONE").is_file()
    extend = stages(root)["extend abf"]
    while extend.is_dir() and (lock := take_lock(extend)) is None:  # its process ends when it sees that the sweep is gone
        time.sleep(0.1)
    if extend.is_dir():
        lock.close()
        shutil.rmtree(extend)  # it began with weights that were not archived
    kept = run_here("lit_long.report", "experiment=position_tiny", f"root={root}", "keep=kept.json", cwd=root)
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert "archive  experiments/archive: 5 stages added" in kept.stdout, kept.stdout
    return root


def moved(first: Path, root: Path) -> Path:
    """Another machine's folder, with the archive alone."""
    shutil.copytree(first / "experiments" / "archive", root / "experiments" / "archive")
    return with_database(root)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def rows(root: Path, *variants: str) -> list[dict[str, str]]:
    return [row for row in table(root) if row["variant"] in variants]


def ran(root: Path) -> set[str]:
    """What is below runs/stages, by its name in the sweep."""
    by_folder = {folder: name for name, folder in stages(root).items()}
    return {by_folder[folder] for folder in (root / "runs" / "stages").iterdir()}


@pytest.fixture(scope="module")
def second(first, tmp_path_factory) -> Path:
    root = moved(first, tmp_path_factory.mktemp("second"))
    before = contents(root / "experiments")
    planned = run_here("lit_long.sweep", *WORDS, f"root={root}", "dry_run=true", cwd=root)
    assert planned.stdout.count("archived ") == 4 and planned.stdout.count("to run ") == 3, planned.stdout + planned.stderr
    finished = run_here("lit_long.sweep", *WORDS, f"root={root}", cwd=root)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "evaluate rope: archived" in finished.stdout
    assert contents(root / "experiments") == before
    return root


def test_an_unfinished_sweep_is_kept(first):
    kept = json.loads((first / "kept.json").read_text())
    assert kept["unfinished"] == ["extend abf", "evaluate abf"]
    assert [one["rows"] for one in kept["runs"]] == [["base"], ["rope"]]
    assert [one["stage"] for one in kept["training"]] == ["base", "extend"]
    archive = first / "experiments" / "archive"
    assert [path.parent.name for path in archive.glob("*/weights.safetensors")] == [stages(first)["base rope"].name]


def test_only_what_is_missing_runs_elsewhere(first, second):
    assert ran(second) == {"corpus abf", "extend abf", "evaluate abf"}
    assert rows(second, "rope", "base") == rows(first, "rope", "base") != []  # to the last digit
    assert rows(second, "abf")
    report = (second / "runs" / "position_tiny" / "latest" / "report.md").read_text()
    assert "* started from weights archived in bf16: extend abf\n" in report
    assert "* from the archive, where they have no log: base, extend rope, evaluate_base, evaluate rope\n" in report
    assert json.loads((stages(second)["extend abf"] / "result.json").read_text())["parent_weights"] == "archived in bf16"
    assert "parent_weights" not in json.loads((stages(second)["evaluate abf"] / "result.json").read_text())
    for name, parent in {"extend rope": "base rope", "extend abf": "base rope", "evaluate abf": "extend abf"}.items():
        digest = hashlib.sha256((stages(second)[parent] / "result.json").read_bytes()).hexdigest()
        assert json.loads((stages(second)[name] / "result.json").read_text())["parent_run"] == digest[:12]
    assert "Not all from one run" not in report
    found = runs(record(second))
    assert len(found) == 8 and {one.info.status for one in found} == {"FINISHED"}
    (rope,) = [
        one for one in found if one.data.tags.get("lit_long.stage") == "evaluate" and one.data.tags["lit_long.variant"] == "rope"
    ]
    assert rope.data.tags["cached"] == "true" and "eval/perplexity/docs/256" in rope.data.metrics


def test_what_starts_from_archived_weights_is_trained_from_just_these(first, second, tmp_path):
    """Against the sweep continued where it was begun, its base's weights rounded to bf16 by torch."""
    shutil.copytree(first / "runs", tmp_path / "runs", symlinks=True)
    weights = stages(tmp_path)["base rope"] / "weights.safetensors"
    save_file({name: tensor.to(torch.bfloat16).float() for name, tensor in load_file(weights).items()}, weights)
    finished = run_here("lit_long.sweep", *WORDS, "tracking.enabled=false", f"root={tmp_path}", cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert losses(stages(tmp_path)["extend abf"]) == losses(stages(second)["extend abf"])
    assert rows(tmp_path, "abf") == rows(second, "abf")


def test_where_all_is_archived_nothing_runs(second, tmp_path):
    kept = run_here("lit_long.report", "experiment=position_tiny", f"root={second}", "keep=kept.json", cwd=second)
    assert kept.returncode == 0 and "2 stages added" in kept.stdout, kept.stdout + kept.stderr
    root = moved(second, tmp_path)
    finished = run_here("lit_long.sweep", *WORDS, f"root={root}", cwd=root)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert not (root / "runs" / "stages").exists()
    assert table(root) == table(second)
    again = run_here("lit_long.report", "experiment=position_tiny", f"root={root}", "keep=kept.json", cwd=root)
    assert again.returncode == 0 and "0 stages added" in again.stdout, again.stdout + again.stderr
    assert json.loads((root / "kept.json").read_text()) == json.loads((second / "kept.json").read_text())
    elsewhere = run_here(
        "lit_long.report", "experiment=position_tiny", f"uri=sqlite:///{root}/mlflow/mlflow.db", "out=from-mlflow", cwd=root
    )
    assert elsewhere.returncode == 0, elsewhere.stdout + elsewhere.stderr
    fetched = next((root / "from-mlflow" / "runs" / "position_tiny").glob("*/table.csv"))
    assert fetched.read_bytes() == (root / "runs" / "position_tiny" / "latest" / "table.csv").read_bytes()
