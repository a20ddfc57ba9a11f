"""kill -9 of a sweep in mid-training, with stages of one rank and of two."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.mini import (
    MINI,
    REPOSITORY,
    TASKS,
    command,
    losses,
    record,
    run,
    run_here,
    runs,
    stages,
    with_corpus,
    with_database,
)

ROPE = [*MINI, *TASKS, "position=rope"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Stages of an uninterrupted sweep on one rank."""
    root = with_corpus(tmp_path_factory.mktemp("straight"))
    ended = run_here("lit_long.sweep", *ROPE, "tracking.enabled=false", f"root={root}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return stages(root)


def wait_for(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def update_of(root: Path, minimum: int):
    """Whether some training stage has written ``minimum`` updates."""
    return any(len(f.read_text().splitlines()) >= minimum for f in (root / "runs" / "stages").glob("train-*/metrics.jsonl"))


@pytest.mark.parametrize("trainer", ["cpu", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_killed_is_uninterrupted(straight, tmp_path, trainer):
    """kill -9 of the sweep at some update; the next command resumes: same token order, same losses to the last bit."""
    words = [*ROPE, f"trainer={trainer}"]
    expected, killed = straight, with_corpus(with_database(tmp_path / "killed"))
    if trainer != "cpu":
        root = with_corpus(tmp_path / "straight")
        assert run("lit_long.sweep", *words, f"root={root}").returncode == 0
        expected = stages(root)

    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    sweep = subprocess.Popen(
        command("lit_long.sweep", *words, f"root={killed}"), cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: update_of(killed, 5))
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    store = record(killed)
    assert "RUNNING" in {r.info.status for r in runs(store)}  # nobody could say otherwise

    resumed = run_here("lit_long.sweep", *words, f"root={killed}")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    for stage in ("base rope", "extend rope"):
        assert losses(stages(killed)[stage]) == losses(expected[stage])
        ours, theirs = (load_file(found[stage] / "weights.safetensors") for found in (stages(killed), expected))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {r.info.status for r in runs(store)} == {"FINISHED"}
    (base,) = [r for r in runs(store) if r.info.run_name == "rope | base 128 | seed 0"]
    steps = [point.step for point in store.get_metric_history(base.info.run_id, "train/loss")]
    assert steps == list(range(1, 13))  # resumed into the same run, no point twice


@pytest.mark.slow
def test_fsdp_on_two_ranks_gives_the_same_losses(straight, tmp_path):
    with_corpus(tmp_path)
    sharded = run("lit_long.sweep", *ROPE, "trainer=fsdp", f"root={tmp_path}")
    assert sharded.returncode == 0, sharded.stdout + sharded.stderr
    for stage in ("base rope", "extend rope"):
        assert losses(stages(tmp_path)[stage]) == pytest.approx(losses(straight[stage]), abs=1e-5)
    # Devices are not identity: the same stages, the same folders.
    assert stages(tmp_path)["extend rope"].name == straight["extend rope"].name
