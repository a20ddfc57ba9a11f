"""Stages as forks: what they compute is what stages do that were started alone, to the bit; and what befalls one of them, or the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import psutil
import pytest
import torch
from safetensors.torch import load_file

from lit_long.config import EvaluationConfig, LauncherConfig, plain
from lit_long.launch.launcher import ReadyStage
from lit_long.launch.local import LocalLauncher, can_fork
from lit_long.stages.folder import is_done, take_lock, write_stage
from tests.integration.mini import REPOSITORY
from tests.parallel import test_stage_processes as processes
from tests.parallel.test_stage_processes import counts, rows, start

stages = processes.stages
EVALUATION = EvaluationConfig(domains=["long"], lengths=[64], sequences=1, retrieval_lengths=[], retrieval_examples=2)


def stage(kind="train", **more):
    config = processes.stage()
    config.trainer.threads = 1
    return replace(config, kind=kind, evaluation=EVALUATION, **more)


@contextmanager
def made(folder):
    """A launcher, which is closed in the end, and its server with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.chdir(REPOSITORY)
        launcher = LocalLauncher(LauncherConfig(parallel=2), folder)
        yield launcher
        launcher.close()
    assert launcher.server is None or launcher.server.process.returncode is not None


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    """Of tests that leave its server alive."""
    with made(tmp_path_factory.mktemp("launcher")) as launcher:
        yield launcher


@pytest.fixture
def own_launcher(tmp_path):
    """Of a test that does something to its server."""
    with made(tmp_path) as launcher:
        yield launcher


@contextmanager
def started(launcher, folder, config, parent=None):
    folder.mkdir(exist_ok=True)
    write_stage(folder, folder.name, plain(config), folder.parent / "store", parent)
    with take_lock(folder) as lock, pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_CURRENT_TEST")  # a sweep's environment does not change
        (running,) = launcher.start([ReadyStage(folder, folder.name, config, lock.fileno())], print)
    # Now the stage alone holds the lock.
    try:
        yield running
    finally:
        if running.exit_code() is None:
            running.stop()


def wait(running, folder) -> int:
    deadline = time.monotonic() + 600
    while (code := running.exit_code()) is None:
        assert time.monotonic() < deadline, (folder / "log.txt").read_text()
        time.sleep(0.05)
    return code


def wait_for_updates(running, folder, updates) -> None:
    deadline = time.monotonic() + 600
    while len(rows(folder)) < updates:
        assert time.monotonic() < deadline and running.exit_code() is None, (folder / "log.txt").read_text()
        time.sleep(0.005)


def test_it_is_the_stage_that_was_started_alone(stages, launcher):
    """Losses, weights, log and measurements."""
    alone = start(stages / "alone", stage())
    with started(launcher, stages / "one", stage()) as one:
        assert wait(one, stages / "one") == alone.wait(600) == 0
    alone.stdin.close()
    ours, theirs = (load_file(stages / name / "weights.safetensors") for name in ("one", "alone"))
    assert is_done(stages / "one") and counts(stages / "one") == counts(stages / "alone")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert (stages / "one" / "log.txt").read_text() == (stages / "alone" / "log.txt").read_text()

    found = []
    with started(launcher, stages / "measured", stage("evaluate"), stages / "one") as running:
        assert wait(running, stages / "measured") == 0
    alone = start(stages / "measured-alone", stage("evaluate"), stages / "alone")
    assert alone.wait(600) == 0
    alone.stdin.close()
    for name in ("measured", "measured-alone"):
        found.append(json.loads((stages / name / "result.json").read_text())["measurements"])
    assert found[0] == found[1] and len(found[0]) > 1


