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

from lit_long.config import StageConfig, plain
from lit_long.launch.local import make_command
from lit_long.pretrained.weights import read_checkpoint
from lit_long.stages.folder import is_done, write_stage
from lit_long.stages.run import run_stage
from tests.integration.mini import REPOSITORY
from tests.parallel import test_stage_processes as processes
from tests.parallel.test_stage_processes import UPDATES, counts, end, rows, start

stages = processes.stages


def stage(strategy: str = "fsdp", **trainer) -> StageConfig:
    config = processes.stage(strategy)
    return replace(config, trainer=replace(config.trainer, checkpoint_every=2, **trainer))


@pytest.fixture(scope="module")
def straight(stages):
    """The folder of an uninterrupted run on two ranks."""
    end(start(stages / "straight", stage()), stages / "straight")
    return stages / "straight"


def wait_for(condition, process: subprocess.Popen, folder: Path, seconds: float = 600) -> None:
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
    code = process.wait(600)
    process.stdin.close()
    return code, (folder / "error.txt").read_text() if (folder / "error.txt").exists() else ""


def begin(folder: Path, config: StageConfig, updates: int) -> subprocess.Popen:
    """The stage, as soon as it has done so many updates more than before."""
    (folder / "error.txt").unlink(missing_ok=True)  # as a sweep does
    kept = max((int(path.stem.partition("-")[2]) for path in (folder / "checkpoints").glob("step-*.ckpt")), default=0)
    process = start(folder, config)
    wait_for(lambda: len(rows(folder)) >= kept + updates, process, folder)
    return process


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_every_fault_tells_its_reason_and_the_stage_goes_on(stages):
    """One stage on two ranks through all of them, and to its end on one: the losses and weights of a run that nothing befell."""
    folder = stages / "faults"

    process = begin(folder, stage(checkpoint_async="always"), 6)
    wait_for(lambda: list((folder / "checkpoints").glob("*.writing")), process, folder)
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
    assert "most recent call first" in (folder / "log.txt").read_text(), "the stacks"

    process = begin(folder, stage(checkpoint_async="always"), 6)
    process.send_signal(signal.SIGTERM)
    code, reason = ended(process, folder)
    told = re.match(r"interrupted after update (\d+) of 48; the same command goes on from update (\d+)\n", reason)
    assert code == 130 and told and told[1] == told[2], (code, reason)
    assert saved(folder) == [f"step-{int(told[1]):08d}.ckpt"] and int(told[1]) < UPDATES

    other = stages / "nothing befell"
    for place in (folder, other):
        place.mkdir(exist_ok=True)
        write_stage(place, place.name, plain(stage("single")), stages / "store", None)
        run_stage(place, lambda message, done: None)
    assert is_done(folder) and not (folder / "error.txt").exists()
    assert [row["train/loss"] for row in rows(folder)] == pytest.approx([row["train/loss"] for row in rows(other)], abs=2e-5)
    assert [row["step"] for row in counts(folder)] == list(range(1, UPDATES + 1))
    ours, theirs = (load_file(place / "weights.safetensors") for place in (folder, other))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-4, rtol=0)


def kill_all(process: subprocess.Popen, first: int) -> None:
    """kill -9 of torchrun and both ranks, in one go."""
    children = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for child in children[first:] + children[:first]:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait(600)
    process.stdin.close()


def kill_while_saving(folder: Path, config: StageConfig, chance: random.Random) -> None:
    """kill -9 of everything at some moment of the writing of some checkpoint; what stays can be read."""
    left = set((folder / "checkpoints").glob("*.writing"))
    process = begin(folder, config, 0)
    wait_for(lambda: not any(path.exists() for path in left), process, folder)  # removed at the start
    target, seen = chance.randrange(4), set()

    def writing() -> bool:
        seen.update(path.name for path in (folder / "checkpoints").glob("*.writing"))
        return len(seen) > target or is_done(folder)

    wait_for(writing, process, folder)
    time.sleep(chance.random() * 0.05)
    kill_all(process, chance.randrange(3))
    for path in (folder / "checkpoints").glob("step-*.ckpt"):
        assert len(list(read_checkpoint(path))) > 10


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_twenty_times_while_saving_is_uninterrupted(stages, straight):
    """Whatever was complete can be read, and the run ends as the uninterrupted one did, to the last bit."""
    folder, chance = stages / "killed", random.Random(1)
    for kill in range(20):
        if kill % 8 == 7:  # it would have ended soon
            shutil.rmtree(folder / "checkpoints")
        trainer = replace(stage().trainer, checkpoint_every=1, checkpoint_async=chance.choice(["always", "never"]))
        kill_while_saving(folder, replace(stage(), trainer=trainer), chance)
    end(start(folder, stage()), folder)
    assert counts(folder) == counts(straight)
    ours, theirs = (load_file(place / "weights.safetensors") for place in (folder, straight))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_full_disk(stages, straight, tmp_path):
    """A small disk of its own: its checkpoint does not fit, then it does."""
    folder, config = tmp_path / "disk" / "stage", stage()
    folder.parent.mkdir()
    (tmp_path / "made").mkdir()
    write_stage(tmp_path / "made", "stage", plain(config), stages / "store", None)
    line = " ".join(make_command(folder, config))
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
