"""SLURM's queue: the state of our jobs, and the same words for submitit's processes on this machine."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence

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
