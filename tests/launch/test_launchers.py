"""The same two trials under every launcher: same identities, same table to the byte, same tree in MLflow; killed, interrupted and joined again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.mini import REPOSITORY, with_broken_encoder
from tests.launch import ssh_server
from tests.launch.side import CHILDREN, UPDATES, facts, finished, folders, rows, sweep, wait_for, workplace

RAY = ["launcher=ray", "launcher.cpus=1"]
SUBMITIT = ["launcher=slurm", "launcher.cluster=local", "launcher.cpus=1"]


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory):
    """Workplace of a finished sweep on this machine, two stages at a time; and how many processes ran at once at most."""
    work, most = workplace(tmp_path_factory.mktemp("reference")), 0
    process = sweep(work, "launcher.parallel=2")
    while process.poll() is None:
        most = max(most, len(stages_of(process.pid)))
        time.sleep(0.1)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return work, most


@pytest.fixture(scope="module")
def reference(side_by_side):
    return side_by_side[0]


@pytest.fixture(scope="module")
def expected(reference):
    found = facts(reference)
    assert set(found["status"]) == CHILDREN | {""} and set(found["status"].values()) == {"FINISHED"}
    assert [len(curve) for name, curve in found["curves"].items() if " | train " in name] == [UPDATES] * 2
    return found


def children_of(pid: int) -> list[int]:
    import psutil

    with suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def stages_of(pid: int) -> list[int]:
    """Those of its children that are forked stages: their names are those of their folders."""
    import psutil

    found = []
    for child in children_of(pid):
        with suppress(psutil.Error):
            if psutil.Process(child).name().startswith(("train-", "evaluate-")):
                found.append(child)
    return found


def alive(pids: list[int]) -> list[int]:
    import psutil

    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def training(work: Path, updates: int = 1) -> bool:
    """Whether both trials are training at the same time."""
    return [len(rows(folder)) >= updates for folder in folders(work, "train")] == [True, True]


def test_side_by_side(side_by_side, expected):
    assert side_by_side[1] == 2


@pytest.mark.slow
def test_one_after_the_other(expected, tmp_path):
    work = workplace(tmp_path)
    finished(work)
    assert facts(work) == expected


def facts_of_runs(work: Path) -> dict[str, str]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{work}/mlflow/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("side").experiment_id])
    tags = [run.data.tags for run in runs]
    names = [f"{each.get('lit_long.stage')} {each.get('lit_long.variant')}" for each in tags]
    return {name: run.info.status for name, run in zip(names, runs, strict=True)}


def test_jobs_outlive_the_sweep_and_are_joined(expected, tmp_path):
    """submitit's processes: kill -9 of the sweep, and the next command watches the very jobs that the first one submitted."""
    work = workplace(tmp_path)
    process = sweep(work, *SUBMITIT)
    wait_for(lambda: len(list((work / "runs" / "stages").glob("train-*/job.json"))) == 2)
    jobs = {folder.name: json.loads((folder / "job.json").read_text())["id"] for folder in folders(work, "train")}
    process.kill()
    process.wait()
    assert not any((folder / "DONE").exists() for folder in folders(work, "train")), "killed too late for what this tests"
    assert len(alive([int(job) for job in jobs.values()])) == 2
    finished(work, *SUBMITIT)
    assert facts(work) == expected
    submitted = {file.name.removesuffix("_submitted.pkl") for file in (work / "runs" / "submitit").glob("*_submitted.pkl")}
    assert set(jobs.values()) < submitted and len(submitted) == 4, "each stage was submitted once"
    assert not list((work / "runs" / "stages").glob("*/job.json"))


@pytest.mark.slow
def test_ctrl_c_leaves_jobs_or_cancels_them(tmp_path):
    """launcher.cancel_on_exit=false: they go on. A sweep with another launcher joins them; with its Ctrl-C they end."""
    work = workplace(tmp_path)
    for launcher, left in (([*SUBMITIT, "launcher.cancel_on_exit=false"], 2), (["launcher.parallel=2"], 0)):
        before = time.time()
        process = sweep(work, *launcher, "stages.train.tokens=4M")
        wait_for(lambda before=before: training(work) and all(recorded(folder) > before for folder in folders(work, "train")))
        jobs = [int(json.loads((folder / "job.json").read_text())["id"]) for folder in folders(work, "train")]
        process.send_signal(signal.SIGINT)
        process.wait(90)
        os.set_blocking(process.stdout.fileno(), False)  # jobs that go on hold the pipe open
        output = process.stdout.read()
        assert process.returncode == 130, output
        assert len(alive(jobs)) == left == output.count("goes on; the same command finds it again"), output


def recorded(folder: Path) -> float:
    """When a sweep opened the stage's record last: it watches the stage then."""
    file = folder / "mlflow.json"
    return file.stat().st_mtime if file.exists() else 0.0


@pytest.mark.slow
def test_a_job_that_breaks_is_told(tmp_path):
    """What a stage says of its failure comes through the job; the other trial goes on."""
    work = with_broken_encoder(workplace(tmp_path))
    output = finished(work, *SUBMITIT, "grid.position=[broken,rope]", "stages.train.tokens=512", code=1)
    assert "train broken: FAILED: RuntimeError: the encoder broke" in output
    assert "evaluate broken: skipped" in output and "evaluate rope: done" in output
    assert facts_of_runs(work)["train broken"] == "FAILED"


