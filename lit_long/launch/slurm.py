"""``launcher=slurm``: a stage is a job, through submitit; stages that are ready together and ask for the same are one job array.

Each node runs a `StageNode`. When the time is up, or the job is preempted, the stage ends at its next update, leaves a checkpoint, and the
job queues again; it resumes where it was. ``launcher.cluster=local`` runs the same through submitit's processes on this machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from lit_long.config import LauncherConfig, StageConfig, UserError, nearest
from lit_long.launch.job import SECONDS_TO_SEE, StageNode, confirm_exit, forget_job, note_job
from lit_long.launch.launcher import ReadyStage, Running, missing, refuse_nodes
from lit_long.launch.local import Node, count_gpus, count_nodes, count_processes

CLUSTERS = ("slurm", "local")
STOP_SECONDS = 60.0
INTERRUPTED = 143  # as a shell says it of SIGTERM
OVER = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)


def import_submitit() -> ModuleType:
    try:
        import submitit
    except ImportError:
        raise missing("submitit", "slurm") from None
    return submitit


class SlurmTask:
    """What submitit runs on each node. ``checkpoint`` is called on the first one when the job has to make way."""

    def __init__(self, folder: Path, threads: int, grace: float) -> None:
        self.folder, self.threads, self.grace = folder, threads, grace
        self.terminated = False

    def __call__(self) -> int | str:
        """The stage's exit code, or what the user must put right."""
        job = import_submitit().JobEnvironment()
        signal.signal(signal.SIGTERM, self.terminate)
        port = 20_000 + int(os.environ.get("SLURM_JOB_ID", 0)) % 30_000
        try:
            self.node = StageNode(self.folder, Node(job.global_rank, job.num_nodes, f"{first_host(job)}:{port}"), self.threads)
        except UserError as error:
            return str(error)
        while (code := self.node.exit_code()) is None:
            if self.terminated and job.cluster != "slurm":  # SLURM tells all processes; a second time would end them at once
                self.node.interrupt(self.grace)
            time.sleep(0.2)
        self.node.close()
        if self.terminated:
            self.leave(job)
        return code

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """SLURM wants the node: scancel, a requeue or a preemption."""
        self.terminated = True

    def leave(self, job: Any) -> None:
        """End without a result. A job that SLURM has not cancelled, nor queued again by itself, was preempted with time to leave: queue it."""
        if job.global_rank == 0 and job.cluster == "slurm" and states([job.raw_job_id]).get(job.job_id) == "RUNNING":
            subprocess.run(["scontrol", "requeue", job.job_id], check=False)
        sys.stdout.flush()
        os._exit(INTERRUPTED)

    def checkpoint(self) -> Any:
        """End at the next update; the same task goes on when the job runs again."""
        if hasattr(self, "node"):
            self.node.interrupt(self.grace)
            self.node.close()
        return import_submitit().helpers.DelayedSubmission(SlurmTask(self.folder, self.threads, self.grace))


def first_host(job: Any) -> str:
    """The first node's name; where no name server knows it, the address of the node that srun was started on, which is the first one."""
    try:
        socket.getaddrinfo(job.hostnames[0], None)
        return job.hostnames[0]
    except socket.gaierror:
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", job.hostnames[0])


