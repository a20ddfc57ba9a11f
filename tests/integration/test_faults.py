"""What befalls a stage on two ranks: kill -9 of one, a rank that hangs, SIGTERM, a full disk. Each leaves its reason and a stage that goes on."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from lit_long.checkpoints.own import own_tensors
from lit_long.config import StageConfig, plain
from lit_long.launch.local import command
from lit_long.stages.folder import is_done, write_stage
from tests.integration import test_stage_processes as processes
from tests.integration.mini import REPOSITORY
from tests.integration.test_stage_processes import UPDATES, counts, end, rows, start

stages = processes.stages


def stage(strategy: str = "fsdp", **trainer) -> StageConfig:
    config = processes.stage(strategy)
    return replace(config, trainer=replace(config.trainer, checkpoint_every=2, **trainer))


@pytest.fixture(scope="module")
def straight(stages):
    """The folder of an uninterrupted run on two ranks."""
    end(start(stages / "straight", stage()), stages / "straight")
    return stages / "straight"


def wait_for(condition, process: subprocess.Popen, folder: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, (folder / "log.txt").read_text()
        assert time.monotonic() < deadline, "waited too long: " + (folder / "log.txt").read_text()
        time.sleep(0.002)


def rank(process: subprocess.Popen, number: int) -> psutil.Process:
    """The process of a rank."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.environ().get("RANK") == str(number):
                return child
    raise AssertionError(f"no rank {number}")


def ended(process: subprocess.Popen, folder: Path) -> tuple[int, str]:
    """The exit code, and the reason that the stage's folder gives."""
    code = process.wait(120)
    process.stdin.close()
    return code, (folder / "error.txt").read_text() if (folder / "error.txt").exists() else ""


def begin(folder: Path, config: StageConfig, updates: int) -> subprocess.Popen:
    """The stage, as soon as it has done so many updates more than before."""
    (folder / "error.txt").unlink(missing_ok=True)  # as a sweep does
    before = len(rows(folder))
    process = start(folder, config)
    kept = [0] if not before else [int(path.stem.partition("-")[2]) for path in (folder / "checkpoints").glob("step-*.ckpt")]
    wait_for(lambda: len(rows(folder)) >= max(kept) + updates, process, folder)
    return process


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_every_fault_tells_its_reason_and_the_stage_goes_on(stages, straight):
    """One stage, through all of them, to weights that equal those of a run without."""
    folder = stages / "faults"

    process = begin(folder, stage(), 6)
    rank(process, 1).kill()
    code, reason = ended(process, folder)
    assert code == 1 and not is_done(folder)
    assert re.match(r"rank 1 by SIGKILL \(was the memory used up\?\): ended on .*goes on from the last checkpoint", reason), (
        reason
    )

    process = begin(folder, stage(timeout_minutes=0.1), 6)
    hanging = rank(process, 1)
    hanging.suspend()
    wait_for(lambda: (folder / "error.txt").exists(), process, folder)
    hanging.resume()  # torchrun would wait half a minute for it to end
    code, reason = ended(process, folder)
    assert code == 1
    assert reason.startswith("nothing has moved for 0.1 minutes (trainer.timeout_minutes): rank 1 of 2 did not answer"), reason
    assert "in on_train_batch_end" in (folder / "log.txt").read_text() or "training_step" in (folder / "log.txt").read_text()

    process = begin(folder, stage(checkpoint_async="always"), 6)
    process.send_signal(signal.SIGTERM)
    code, reason = ended(process, folder)
    told = re.match(r"interrupted after update (\d+) of 48; the same command goes on from update (\d+)\n", reason)
    assert code == 130 and told and told[1] == told[2], (code, reason)
    assert saved(folder) == [f"step-{int(told[1]):08d}.ckpt"] and int(told[1]) < UPDATES

    end(start(folder, stage("single")), folder)
    assert [row["train/loss"] for row in rows(folder)] == pytest.approx([row["train/loss"] for row in rows(straight)], abs=2e-5)
    assert [row["step"] for row in counts(folder)] == list(range(1, UPDATES + 1))
    ours, theirs = (load_file(place / "weights.safetensors") for place in (folder, straight))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-4, rtol=0)


