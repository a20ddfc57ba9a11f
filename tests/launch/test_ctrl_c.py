"""Ctrl-C in mid-training, with two stages side by side: both end in good order, and the same command goes on."""

from __future__ import annotations

import signal

from tests.launch.side import finished, sweep, wait_for, workplace
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
