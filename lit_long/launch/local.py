"""Stages on this machine: one process, or torchrun with one process per device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lit_long.config import StageConfig

STOP_SECONDS = 45  # an update and a checkpoint are ended in good order; torchrun itself kills its ranks after 30
# glibc gives large blocks back to the kernel at every free, and takes each page anew at the next: a quarter of the time of
# CPU training and more (docs/lab-book.md). Kept, and in huge pages, they are reused. Only speed depends on it; other C libraries ignore it.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**37),
    "MALLOC_TOP_PAD_": str(2**28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


class LocalProcess:
    """A stage that runs. Its standard input is a pipe that we hold: when we die, even by kill -9, it ends too."""

    def __init__(self, folder: Path, config: StageConfig, lock: int) -> None:
        with (folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                command(folder, config),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=KEEP_MEMORY | os.environ | {"OMP_NUM_THREADS": str(threads(config)), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which then stops the stage in good order
                pass_fds=[lock],
            )

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        code = self.process.poll()
        if code is not None:
            self.process.stdin.close()
        return code

    def stop(self) -> None:
        """Ask it to end, then make it."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()


def processes(config: StageConfig) -> int:
    """Training takes all devices; preparing data and evaluating take one process."""
    return config.trainer.devices if config.kind == "train" else 1


def command(folder: Path, config: StageConfig) -> list[str]:
    stage = ["-m", "lit_long.stage", str(folder), "watch_parent=true"]
    if processes(config) == 1:
        return [sys.executable, *stage]
    torchrun = ["-m", "lit_long.launch.ranks", "--standalone", f"--nproc_per_node={processes(config)}"]
    return [sys.executable, *torchrun, *stage]


def threads(config: StageConfig) -> int:
    """CPU threads per process: sharing cores between processes costs far more than it gives."""
    return max(1, (config.trainer.threads or os.cpu_count() or 1) // processes(config))
