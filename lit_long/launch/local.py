"""Stages on this machine: one process, or torchrun with one process per device; side by side where cores and GPUs suffice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_long.config import LauncherConfig, StageConfig, UserError
from lit_long.config.mesh import evaluation_ranks
from lit_long.data.pool import available_cores
from lit_long.evaluation.registry import is_custom, is_task_file
from lit_long.launch.fork_server import MODULES, ForkedStage, ForkServer
from lit_long.launch.launcher import ReadyStage, Running, refuse_nodes

STOP_SECONDS = 45  # an update and a checkpoint are ended in good order; torchrun itself kills its ranks after 30
# glibc gives large blocks back to the kernel at every free, and takes each page anew at the next: a quarter of the time of
# CPU training and more (docs/lab-book.md). Kept, and in huge pages, they are reused. Only speed depends on it; other C libraries ignore it.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**37),
    "MALLOC_TOP_PAD_": str(2**28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# Of a GPU's memory torch takes segments that grow, so that sequences of many lengths leave no holes.
GROW_MEMORY = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
OLD_ALLOC_CONF = "PYTORCH_CUDA_ALLOC_CONF"  # whoever still says it this way is obeyed
GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Node:
    """One of the machines that a stage runs on. ``address``: HOST:PORT of the first one, where their ranks meet."""

    rank: int = 0
    count: int = 1
    address: str = ""


class LocalProcess:
    """A stage's processes on one machine. Their standard input is a pipe that we hold: when we die, even by kill -9, they end, too, as by
    SIGTERM."""

    def __init__(self, process: subprocess.Popen | ForkedStage) -> None:
        self.process = process

    @classmethod
    def run(
        cls, words: list[str], folder: Path, environment: dict[str, str], lock: int | None, log: str = "log.txt"
    ) -> LocalProcess:
        """Run a command.

        Args:
            lock: kept open by the processes, so that the stage stays locked until the last one is gone.
            log: where they print to.
        """
        with (folder / log).open("ab") as file:
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which then stops the stage in good order
                pass_fds=[] if lock is None else [lock],
            )
        return cls(process)

    @classmethod
    def fork(cls, server: ForkServer, stage: ReadyStage) -> LocalProcess:
        """Run a stage of one process as a fork of a process that has imported what it needs."""
        with (stage.folder / "log.txt").open("ab") as file:
            return cls(server.start(stage.folder, stage.config.kind, stage.lock, file.fileno()))

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        code = self.process.poll()
        if code is not None:
            self.process.stdin.close()
        return code

    def waits_for(self) -> str:
        return ""

    def why(self) -> str:
        return ""

    def stop(self) -> str:
        """Ask it to end, then make it."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()
        return ""

    def interrupt(self, seconds: float, several: bool) -> int | None:
        """Ask the stage to end, give it ``seconds``, then make it. Returns the exit code. ``several``: it has ranks, below torchrun.

        torchrun would give them 30 seconds when asked itself, too little for the checkpoint of a large model; so it is passed over.
        """
        import psutil

        try:
            process = psutil.Process(self.process.pid)
            for one in process.children() if several else [process]:
                one.terminate()
        except psutil.NoSuchProcess:
            pass
        deadline = time.monotonic() + seconds
        while self.exit_code() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if self.exit_code() is None:
            self.stop()
        return self.exit_code()