def test_what_a_fork_holds_and_how_it_ends(stages, launcher):
    """A session, a log, its lock and its own standard input, nothing of its neighbour's; kill -9, SIGTERM, and the end of who started it."""
    long = replace(stage(), tokens=4_000_000)
    with started(launcher, stages / "killed", long) as killed, started(launcher, stages / "stopped", long) as stopped:
        assert take_lock(stages / "killed") is None and take_lock(stages / "stopped") is None
        pids = [running.process.pid for running in (killed, stopped)]
        wait_for_updates(killed, stages / "killed", 2)
        wait_for_updates(stopped, stages / "stopped", 2)
        assert all(os.getsid(pid) == pid for pid in pids) and len({*pids, launcher.server.process.pid}) == 3
        held = {os.path.realpath(f"/proc/{pids[0]}/fd/{fd}") for fd in os.listdir(f"/proc/{pids[0]}/fd")}
        assert {str(stages / "killed" / name) for name in ("lock", "log.txt")} <= held
        assert not any(name.startswith(str(stages / "stopped")) for name in held)
        os.kill(pids[0], signal.SIGKILL)
        assert wait(killed, stages / "killed") == -signal.SIGKILL
        take_lock(stages / "killed").close()
        stopped.stop()
        assert stopped.exit_code() == 130 and "interrupted after update" in (stages / "stopped" / "error.txt").read_text()
    with started(launcher, stages / "orphan", long) as orphan:
        wait_for_updates(orphan, stages / "orphan", 2)
        orphan.process.stdin.close()  # as if the sweep had died: it ends as by SIGTERM
        assert wait(orphan, stages / "orphan") == 130 and list((stages / "orphan" / "checkpoints").iterdir())


def test_a_killed_server(stages, own_launcher):
    """Its stage goes on and counts as done; one that it had not forked yet has failed; the next is started by itself."""
    with started(own_launcher, stages / "goes-on", stage()) as running:
        wait_for_updates(running, stages / "goes-on", 1)
        own_launcher.server.process.kill()
        own_launcher.server.process.wait()
        assert running.exit_code() is None
        assert wait(running, stages / "goes-on") == 0 and is_done(stages / "goes-on")
    with started(own_launcher, stages / "by-itself", stage()) as running:
        assert isinstance(running.process, subprocess.Popen)
        running.stop()

    other = LocalLauncher(LauncherConfig(), stages)
    with started(other, stages / "too-soon", stage()) as running:
        other.server.process.kill()
        assert wait(running, stages / "too-soon") == 1
        with pytest.raises(ProcessLookupError, match="ended before it forked"):
            _ = running.process.pid
    other.close()


def test_a_server_ends_with_the_sweep(stages, tmp_path):
    """kill -9 of who started it."""
    program = (
        "import time; from lit_long.launch.fork_server import ForkServer; import os\n"
        "server = ForkServer(dict(os.environ)); print(server.process.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as sweep:
        server = psutil.Process(int(sweep.stdout.readline()))
        sweep.kill()
    server.wait(60)


def test_what_cannot_be_imported_is_told_by_the_stage(stages, own_launcher, tmp_path, monkeypatch):
    (tmp_path / "lightning").mkdir()
    (tmp_path / "lightning" / "__init__.py").write_text("raise ImportError('a broken installation')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{REPOSITORY}")
    with started(own_launcher, stages / "broken", stage()) as running:
        assert wait(running, stages / "broken") == 1
    assert "a broken installation" in (stages / "broken" / "error.txt").read_text()


def test_which_stages_are_forked():
    assert can_fork(stage()) and can_fork(stage("evaluate"))
    on_gpu, of_two = stage(), processes.stage("fsdp")
    on_gpu.trainer.accelerator = "gpu"
    own = replace(stage("evaluate"), evaluation=replace(EVALUATION, tasks=["mine:Task"]))
    assert not any(can_fork(config) for config in (on_gpu, of_two, own, stage("data")))


def test_another_environment_is_not_the_server_s(stages, launcher):
    with started(launcher, stages / "first", stage()) as first, started(launcher, stages / "four", stage()) as second:
        assert not isinstance(first.process, subprocess.Popen) and not isinstance(second.process, subprocess.Popen)
        config = stage()
        config.trainer.threads = 2
        with started(launcher, stages / "two-threads", config) as other:
            assert isinstance(other.process, subprocess.Popen)
    without = LocalLauncher(LauncherConfig(fork=False), stages)
    with started(without, stages / "no-fork", stage()) as running:
        assert isinstance(running.process, subprocess.Popen) and without.server is None