def kill_all(process: subprocess.Popen, first: int) -> None:
    """kill -9 of torchrun and both ranks, in one go."""
    children = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for child in children[first:] + children[:first]:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait(60)
    process.stdin.close()


def kill_while_saving(folder: Path, config: StageConfig, chance: random.Random) -> None:
    """kill -9 of everything at some moment of the writing of some checkpoint; what stays can be read."""
    process = begin(folder, config, 1)
    target = chance.randrange(4)
    seen = set()

    def writing() -> bool:
        seen.update(path.name for path in (folder / "checkpoints").glob("*.writing"))
        return len(seen) > target or is_done(folder)

    wait_for(writing, process, folder)
    time.sleep(chance.random() * 0.05)
    kill_all(process, chance.randrange(3))
    for path in (folder / "checkpoints").glob("step-*.ckpt"):
        assert len(list(own_tensors(path))) > 10


def check_killed(stages: Path, straight: Path, times: int, seed: int) -> None:
    folder, chance = stages / f"killed {times}", random.Random(seed)
    config = stage()
    config.trainer.checkpoint_every = 1
    kills = 0
    while kills < times:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True) if kills % 8 == 7 else None
        kill_while_saving(
            folder, replace(config, trainer=replace(config.trainer, checkpoint_async=chance.choice(["always", "never"]))), chance
        )
        kills += 1
    end(start(folder, config), folder)
    assert counts(folder) == counts(straight)
    ours, theirs = (load_file(place / "weights.safetensors") for place in (folder, straight))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_killed_while_saving_is_uninterrupted(stages, straight):
    check_killed(stages, straight, 2, seed=0)


@pytest.mark.slow
def test_killed_twenty_times_while_saving_is_uninterrupted(stages, straight):
    check_killed(stages, straight, 20, seed=1)


@pytest.mark.slow
def test_a_full_disk(stages, straight, tmp_path):
    """A small disk of its own: its checkpoint does not fit, then it does."""
    folder, config = tmp_path / "disk" / "stage", stage()
    folder.parent.mkdir()
    (tmp_path / "made").mkdir()
    write_stage(tmp_path / "made", "stage", plain(config), stages / "store", None)
    line = " ".join(command(folder, config))
    # room for one checkpoint and a half: that of update 2 fits, that of update 4 does not beside it
    size = sum(path.stat().st_size for path in (straight / "checkpoints").rglob("*") if path.is_file()) * 3 // 2 // 1024 + 60
    script = f"""
        mount -t tmpfs -o size={size}k tmpfs {tmp_path}/disk || exit 99
        mkdir {folder} && cp {tmp_path}/made/stage.yaml {folder}/ && ln -s {stages}/store {tmp_path}/disk/store
        {line}; echo "stopped $?"
        ls {folder}/checkpoints; cat {folder}/error.txt
        mount -o remount,size=1g {tmp_path}/disk
        {line}; echo "ended $?"
        ls {folder}; cp {folder}/weights.safetensors {tmp_path}/
    """
    unshare = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*unshare, "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as shell:
        out, errors = shell.stdout.read(), shell.stderr.read()
    if shell.returncode == 99 or "unshare" in errors:
        pytest.skip(f"no disk of one's own can be mounted here: {errors}")
    assert "stopped 2" in out and "ended 0" in out, out + errors
    assert re.search(r"stopped 2\nstep-00000002.ckpt\n.*step-00000004.ckpt: no space left .*step-00000002.ckpt, is whole", out), (
        out
    )
    ours, theirs = (load_file(place / "weights.safetensors") for place in (tmp_path, straight))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