class LocalLauncher:
    """``launcher=local``. Stages side by side share the cores, and each has GPUs of its own."""

    name = "local"

    def __init__(self, config: LauncherConfig, root: Path) -> None:
        self.parallel = config.parallel
        self.gpus = visible_gpus() if self.parallel > 1 else None
        self.taken: list[tuple[LocalProcess, list[str]]] = []
        self.fork = config.fork
        self.server: ForkServer | None = None

    def check(self, configs: Sequence[StageConfig]) -> None:
        refuse_nodes(configs, self.name)
        most = max((count_gpus(config) for config in configs), default=0)
        if self.gpus is not None and most > len(self.gpus):
            raise UserError(
                f"trainer.devices={most}: this machine shows {len(self.gpus)} GPUs; CUDA_VISIBLE_DEVICES names those to use"
            )

    def fits(self, config: StageConfig, running: Sequence[StageConfig]) -> bool:
        if not running:
            return True
        wanted = [*running, config]
        if self.gpus is not None and sum(map(count_gpus, wanted)) > len(self.gpus):
            return False
        return sum(count_processes(one) for one in wanted if not count_gpus(one)) <= available_cores()

    def start(self, stages: Sequence[ReadyStage], say: Callable[[str], None]) -> list[Running]:
        return [self.start_one(stage) for stage in stages]

    def start_one(self, stage: ReadyStage) -> LocalProcess:
        config, extra, own = stage.config, {}, []
        if self.gpus is not None:
            self.taken = [(process, theirs) for process, theirs in self.taken if process.exit_code() is None]
            taken = {gpu for _, theirs in self.taken for gpu in theirs}
            own = [gpu for gpu in self.gpus if gpu not in taken][: count_gpus(config)]
            extra = {GPUS: ",".join(own)} if own else {}
        environment = make_environment(config, count_threads(config, self.parallel)) | extra
        if self.fork and can_fork(config):
            self.server = self.server or ForkServer(environment)
            if self.server.usable(environment):
                return LocalProcess.fork(self.server, stage)
        process = LocalProcess.run(make_command(stage.folder, config), stage.folder, environment, stage.lock)
        self.taken.append((process, own))
        return process

    def join(self, stage: ReadyStage, job: dict[str, str]) -> Running | None:
        return None  # they ended with the sweep that had started them

    def close(self) -> None:
        if self.server is not None:
            self.server.close()


def can_fork(config: StageConfig) -> bool:
    """Whether the stage can be a fork of the server: one process without a GPU, none of whose own tasks may want the packages that are hidden there."""
    return (
        sys.platform == "linux"
        and config.kind in MODULES
        and count_processes(config) == 1
        and not count_gpus(config)
        and not any(is_custom(task) or is_task_file(task) for task in config.evaluation.tasks)
    )


def count_processes(config: StageConfig) -> int:
    """All ranks of a stage. Training takes all devices, an evaluation those of one machine that can share its model; preparing data takes one process."""
    if config.kind == "train":
        return config.trainer.nodes * config.trainer.devices
    return evaluation_ranks(config) if config.kind == "evaluate" else 1


def count_nodes(config: StageConfig) -> int:
    """The machines that a stage runs on."""
    return config.trainer.nodes if config.kind == "train" else 1


def count_gpus(config: StageConfig) -> int:
    """GPUs of each of its machines."""
    on_gpu = config.kind != "data" and config.trainer.accelerator in ("gpu", "cuda")
    return (count_processes(config) // count_nodes(config)) if on_gpu else 0


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Asks the driver's files: the sweep imports no torch."""
    if GPUS in os.environ:
        return [name for name in os.environ[GPUS].split(",") if name.strip()]
    return [str(number) for number, _ in enumerate(sorted(Path("/proc/driver/nvidia/gpus").glob("*")))]


def make_command(folder: Path, config: StageConfig, node: Node | None = None, watched: bool = True) -> list[str]:
    """The command line that runs the stage, or a node's part of it. ``watched``: it ends when its standard input does."""
    node = node or Node()
    stage = ["-m", "lit_long.stage", str(folder), *(["watch_parent=true"] if watched else [])]
    if count_processes(config) == 1:
        return [sys.executable, *stage]
    meeting = ["--standalone"]
    if node.count > 1:
        host, _, port = node.address.rpartition(":")
        meeting = [f"--nnodes={node.count}", f"--node_rank={node.rank}", f"--master_addr={host}", f"--master_port={port}"]
    return [
        sys.executable,
        "-m",
        "lit_long.launch.ranks",
        *meeting,
        f"--nproc_per_node={count_processes(config) // node.count}",
        *stage,
    ]


def make_environment(config: StageConfig, threads: int) -> dict[str, str]:
    """What a stage's processes see. Of what there is about ranks of others they forget themselves (surroundings.py)."""
    memory = KEEP_MEMORY if not count_gpus(config) else {} if OLD_ALLOC_CONF in os.environ else GROW_MEMORY
    alike = {"PYTHONHASHSEED": "0"} if count_processes(config) > 1 else {}  # ranks that measure ask the same, in the same order
    return memory | os.environ | alike | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}


def count_threads(config: StageConfig, parallel: int = 1) -> int:
    """CPU threads per process: sharing cores between processes costs far more than it gives. ``parallel``: stages at once."""
    cores = config.trainer.threads or available_cores() // parallel
    return max(1, cores // (count_processes(config) // count_nodes(config)))
