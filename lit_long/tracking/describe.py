"""What is written about a run besides its settings and metrics: versions, commit, and the process that owns it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import socket
import subprocess
from pathlib import Path

HOST, PID, PID_STARTED = "lit_long.host", "lit_long.pid", "lit_long.pid_started"
SAME_START = 30.0  # seconds by which a living process's start time may seem to move, because the clock was set


def environment_tags() -> dict[str, str]:
    """What a result may depend on besides its config: commit, versions, host; ``unknown`` where it cannot be told."""
    tags = {"version.python": platform.python_version(), "host": host(), "cpu_count": str(os.cpu_count())}
    for package in ("lit-long", "torch", "lightning", "mlflow", "omegaconf"):
        tags[f"version.{package}"] = "unknown"
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            tags[f"version.{package}"] = importlib.metadata.version(package)
    checkout = Path(__file__).resolve().parents[2]
    top, commit, changes = (
        _git(checkout, *arguments)
        for arguments in (["rev-parse", "--show-toplevel"], ["rev-parse", "HEAD"], ["status", "--porcelain"])
    )
    if top is None or Path(top) != checkout:  # installed, perhaps inside a checkout of something else
        commit = changes = None
    dirty = "unknown" if changes is None else str(bool(changes)).lower()
    return {**tags, "git.commit": commit or "unknown", "git.dirty": dirty}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def host() -> str:
    return socket.gethostname()


def owner() -> dict[str, str]:
    import psutil

    return {HOST: host(), PID: str(os.getpid()), PID_STARTED: repr(psutil.Process().create_time())}


def is_alive(tags: dict[str, str]) -> bool:
    """Whether the run's owner lives. A process with its number that started at another time is not the owner."""
    import psutil

    try:
        process = psutil.Process(int(tags[PID]))
        same = abs(process.create_time() - float(tags[PID_STARTED])) < SAME_START
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except (KeyError, ValueError, psutil.Error):
        return True  # not ours to judge
