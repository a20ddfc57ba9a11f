"""Which launcher, which keys, which stages: refused before anything is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from lit_long.config import LauncherConfig, StageConfig, TrainerConfig, UserError, plain
from lit_long.launch.job import StageNode
from lit_long.launch.launcher import make_launcher
from lit_long.launch.local import LocalLauncher, Node, count_threads, make_command, make_environment
from lit_long.launch.runner import Active, Runner
from lit_long.stages.folder import write_stage
from tests.integration.mini import REPOSITORY

TRAIN = StageConfig(kind="train", trainer=TrainerConfig(strategy="fsdp"))


def stage(**trainer):
    return replace(TRAIN, trainer=replace(TRAIN.trainer, **trainer))


@pytest.mark.parametrize(
    ("config", "configs", "message"),
    [
        (LauncherConfig("slrum"), [], "launcher.name=slrum: there is no such launcher; did you mean 'slurm'"),
        (LauncherConfig(partition="gpu"), [], "launcher.partition says nothing to launcher=local; it is for launcher=slurm"),
        (
            LauncherConfig("ray", setup=["true"]),
            [],
            "launcher.setup says nothing to launcher=ray; it is for launcher=torchrun or slurm",
        ),
        (LauncherConfig("slurm", cluster="locl"), [], "launcher.cluster=locl: must be slurm or local; did you mean 'local'"),
        (LauncherConfig(), [stage(nodes=2)], "trainer.nodes=2: launcher=local runs stages on one machine"),
        (LauncherConfig("slurm", cluster="local"), [stage(nodes=2)], "runs stages on one machine"),
        (LauncherConfig("torchrun"), [stage(nodes=2)], r"name the machines, launcher.hosts=\[a,b\]"),
        (LauncherConfig("torchrun", hosts=["a"]), [stage(nodes=2)], "launcher.hosts names 1 machines, and trainer.nodes=2"),
        (LauncherConfig("torchrun", hosts=["localhost", "b"]), [stage(nodes=2)], "cannot reach the first one as localhost"),
    ],
)
def test_refused(config, configs, message, tmp_path):
    with pytest.raises(UserError, match=message):
        make_launcher(config, tmp_path).check(configs)
    assert list(tmp_path.iterdir()) == []


def test_stopping_closes_all_records_even_if_one_cannot_be():
    """A metric's name that no tracker takes, say: the others' runs would stay RUNNING."""
    closed = []

    def end(stage, run, mirror, status):
        if stage == "second":
            raise ValueError("no name for a metric")
        closed.append((stage, status))

    plan = SimpleNamespace(sweep=SimpleNamespace(launcher=LauncherConfig()), stages=[], chosen=[], left=[])
    runner = Runner(plan, SimpleNamespace(end=end), None, None)
    running = SimpleNamespace(stop=lambda: "")
    for name in ("first", "second", "third"):
        runner.active[name] = Active(name, None, None, running, mirror=object())
    runner.stop()
    assert closed == [("first", "KILLED"), ("third", "KILLED")]


def test_a_sweep_under_torchrun_is_refused(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    sweep = ["-m", "lit_long.sweep", f"root={tmp_path}", "tracking.enabled=false"]
    done = subprocess.run([*torchrun, *sweep], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode and "it would run once in every rank" in done.stderr and list(tmp_path.iterdir()) == []


def test_torchrun_s_variables_alone_refuse_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert make_launcher(LauncherConfig(), tmp_path).name == "local"


def test_gpus_are_shared_out(tmp_path, monkeypatch):
    """Stages side by side run as long as there are GPUs, each on its own; CPU stages as long as there are cores."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,GPU-7")
    launcher = LocalLauncher(LauncherConfig(parallel=4), tmp_path)
    one, two, four = (stage(accelerator="gpu", devices=count) for count in (1, 2, 4))
    assert launcher.fits(two, []) and launcher.fits(two, [one]) and not launcher.fits(two, [two])
    assert launcher.fits(four, [])  # nothing else would free GPUs for it: check refuses it
    with pytest.raises(UserError, match="trainer.devices=4: this machine shows 3 GPUs"):
        launcher.check([one, four])
    monkeypatch.setattr("lit_long.launch.local.available_cores", lambda: 4)
    assert launcher.fits(stage(devices=2), [stage(devices=2)]) and not launcher.fits(stage(devices=2), [stage(devices=3)])
    assert launcher.fits(stage(devices=8), [])


def test_the_command_of_a_node(tmp_path):
    alone, first, second = (
        " ".join(make_command(tmp_path, stage(nodes=nodes, devices=4), node)[1:])
        for nodes, node in ((1, Node()), (2, Node(0, 2, "host:1234")), (2, Node(1, 2, "host:1234")))
    )
    assert alone == f"-m lit_long.launch.ranks --standalone --nproc_per_node=4 -m lit_long.stage {tmp_path} watch_parent=true"
    assert first.replace("--node_rank=0", "--node_rank=1") == second
    assert re.search("--nnodes=2 --node_rank=0 --master_addr=host --master_port=1234 --nproc_per_node=4", first)


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path):
    with pytest.raises(UserError, match=r"does not see .*nowhere.* Put the sweep on storage that all nodes share: root=FOLDER"):
        StageNode(tmp_path / "nowhere", Node(), threads=1, patience=0)


def test_memory_of_stages(monkeypatch):
    """On GPUs torch's segments grow, unless the user said something else, in either name; on CPUs glibc keeps what it has."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "MALLOC_TOP_PAD_"):
        monkeypatch.delenv(name, raising=False)
    on_cpu, on_gpu = (make_environment(stage(accelerator=accelerator), 1) for accelerator in ("cpu", "gpu"))
    assert on_gpu["PYTORCH_ALLOC_CONF"] == "expandable_segments:True" and "MALLOC_TOP_PAD_" not in on_gpu
    assert "PYTORCH_ALLOC_CONF" not in on_cpu and "MALLOC_TOP_PAD_" in on_cpu
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    assert "PYTORCH_ALLOC_CONF" not in make_environment(stage(accelerator="gpu"), 1)


def test_cores_are_shared_by_ranks_and_by_stages(monkeypatch):
    monkeypatch.setattr("lit_long.launch.local.available_cores", lambda: 16)
    assert count_threads(stage(devices=1)) == 16 and count_threads(stage(devices=4)) == 4
    assert count_threads(stage(devices=4), parallel=2) == 2 and count_threads(stage(nodes=2, devices=4)) == 4  # a node's own
    assert count_threads(stage(devices=4, threads=8), parallel=2) == 2


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no way to ask for the cores of a process")
def test_cores_are_those_that_the_process_may_use(monkeypatch):
    """As under taskset, or a scheduler: threads for cores of others would wait for one another."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 5, 7})
    assert count_threads(stage(devices=1)) == 3
    assert not LocalLauncher(LauncherConfig(), None).fits(stage(devices=2), [stage(devices=2)])


def test_a_job_of_other_nodes_than_the_stage_wants(tmp_path):
    """It was submitted for one machine, and the stage has been changed to two since."""
    write_stage(tmp_path, "identity", {"kind": "train", "trainer": plain(stage(nodes=2, devices=1).trainer)}, None, None)
    with pytest.raises(UserError, match=r"trainer.nodes=2, and the job has 1; was the stage changed"):
        StageNode(tmp_path, Node(), threads=1, patience=0)
