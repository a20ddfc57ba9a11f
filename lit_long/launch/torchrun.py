"""``launcher=torchrun``: as local, and stages of several machines (trainer.nodes), one torchrun on each.

With ``launcher.hosts=[a,b]`` the sweep starts them, through ssh where a host is another machine; without, it starts the first node here and
says what to type on the others, for each such stage. The ranks meet at ``launcher.rdzv_endpoint``, on the first node.
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from lit_long.config import LauncherConfig, StageConfig, UserError
from lit_long.launch.job import NODE_LOG
from lit_long.launch.launcher import ReadyStage, Running
from lit_long.launch.local import LocalLauncher, LocalProcess, Node, count_nodes, count_threads, make_command, make_environment

PORT = 29_500
PASSED_ON = (
    "MALLOC_",
    "PYTORCH_",
    "GLIBC_",
    "OMP_",
    "PYTHON",
    "NCCL_",
    "GLOO_",
    "TORCH_",
    "CUDA_",
    "HF_",
)  # variables that a remote node gets, too


class TorchrunLauncher(LocalLauncher):
    """Stages of one node run as under launcher=local; one of several has the machines for itself."""

    name = "torchrun"

    def __init__(self, config: LauncherConfig, root: Path) -> None:
        super().__init__(config, root)
        self.config = config

    def check(self, configs: Sequence[StageConfig]) -> None:
        super().check([config for config in configs if count_nodes(config) == 1])
        most, hosts = max((count_nodes(config) for config in configs), default=1), self.config.hosts
        if most == 1:
            return
        if hosts and len(hosts) < most:
            raise UserError(f"launcher.hosts names {len(hosts)} machines, and trainer.nodes={most}")
        if hosts and is_loopback(hosts[0]) and not all(is_here(host) for host in hosts) and not self.config.rdzv_endpoint:
            raise UserError(f"launcher.hosts: the others cannot reach the first one as {hosts[0]}; name it as they do")
        if not hosts and not self.config.rdzv_endpoint:
            raise UserError(
                f"trainer.nodes={most}: name the machines, launcher.hosts=[a,b], to start them through ssh; or this one as the others reach it, "
                f"launcher.rdzv_endpoint=HOST:{PORT}, and type on each what the sweep then says"
            )

    def fits(self, config: StageConfig, running: Sequence[StageConfig]) -> bool:
        alone = any(count_nodes(one) > 1 for one in [config, *running])
        return not running if alone else super().fits(config, running)

    def start(self, stages: Sequence[ReadyStage], say: Callable[[str], None]) -> list[Running]:
        return [self.start_nodes(stage, say) if count_nodes(stage.config) > 1 else self.start_one(stage) for stage in stages]

    def start_nodes(self, stage: ReadyStage, say: Callable[[str], None]) -> SeveralNodes:
        """One process for each node that we start: torchrun, or ssh to one."""
        count, address = count_nodes(stage.config), self.address()
        hosts = self.config.hosts[:count] or ["localhost"]
        processes: list[tuple[str, LocalProcess]] = []
        for rank, host in enumerate(hosts):
            words = make_command(stage.folder, stage.config, Node(rank, count, address))
            own = make_environment(stage.config, count_threads(stage.config))
            words = words if is_here(host) else [*shlex.split(self.config.ssh), host, self.remote(words, own)]
            log = NODE_LOG.format(rank) if rank else "log.txt"
            processes.append((host, LocalProcess.run(words, stage.folder, own, stage.lock, log)))
        for rank in range(len(hosts), count):
            words = make_command(stage.folder, stage.config, Node(rank, count, address), watched=False)
            say(
                f"{stage.label}: type on node {rank}:\n{self.remote(words, make_environment(stage.config, count_threads(stage.config)))}"
            )
        return SeveralNodes(processes)

    def address(self) -> str:
        """HOST:PORT of the first node."""
        host, _, port = self.config.rdzv_endpoint.partition(":")
        first = host or self.config.hosts[0]
        return f"{first}:{port or (free_port() if is_here(first) else PORT)}"

    def remote(self, words: list[str], own: dict[str, str]) -> str:
        """A line for a shell on another machine: the same folder, variables and Python."""
        variables = [f"{key}={value}" for key, value in sorted(own.items()) if key.startswith(PASSED_ON)]
        line = shlex.join(["exec", "env", *variables, *words])
        return " && ".join([f"cd {shlex.quote(os.getcwd())}", *self.config.setup, line])


class SeveralNodes:
    """A stage's processes, node by node, with their hosts. When one fails the others end, too: their ranks would wait for it for ever."""

    def __init__(self, processes: list[tuple[str, LocalProcess]]) -> None:
        self.processes, self.failed = processes, ""

    def exit_code(self) -> int | None:
        codes = [process.exit_code() for _, process in self.processes]
        if bad := [rank for rank, code in enumerate(codes) if code]:
            rank = bad[0]
            log = NODE_LOG.format(rank) if rank else "log.txt"
            self.failed = (
                self.failed or f"node {rank} ({self.processes[rank][0]}) failed first; its log in the stage's folder is {log}"
            )
            self.stop()
            return codes[rank]
        return None if None in codes else 0

    def waits_for(self) -> str:
        return ""

    def why(self) -> str:
        return self.failed if len(self.processes) > 1 else ""

    def stop(self) -> str:
        for _, process in self.processes:
            process.process.terminate()
        for _, process in self.processes:
            process.stop()
        return ""


def is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.")


def is_here(host: str) -> bool:
    """Whether ``host`` is this machine, by one of its usual names."""
    return is_loopback(host) or host in (socket.gethostname(), socket.getfqdn())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]
