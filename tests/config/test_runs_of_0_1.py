"""A sweep that version 0.1 (commit 6d0d953) ran half of: what it did is done, what it was at goes on, and the record is the same one.

fixtures/runs_of_0_1.tar.xz: cut/ (runs/ and mlflow/ as the kill left them, in the folder /tmp/fix), texts/ and experiment.yaml that it was run with,
and expected.csv, the table that 0.1 gave when nobody killed it.
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import sqlite3
import tarfile
from pathlib import Path

import pytest

from tests.integration.mini import record, run_here

ARCHIVE = Path(__file__).parent / "fixtures" / "runs_of_0_1.tar.xz"
MADE_IN = "/tmp/fix/cut"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where the sweep was run, moved here."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    database = sqlite3.connect(tmp_path / "cut" / "mlflow" / "mlflow.db")
    with database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (MADE_IN, str(tmp_path / "cut")))
    database.close()
    return tmp_path


def rows(file: Path) -> dict[tuple[str, ...], float]:
    with file.open() as opened:
        return {(r["variant"], r["metric"], r["domain"], r["length"]): float(r["mean"]) for r in csv.DictReader(opened)}


def test_a_sweep_that_0_1_began_goes_on(folder):
    stages = folder / "cut" / "runs" / "stages"
    before = {path: path.stat().st_mtime_ns for path in stages.glob("*/result.json")}
    interrupted = next(path.parent for path in stages.glob("train-*/metrics.jsonl") if not (path.parent / "DONE").is_file())
    losses = (interrupted / "metrics.jsonl").read_text()
    made_with = json.loads(next(stages.glob("data-*/manifest.json")).read_text())["inputs"]["tokenizers"]
    if importlib.metadata.version("tokenizers") != made_with:
        pytest.skip(
            "the tokenizer's trainer is another version than the one that made the runs, so the data have another identity"
        )
    runs = {run.info.run_id for run in record_runs(folder)}

    words = ("experiment=experiment.yaml", "root=cut")
    planned = run_here("lit_long.sweep", *words, "dry_run=true", cwd=folder)
    assert planned.stdout.count("cached ") == 4 and planned.stdout.count("to resume ") == 1, planned.stdout + planned.stderr
    finished = run_here("lit_long.sweep", *words, cwd=folder)
    assert finished.returncode == 0, finished.stdout + finished.stderr

    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing ran again
    assert len(list(stages.iterdir())) == 6
    assert (interrupted / "metrics.jsonl").read_text().startswith(losses.partition('"step": 5')[0])
    expected = rows(folder / "expected.csv")
    found = rows(folder / "cut" / "runs" / "experiment" / "latest" / "table.csv")
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-3)  # bit-equal on the machine that made them
    assert all(found[key] == value for key, value in expected.items() if key[0] == "rope")  # measured by 0.1
    after = record_runs(folder)
    assert runs < {run.info.run_id for run in after} and len(after) == 7  # the parent and six stages, none twice
    assert {run.info.status for run in after} == {"FINISHED"}


def record_runs(folder: Path) -> list:
    client = record(folder / "cut")
    return client.search_runs([client.get_experiment_by_name("experiment").experiment_id])
