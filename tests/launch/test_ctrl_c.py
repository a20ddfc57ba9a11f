"""Ctrl-C in mid-training, with two stages side by side: both end in good order, and the same command goes on. So they do when the terminal goes away, and
when the sweep is killed."""

from __future__ import annotations

import signal

import pytest

from tests.launch.side import finished, folders, sweep, wait_for, workplace
from tests.launch.test_launchers import alive, children_of, facts_of_runs, stages_of, training


def test_ctrl_c_ends_both(tmp_path):
    work = workplace(tmp_path)
    process = sweep(work, "launcher.parallel=2", "stages.train.tokens=4M")
    wait_for(lambda: training(work))
    stages, children = stages_of(process.pid), children_of(process.pid)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 130 and "the same command goes on" in output
    assert len(stages) == 2 and len(children) == 3 and not alive(children)  # the third one is the server
    status = facts_of_runs(work)
    assert [status[name] for name in ("train rope", "train abf")] == ["KILLED"] * 2
    assert finished(work, "launcher.parallel=2", "stages.train.tokens=4M", "dry_run=true").count("to resume ") == 2


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_what_ends_the_sweep_loses_no_update(number, tmp_path):
    """The terminal is closed, ssh loses its connection, or the sweep is killed: its stages notice it and save what they have."""
    work = workplace(tmp_path)
    words = ("launcher.parallel=2", "stages.train.tokens=4M", "trainer.checkpoint_every=100000", "tracking.enabled=false")
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    process = sweep(work, *words)
    signal.signal(signal.SIGHUP, before)
    wait_for(lambda: training(work))
    stages = stages_of(process.pid)
    process.send_signal(number)
    output, _ = process.communicate(timeout=600)
    wait_for(lambda: not alive(stages))
    assert process.returncode == (130 if number == signal.SIGHUP else -signal.SIGKILL)
    assert number == signal.SIGKILL or "interrupted; the same command goes on" in output  # a log is no terminal
    for folder in folders(work, "train"):
        (checkpoint,) = (folder / "checkpoints").glob("*.ckpt")
        updates = int(checkpoint.stem.partition("-")[2])
        said = f"interrupted after update {updates} of 8192; the same command goes on from update {updates}\n"
        assert (folder / "error.txt").read_text() == said
    assert finished(work, *words, "dry_run=true").count("to resume ") == 2