class SlurmLauncher:
    """One job a stage, one look at the queue for all of them."""

    def __init__(self, config: LauncherConfig, root: Path) -> None:
        self.submitit, self.config = import_submitit(), config
        self.bookkeeping = root / "runs" / "submitit"
        self.queue = Queue(config.poll_seconds)
        if config.cluster not in CLUSTERS:
            raise UserError(f"launcher.cluster={config.cluster}: must be slurm or local{nearest(config.cluster, CLUSTERS)}")
        if config.cluster == "slurm" and shutil.which("sbatch") is None:
            raise UserError(
                "launcher=slurm: there is no sbatch on this machine. Start the sweep on a login node of the cluster; "
                "launcher.cluster=local tries the same without one"
            )

    def check(self, configs: Sequence[StageConfig]) -> None:
        if self.config.cluster == "local":
            refuse_nodes(configs, "slurm launcher.cluster=local")

    def fits(self, config: StageConfig, running: Sequence[StageConfig]) -> bool:
        return True  # the queue is where they wait

    def start(self, stages: Sequence[ReadyStage], say: Callable[[str], None]) -> list[Running]:
        """Submit them; those that ask for the same as one array."""
        found: dict[int, Running] = {}
        asked = [(self.asked(stage.config), stage.label.split()[0]) for stage in stages]
        for wanted in [one for number, one in enumerate(asked) if one not in asked[:number]]:
            alike = [number for number, one in enumerate(asked) if one == wanted]
            for number, job in zip(alike, self.submit([stages[n] for n in alike], *wanted), strict=True):
                found[number] = job
        return [found[number] for number in range(len(stages))]

    def submit(self, stages: list[ReadyStage], parameters: dict[str, Any], name: str) -> list[Running]:
        """Jobs with the same parameters."""
        executor = self.submitit.AutoExecutor(
            self.bookkeeping, cluster=self.config.cluster, slurm_max_num_timeout=self.config.requeues
        )
        callables = [SlurmTask(stage.folder, self.config.cpus, max(5, self.config.grace_seconds - 20)) for stage in stages]
        try:
            executor.update_parameters(name=f"lit-long {name}", **parameters)
            with executor.batch():  # a batch of one is no array
                jobs = [executor.submit(one) for one in callables]
        except (self.submitit.core.utils.FailedJobError, OSError, ValueError, subprocess.SubprocessError) as error:
            raise UserError(f"launcher=slurm: the job was not taken: {error}") from None
        for stage, job in zip(stages, jobs, strict=True):
            note_job(stage.folder, "slurm", id=job.job_id, cluster=self.config.cluster, bookkeeping=str(self.bookkeeping))
        return [SlurmJob(stage.folder, job, self) for stage, job in zip(stages, jobs, strict=True)]

    def asked(self, config: StageConfig) -> dict[str, Any]:
        """submitit's parameters for a stage."""
        own, ranks = self.config, count_processes(config) // count_nodes(config)
        parameters = {
            "timeout_min": max(1, round(own.hours * 60)),
            "cpus_per_task": own.cpus * ranks,
            "nodes": count_nodes(config),
        }
        if own.cluster == "local":
            return {"timeout_min": parameters["timeout_min"]}
        more = {name: value for name in ("account", "qos") if (value := getattr(own, name))} | own.extra
        if count_gpus(config) and not {"gres", "gpus", "gpus-per-node", "gpus_per_node"} & more.keys():
            parameters["gpus_per_node"] = count_gpus(config)
        slurm = {"partition": own.partition, "mem": own.memory, "setup": own.setup, "array_parallelism": own.parallel}
        return (
            parameters
            | {"tasks_per_node": 1, "slurm_signal_delay_s": own.grace_seconds, "slurm_srun_args": ["--kill-on-bad-exit=1"]}
            | {f"slurm_{name}": value for name, value in slurm.items() if value}
            | {"slurm_additional_parameters": more}
        )

    def join(self, stage: ReadyStage, job: dict[str, str]) -> Running | None:
        kind = self.submitit.SlurmJob if job["cluster"] == "slurm" else self.submitit.LocalJob
        found = SlurmJob(stage.folder, kind(job["bookkeeping"], job["id"]), self)
        return found if found.exit_code() is None or found.has_result() else None

    def close(self) -> None:
        pass