@pytest.mark.slow
def test_ray(expected, tmp_path):
    """A cluster on this machine, for this sweep."""
    pytest.importorskip("ray")
    work = workplace(tmp_path)
    finished(work, *RAY, "launcher.address=local")
    assert facts(work) == expected


@pytest.mark.slow
def test_two_nodes_are_one_process(expected, tmp_path):
    """launcher=torchrun: one torchrun on each of two nodes, which are this machine by two of its names; gloo."""
    work = workplace(tmp_path)
    words = ["launcher=torchrun", "launcher.hosts=[localhost,127.0.0.1]", "position=rope"]
    finished(work, *words, "trainer.strategy=fsdp", "trainer.nodes=2", "trainer.devices=1")
    (train,) = folders(work, "train")
    assert train.name in expected["losses"]  # where it runs is no part of its identity
    losses = [row["train/loss"] for row in rows(train) if "train/loss" in row]
    assert losses == pytest.approx(expected["losses"][train.name], abs=2e-5)
    assert losses != expected["losses"][train.name], "sums of two ranks are rounded otherwise: was it one?"
    assert (train / "log-node1.txt").is_file()


@pytest.mark.slow
def test_the_other_node_by_hand(expected, tmp_path):
    """Without hosts the sweep says what to type on the second node; typed, it takes part."""
    work = workplace(tmp_path)
    words = ["launcher=torchrun", "launcher.rdzv_endpoint=127.0.0.1", "position=rope"]
    process = sweep(work, *words, "trainer.strategy=fsdp", "trainer.nodes=2", "trainer.devices=1")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("cd "):
            break
    assert "type on node 1" in lines[-2]
    with (work / "other.txt").open("w") as log:
        other = subprocess.Popen(
            ["/bin/sh", "-c", lines[-1]], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]}
        )
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert other.wait(600) == 0, (work / "other.txt").read_text()
    (train,) = folders(work, "train")
    losses = [row["train/loss"] for row in rows(train) if "train/loss" in row]
    assert losses == pytest.approx(expected["losses"][train.name], abs=2e-5)


@pytest.mark.slow
def test_the_other_node_through_ssh(expected, tmp_path):
    """A real sshd: the second node is another session, with an environment of its own; it ends with the sweep."""
    if problem := ssh_server.install():
        pytest.skip(problem)
    work = workplace(tmp_path)
    with ssh_server.server(tmp_path / "ssh") as reach:
        hosts = ["launcher=torchrun", f"launcher.hosts=[localhost,{ssh_server.HOST}]", f"launcher.ssh={reach}"]
        words = [*hosts, "launcher.rdzv_endpoint=127.0.0.1", "launcher.setup=['export ASKED=by-the-sweep']", "position=rope"]
        words += ["trainer.strategy=fsdp", "trainer.nodes=2", "trainer.devices=1"]
        finished(work, *words)
        (train,) = folders(work, "train")
        losses = [row["train/loss"] for row in rows(train) if "train/loss" in row]
        assert losses == pytest.approx(expected["losses"][train.name], abs=2e-5) and (train / "log-node1.txt").is_file()

        process = sweep(work, *words, "stages.train.tokens=4M")
        wait_for(lambda: any(len(rows(folder)) > 1 for folder in folders(work, "train") if folder != train))
        far = [pid for pid in every_process() if "--node_rank=1" in words_of(pid)]
        process.kill()
        process.wait()
        assert far
        wait_for(lambda: not alive(far), 30)


def every_process() -> list[int]:
    import psutil

    return psutil.pids()


def words_of(pid: int) -> list[str]:
    import psutil

    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory):
    """Two Ray nodes on this machine that belong to no sweep: RAY_ADDRESS."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    yield cluster.address
    cluster.shutdown()


@pytest.mark.slow
def test_actors_outlive_the_sweep_and_are_joined(ray_cluster, expected, tmp_path):
    work = workplace(tmp_path)
    words = [*RAY, f"launcher.address={ray_cluster}"]
    process = sweep(work, *words)
    wait_for(lambda: training(work))
    logs = {folder: (folder / "log.txt").stat().st_ino for folder in folders(work, "train")}
    begun = {folder: rows(folder)[0]["time"] for folder in folders(work, "train")}
    process.kill()
    process.wait()
    assert not any((folder / "DONE").exists() for folder in logs), "killed too late for what this tests"
    finished(work, *words)
    assert facts(work) == expected
    assert {folder: rows(folder)[0]["time"] for folder in logs} == begun, "they were started again"


@pytest.mark.slow
def test_two_ray_nodes_are_one_process(ray_cluster, expected, tmp_path):
    work = workplace(tmp_path)
    words = [*RAY, f"launcher.address={ray_cluster}", "position=rope"]
    finished(work, *words, "trainer.strategy=fsdp", "trainer.nodes=2", "trainer.devices=1")
    (train,) = folders(work, "train")
    losses = [row["train/loss"] for row in rows(train) if "train/loss" in row]
    assert losses == pytest.approx(expected["losses"][train.name], abs=2e-5) and (train / "log-node1.txt").is_file()
