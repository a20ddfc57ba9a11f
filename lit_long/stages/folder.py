"""A stage's folder: its settings, its metrics, its result and its done-marker. The folder is the truth about a stage.

stage.yaml      identity, inputs and settings
metrics.jsonl   points of its curves
progress.json   a line for people, and the share done
result.json     what it measured
error.txt       why it failed: it was begun and ended without a result, whether it broke, was killed or was interrupted
log.txt         everything its processes printed
job.json        the job of a cluster that runs it, while one does (launch/job.py)
DONE            written last; a stage with it never runs again

The folder of an archived stage (archive.py) has archive.json too; nothing is written into it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from lit_long.config import StageConfig, UserError, project_root, typed
from lit_long.config.text import read_node
from lit_long.files import write_atomically

PROGRESS_SECONDS = 0.25
DONE, ERROR, ARCHIVE = "DONE", "error.txt", "archive.json"
WHERE_LISTED = "the section Provenance of runs/EXPERIMENT/latest/report.md lists an experiment's stages"
JOB_LOCK = "job.lock"  # held by a job that runs the stage far from the sweep, which holds "lock"


def is_done(folder: Path) -> bool:
    return (folder / DONE).is_file()


def is_archived(folder: Path) -> bool:
    """Whether the folder is the archive of a stage, and not where it ran."""
    return (folder / ARCHIVE).is_file()


def read_result(folder: Path) -> dict[str, Any]:
    """``result.json`` of a finished stage."""
    file = folder / "result.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}; delete {folder} and run the sweep again") from None


def write_stage(folder: Path, identity: str, settings: dict[str, Any], store: Path | None, parent: Path | None) -> None:
    """``stage.yaml``: all that `python -m lit_long.stage FOLDER` needs. Inputs are kept as sibling names: runs/ can be moved.

    An archived one is named by its path, for it lies elsewhere.
    """
    inputs = {
        key: (str(path) if is_archived(path) else path.name) if path else None
        for key, path in (("store", store), ("parent", parent))
    }
    content = {"identity": identity, "inputs": inputs, "settings": settings}
    write_atomically(folder / "stage.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def read_stage(folder: Path) -> tuple[StageConfig, Path | None, Path | None]:
    """Settings, store folder and parent folder of the stage in ``folder``."""
    file = folder / "stage.yaml"
    if not file.is_file():
        reason = "is no stage, for it has no stage.yaml" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder}: {reason}; {WHERE_LISTED}")
    try:
        content = read_node(file.read_text(encoding="utf-8"), Any)  # one of an earlier version has settings by their old names
        inputs = {key: folder.parent / name if name else None for key, name in content["inputs"].items()}
        if is_archived(folder) and inputs["store"]:  # no archive holds the data themselves
            inputs["store"] = project_root() / "runs" / "stages" / inputs["store"].name
        return typed(StageConfig, content["settings"], str(file)), inputs["store"], inputs["parent"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: not a stage: {error}; stages are made by python -m lit_long.sweep") from None


def finish(folder: Path, result: dict[str, Any]) -> None:
    """Result first, marker last."""
    write_atomically(folder / "result.json", json.dumps(result, indent=1) + "\n")
    (folder / ERROR).unlink(missing_ok=True)
    write_atomically(folder / DONE, "")


def run_digest(folder: Path) -> str:
    """Tells the runs of a stage apart: each leaves a ``result.json`` of its own, if only by its seconds, and an archive keeps it byte for byte. "" before it
    is there."""
    file = folder / "result.json"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.is_file() else ""


def why_failed(folder: Path) -> str:
    """What ``error.txt`` says; "" without one."""
    try:
        return (folder / ERROR).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def note_failure(folder: Path, reason: str) -> None:
    """Leave ``reason`` where the stage could not say itself why it ended, such as after kill -9. Raises OSError."""
    if not (folder / ERROR).exists():
        write_atomically(folder / ERROR, reason + "\n")


def progress_writer(folder: Path) -> Callable[[str, float], None]:
    """A function that writes ``progress.json``, a few times a second at most."""
    last = 0.0

    def report(message: str, done: float) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_SECONDS or done >= 1:
            last = time.monotonic()
            write_atomically(folder / "progress.json", json.dumps({"message": message, "done": min(done, 1.0)}))

    return report


def read_progress(folder: Path) -> tuple[str, float]:
    """Message and share done, ("", 0) before the first."""
    try:
        content = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        return content["message"], content["done"]
    except (OSError, ValueError, KeyError):
        return "", 0.0


def take_lock(folder: Path, shared: bool = False, name: str = "lock") -> IO[str] | None:
    """The stage's lock as an open file, to be closed again; None while another process holds it.

    Raises:
        UserError: on a file system without locks.
    """
    file = (folder / name).open("a+")  # to read and to write: over NFS a shared lock wants the one, any other the other
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return file
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        file.close()
        raise UserError(
            f"{folder / name} cannot be locked: {error.strerror}. Mount the file system with locks (Lustre: -o flock), or write "
            f"elsewhere with root=FOLDER."
        ) from None


@contextmanager
def locked(folder: Path, waiting: Callable[[], None], shared: bool = False, name: str = "lock") -> Iterator[int]:
    """Hold the stage: two sweeps that share one run it once, the second waits (and calls ``waiting`` every half second).

    Yields the lock's file descriptor: a process that inherits it keeps the stage locked until it, too, is gone. ``shared``: hold it together
    with others that do so, and keep out only those that want it alone.

    Raises:
        UserError: on a file system without locks.
    """
    while (file := take_lock(folder, shared, name)) is None:
        waiting()
        time.sleep(0.5)
    with file:
        yield file.fileno()
