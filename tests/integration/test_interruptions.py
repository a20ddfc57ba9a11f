"""Interruptions and failures: kill -9, Ctrl-C, a stage that breaks; one rank and two."""

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
    reference_stages,
    run,
    runs,
    stages,
    table,
    with_stages,
)

ROPE = [*MINI, *TASKS, "position=rope"]
MEASURED = ("evaluate_base rope", "evaluate rope")


@pytest.fixture(scope="module")
def straight():
    """Stages of an uninterrupted sweep on one rank."""
    return reference_stages()


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
    expected, killed = straight, with_stages(tmp_path / "killed", "corpus rope", *MEASURED)
    if trainer != "cpu":
        root = with_stages(tmp_path / "straight", "corpus rope", *MEASURED)
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

    resumed = run("lit_long.sweep", *words, f"root={killed}")
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
    with_stages(tmp_path, "corpus rope", *MEASURED)
    sharded = run("lit_long.sweep", *ROPE, "trainer=fsdp", f"root={tmp_path}")
    assert sharded.returncode == 0, sharded.stdout + sharded.stderr
    for stage in ("base rope", "extend rope"):
        assert losses(stages(tmp_path)[stage]) == pytest.approx(losses(straight[stage]), abs=1e-5)
    # Devices are not identity: the same stages, the same folders.
    assert stages(tmp_path)["extend rope"].name == straight["extend rope"].name


def test_ctrl_c_ends_in_good_order(tmp_path):
    with_stages(tmp_path, "corpus rope")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    words = [*ROPE, "stages.base.tokens=512k", f"root={tmp_path}"]
    sweep = subprocess.Popen(
        command("lit_long.sweep", *words), cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
    )
    wait_for(lambda: update_of(tmp_path, 2))
    sweep.send_signal(signal.SIGINT)
    output, _ = sweep.communicate(timeout=600)
    assert sweep.returncode == 130 and "the same command goes on" in output
    store = record(tmp_path)
    assert {r.info.run_name: r.info.status for r in runs(store)}["rope | base 128 | seed 0"] == "KILLED"
    plan = run("lit_long.sweep", *words, "dry_run=true")
    assert "to resume" in plan.stdout or "to run     base" in plan.stdout


def test_a_failed_stage_is_told_and_the_others_go_on(tmp_path):
    """One variant's encoder breaks while training: exit code 1, its reason shown, the other variant in the table."""
    with_stages(tmp_path, "corpus rope", "base rope", "evaluate_base rope")
    work = tmp_path / "work"
    (work / "configs" / "position").mkdir(parents=True)
    (work / "broken.py").write_text(
        "from dataclasses import dataclass\n"
        "from pathlib import Path\n"
        "from lit_long.positions.schemes import RoPE\n\n"
        "@dataclass(frozen=True)\n"
        "class Broken(RoPE):\n"
        "    def rotation(self, positions, length):\n"
        "        if not Path(__file__).with_name('repaired').exists():\n"
        "            raise RuntimeError('the encoder broke at length ' + str(length))\n"
        "        return super().rotation(positions, length)\n"
    )
    (work / "configs" / "position" / "broken.yaml").write_text("scheme: broken:Broken\nbase: 625\n")
    sweep = run("lit_long.sweep", *MINI, *TASKS, "grid.position=[broken,rope]", f"root={tmp_path}", cwd=work)
    assert sweep.returncode == 1, sweep.stdout + sweep.stderr
    assert "extend broken: FAILED: RuntimeError: the encoder broke at length 256" in sweep.stdout
    assert "evaluate broken: skipped" in sweep.stdout and "evaluate rope: done" in sweep.stdout
    assert "  extend broken: RuntimeError: the encoder broke at length 256  (" in sweep.stdout.splitlines()[-1]
    assert [row for row in table(tmp_path) if row["variant"] == "rope" and row["metric"] == "perplexity"]
    assert "Traceback" not in sweep.stdout + sweep.stderr
    store = record(tmp_path)
    assert {r.info.run_name: r.info.status for r in runs(store)}["broken | extend 256 | seed 0"] == "FAILED"

    (work / "repaired").touch()  # the machine, not the code: other code would be another stage
    words = [*MINI, *TASKS, "grid.position=[broken,rope]", f"root={tmp_path}", "only_failed=true"]
    again = run("lit_long.sweep", *words, cwd=work)
    assert again.returncode == 0 and again.stdout.count("done in") == 2, again.stdout + again.stderr
    assert {r.info.status for r in runs(store)} == {"FINISHED"}
    nothing = run("lit_long.sweep", *words, cwd=work)
    assert nothing.returncode == 0 and "has failed. 7 of 7 are done" in nothing.stdout and len(nothing.stdout.splitlines()) == 1
