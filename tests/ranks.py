"""Ranks of a test on this machine, as torchrun would start them: forks of one process that has imported what they need, which is half of the time of a start.

That torchrun itself starts a stage's ranks, and ends them, is for tests/faults, tests/launch and tests/parallel/test_stage_processes.py.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import time
from contextlib import chdir
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch

from tests.integration.mini import REPOSITORY

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.preloaded"])


def run_ranks(ranks: int, program: Path | str, *words: object, seconds: float = 800) -> str:
    """Run a script, or a module by its name, on so many ranks. Returns what they print; a rank that fails ends the others and the test."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [str(program), *map(str, words)]
    with NamedTemporaryFile() as log:
        processes = [FORKS.Process(target=be_rank, args=(rank, ranks, port, log.name, arguments)) for rank in range(ranks)]
        deadline = time.monotonic() + seconds
        try:
            with chdir(REPOSITORY):  # where the process begins that forks them
                for process in processes:
                    process.start()
            while not any(process.exitcode for process in processes) and time.monotonic() < deadline:
                if not (running := [process.sentinel for process in processes if process.exitcode is None]):
                    break
                wait(running, 1.0)
            codes = [process.exitcode for process in processes]
        finally:
            for process in processes:
                if process.pid:
                    process.kill()
                    process.join()
        said = Path(log.name).read_text(errors="replace")
    assert codes == [0] * ranks, f"exit codes {codes} (None: it ran on)\n{said[-9000:]}"
    return said


def be_rank(rank: int, ranks: int, port: int, log: str, arguments: list[str]) -> None:
    """The process of one rank: the program, with torchrun's variables."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
    }
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    sys.argv = arguments
    (runpy.run_path if arguments[0].endswith(".py") else runpy.run_module)(arguments[0], run_name="__main__")