class SlurmJob:
    """A stage's job. Its result lies in a file, which submitit writes; the queue is asked about those that have none yet."""

    def __init__(self, folder: Path, job: Any, launcher: SlurmLauncher) -> None:
        self.folder, self.job, self.config, self.queue = folder, job, launcher.config, launcher.queue
        self.is_slurm, self.utils = launcher.submitit.SlurmJob is type(job), launcher.submitit.core.utils
        self.code: int | None = None
        self.reason = ""
        self.since: float | None = None  # when it was first seen to be over
        if self.is_slurm:
            self.queue.watch(job.job_id)

    def state(self) -> str:
        """SLURM's name of it; "" when the queue does not know it any more."""
        return self.queue.state(self.job.job_id) if self.is_slurm else local_state(int(self.job.job_id))

    def has_result(self) -> bool:
        return self.job.paths.result_pickle.is_file()

    def exit_code(self) -> int | None:
        if self.code is None:
            self.code = self.look()
            if self.code is not None:
                self.queue.forget(self.job.job_id)
                forget_job(self.folder)
        return self.code

    def look(self) -> int | None:
        """None until it is over, and whatever it wrote shows on this machine."""
        if not self.has_result():
            if (state := self.state()) not in ("", *OVER):
                self.since = None
                return None
            self.since = self.since or time.monotonic()
            patience = SECONDS_TO_SEE if state in ("", "COMPLETED") else 5.0
            if time.monotonic() - self.since < patience:
                return None
            where = f"; its log: {self.job.paths.stderr}" if self.job.paths.stderr.is_file() else ""
            end = f"ended as {state}" if state else "left the queue without a result"
            self.reason = f"job {self.job.job_id} {end}{where}"
            return 1
        self.since = self.since or time.monotonic()
        outcome, result = self.utils.pickle_load(self.job.paths.result_pickle)
        if outcome == "error":  # the traceback of what broke in the job itself
            self.reason = result.strip().rpartition("\n")[2]
            return 1
        if isinstance(result, str):
            self.reason = result
            return 2
        return confirm_exit(self.folder, result, self.since)

    def waits_for(self) -> str:
        return f"job {self.job.job_id} waits in the queue" if self.state() == "PENDING" else ""

    def why(self) -> str:
        return self.reason

    def stop(self) -> str:
        if not self.config.cancel_on_exit:
            return f"job {self.job.job_id} goes on; the same command finds it again"
        cancel(self.job, self.is_slurm)
        deadline = time.monotonic() + STOP_SECONDS
        while self.state() not in ("", *OVER) and time.monotonic() < deadline:
            self.queue.refresh()
            time.sleep(1.0)
        forget_job(self.folder)
        return ""


def cancel(job: Any, is_slurm: bool) -> None:
    """Ask it to end."""
    if is_slurm:
        job.cancel(check=False)
    elif local_state(int(job.job_id)) == "RUNNING":
        os.kill(int(job.job_id), signal.SIGINT)


class Queue:
    """What squeue says of our jobs: all are asked about at once, and not more often than every ``seconds``.

    Not sacct, which many clusters do not have: a job that ended stays in squeue for some minutes, and leaves a result.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.due = seconds, 0.0
        self.jobs: set[str] = set()
        self.found: dict[str, str] = {}

    def watch(self, job: str) -> None:
        self.jobs.add(job)
        self.refresh()

    def forget(self, job: str) -> None:
        self.jobs.discard(job)

    def refresh(self) -> None:
        """Look again at the next question."""
        self.due = 0.0

    def state(self, job: str) -> str:
        if time.monotonic() >= self.due:
            self.due = time.monotonic() + self.seconds
            if (found := states(sorted(self.jobs))) is not None:
                self.found = found
        return self.found.get(job, "")


def states(jobs: Sequence[str]) -> dict[str, str] | None:
    """SLURM's state of each job that the queue knows; None when it does not answer, as it does not for a while when it is restarted."""
    words = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T", f"--jobs={','.join(jobs)}"]
    asked = subprocess.run(words, capture_output=True, text=True)
    if asked.returncode:
        return {} if "Invalid job id" in asked.stderr else None
    return dict(line.split() for line in asked.stdout.splitlines() if line.strip())


def local_state(pid: int) -> str:
    """The same words for submitit's process on this machine."""
    import psutil

    try:
        process = psutil.Process(pid)
        ours = process.status() != psutil.STATUS_ZOMBIE and any("submitit" in word for word in process.cmdline())
        return "RUNNING" if ours else "COMPLETED"
    except psutil.NoSuchProcess:
        return "COMPLETED"
