"""A training stage with phases, killed with -9 across a switch and an epoch, and gone on by hand."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from lit_long.config import StageConfig
from lit_long.data.token_store import open_store
from lit_long.stages.folder import is_done
from tests.integration.mini import REPOSITORY
from tests.parallel import test_stage_processes as processes
from tests.parallel.test_stage_processes import DOMAINS, EVERY, SWITCH, UPDATES, counts, rows, stage, start
from tests.test_surroundings import OF_OTHERS

stages, straight = processes.stages, processes.straight


def kill_after(folder: Path, config: StageConfig, update: int) -> tuple[int, int]:
    """kill -9 of the stage as soon as it has reported an update: how many it had then, and of which it kept the last checkpoint."""
    process = start(folder, config)
    deadline = time.monotonic() + 600
    while len(rows(folder)) < update and process.poll() is None:
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (folder / "log.txt").read_text()
    kept = max(int(file.stem.partition("-")[2]) for file in (folder / "checkpoints").glob("step-*.ckpt"))
    return len(rows(folder)), kept


def pass_ends(stages: Path, folder: Path) -> set[int]:
    """The updates in which a pass over some domain ends."""
    found = set()
    for name in DOMAINS:
        tokens = int(open_store(stages / "store").documents(name, "train").lengths.sum())
        passes = [row[f"data/{name}/tokens"] // tokens for row in rows(folder)]
        found |= {step + 2 for step, (before, after) in enumerate(itertools.pairwise(passes)) if after > before}
    return found


def test_kill_9_across_a_switch_and_an_epoch_is_uninterrupted(stages, straight):
    """Killed when phase and pass have changed since the last checkpoint, so that the resumed run crosses both once more. What the surroundings
    say of ranks changes nothing."""
    folder = stages / "killed"
    boundary = next(n for n in sorted(pass_ends(stages, straight)) if EVERY < n < 2 * EVERY - 10)
    crossed = max(SWITCH + 1, boundary)
    reached, kept = kill_after(folder, stage(), crossed)
    assert kept == EVERY and reached < UPDATES, "killed too late for what this tests"
    # It goes on by hand, in a pod, or a shell, whose variables say that it is rank 1 of 4.
    words = [sys.executable, "-m", "lit_long.stage", str(folder)]
    environment = os.environ | OF_OTHERS | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and is_done(folder), done.stdout + done.stderr
    assert counts(folder) == counts(straight) and [row["step"] for row in counts(folder)] == list(range(1, UPDATES + 1))
    ours, theirs = (load_file(place / "weights.safetensors") for place in (folder, straight))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    results = [json.loads((place / "result.json").read_text()) for place in (folder, straight)]
    assert results[0]["data"] == results[1]["data"]
