"""A real SLURM on this machine (slurm_cluster.py): arrays, a requeue in mid-training, a cancelled job, and jobs that outlive their sweep."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from tests.launch import slurm_cluster
from tests.launch.side import facts, finished, folders, rows, sweep, wait_for, workplace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SLURM = ["launcher=slurm", "launcher.cpus=1", "launcher.poll_seconds=1", "launcher.grace_seconds=60", "launcher.hours=0.5"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment in which its commands work."""
    if problem := slurm_cluster.install():
        pytest.skip(f"no SLURM here: {problem}")
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Workplace of a finished sweep on this machine, without SLURM; long enough that jobs can be met while they train."""
    work = workplace(tmp_path_factory.mktemp("reference"))
    finished(work, LONG)
    return work


LONG = "stages.train.tokens=96k"  # 192 updates, a checkpoint every 2


@pytest.fixture(scope="module")
def expected(reference):
    return facts(reference)


def jobs_of(work) -> dict[str, str]:
    """Job of each stage that has one."""
    files = (work / "runs" / "stages").glob("*/job.json")
    return {file.parent.name: json.loads(file.read_text())["id"] for file in files}


def training(work, updates: int) -> bool:
    """Whether both trials train."""
    return [len(rows(folder)) >= updates for folder in folders(work, "train")] == [True, True]


def met(work) -> str:
    """The job of a trial that has trained for some updates, and goes on."""
    found = []

    def look() -> bool:
        found[:] = [one for one in folders(work, "train") if len(rows(one)) >= 6 and not (one / "DONE").exists()]
        return bool(found)

    wait_for(look)
    return jobs_of(work)[found[0].name]


def say(environment, *words: str) -> str:
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_array_and_a_requeue_in_mid_training(slurm, expected, tmp_path):
    """scontrol requeue: the stage ends, the job queues again and resumes; nothing in the results tells of it."""
    work = workplace(tmp_path)
    process = sweep(work, *SLURM, LONG, environment=slurm)
    wait_for(lambda: len(jobs_of(work)) == 2)
    assert {job.partition("_")[2] for job in jobs_of(work).values()} == {"0", "1"}, "the two trials are one array"
    job = met(work)
    say(slurm, "scontrol", "requeue", job)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert facts(work) == expected
    assert "Restarts=1" in say(slurm, "scontrol", "show", "job", job)
    assert jobs_of(work) == {}


def test_time_up_is_a_checkpoint_and_a_place_in_the_queue(slurm, expected, tmp_path):
    """The signal that sbatch --signal sends before the end: submitit asks the stage to end at its update, then requeues the job."""
    work = workplace(tmp_path)
    process = sweep(work, *SLURM, LONG, environment=slurm)
    job = met(work)
    say(slurm, "scancel", "--signal=USR2", job)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert facts(work) == expected
    assert "Restarts=1" in say(slurm, "scontrol", "show", "job", job)


def test_jobs_outlive_the_sweep_and_are_joined(slurm, expected, tmp_path):
    work = workplace(tmp_path)
    process = sweep(work, *SLURM, LONG, environment=slurm)
    wait_for(lambda: len(jobs_of(work)) == 2)
    before = jobs_of(work)
    process.kill()
    process.wait()
    assert len(before) == 2 and not any((folder / "DONE").exists() for folder in folders(work, "train"))
    finished(work, *SLURM, LONG, environment=slurm)
    assert facts(work) == expected
    submitted = {file.name.removesuffix("_submitted.pkl") for file in (work / "runs" / "submitit").glob("*_submitted.pkl")}
    assert set(before.values()) < submitted and len(submitted) == 4, "each stage was submitted once"


def test_ctrl_c_cancels_and_scancel_is_told(slurm, tmp_path):
    work = workplace(tmp_path)
    process = sweep(work, *SLURM, "stages.train.tokens=4M", environment=slurm)
    wait_for(lambda: training(work, 1))
    jobs = list(jobs_of(work).values())
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert [say(slurm, "squeue", "-h", "--states=all", "-j", job, "-o", "%T").strip() for job in jobs] == ["CANCELLED"] * 2

    process = sweep(work, *SLURM, "stages.train.tokens=4M", environment=slurm)
    wait_for(lambda: len(jobs_of(work)) == 2)
    for job in jobs_of(work).values():
        say(slurm, "scancel", job)
    output, _ = process.communicate(timeout=120)
    # SLURM forgets a job at once that it had not started
    assert process.returncode == 1 and output.count("FAILED: job") == 2, output


def test_what_sbatch_refuses_is_told(slurm, tmp_path):
    work = workplace(tmp_path)
    output = finished(work, *SLURM, "launcher.partition=nowhere", environment=slurm, code=2)
    assert "launcher=slurm: the job was not taken" in output and "nvalid partition" in output and "Traceback" not in output


def test_two_nodes_are_one_process(expected, tmp_path_factory):
    """A job of two nodes, one torchrun on each: the same losses as one process."""
    if problem := slurm_cluster.install():
        pytest.skip(f"no SLURM here: {problem}")
    work = workplace(tmp_path_factory.mktemp("two"))
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm2"), nodes=2) as environment:
        words = [*SLURM, LONG, "position=rope", "trainer.strategy=fsdp", "trainer.nodes=2", "trainer.devices=1"]
        finished(work, *words, environment=environment)
    (train,) = folders(work, "train")
    losses = [row["train/loss"] for row in rows(train) if "train/loss" in row]
    assert losses == pytest.approx(expected["losses"][train.name], abs=2e-5) and (train / "log-node1.txt").is_file()
