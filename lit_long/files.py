"""Writing files and folders so that a reader, or a crash, sees all of one or nothing; locks; where caches lie."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CACHE_VARIABLES = ("LIT_LONG_CACHE", "XDG_CACHE_HOME")  # the first that is set counts


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary path beside ``file`` to write to; it takes ``file``'s place when the block ends well, else it is removed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Not the process' id: two machines that write to one file system may both have it.
    writing = file.with_name(f".{file.name}.{secrets.token_hex(6)}.writing")
    try:
        yield writing
        os.replace(writing, file)
    finally:
        writing.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder`` to fill; it takes ``folder``'s name when the block ends well, else it is removed.

    Raises:
        OSError: among others, ``folder`` is there by then and not empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    writing = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.writing")
    writing.mkdir()
    try:
        yield writing
        os.replace(writing, folder)  # an empty folder may be there
    finally:
        shutil.rmtree(writing, ignore_errors=True)


@contextmanager
def waiting_lock(file: Path) -> Iterator[bool]:
    """Hold ``file`` as a lock, after all who hold it now. Yields whether it is one: some file systems (Lustre, old NFS) have none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            locked = True
        except OSError:
            locked = False
        yield locked


def cache_folder() -> Path:
    """Where lit-long keeps what it can make again: LIT_LONG_CACHE, else XDG_CACHE_HOME/lit-long, else ~/.cache/lit-long.

    Raises:
        RuntimeError: the place is ``~NAME`` of nobody. Commands refuse that when they start (terminal.py).
    """
    own, general = (os.environ.get(name) for name in CACHE_VARIABLES)
    return Path(own).expanduser() if own else Path(general or "~/.cache").expanduser() / "lit-long"


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes."""
    with replacing(file) as writing:
        writing.write_bytes(content.encode() if isinstance(content, str) else content)


def lines_of(content: str) -> list[str]:
    """Its lines, without blank ones. They end at "\\n" only: JSON may hold what `str.splitlines` takes for line ends, such as U+2028."""
    return [line for line in content.split("\n") if line.strip()]


class Log:
    """Entries of JSON, one a line, appended and never changed: killed at any moment, a process finds there what it had done.

    Args:
        recipe: what the entries depend on; those of another recipe are thrown away.
    """

    def __init__(self, file: Path, recipe: str) -> None:
        self.file = file
        self.entries: list[Any] = []
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        whole = 0
        with file.open("rb") as lines:
            for number, line in enumerate(lines):
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:  # what a power cut left
                    entry = None
                if entry is None or (not number and entry != recipe):
                    break
                self.entries += [entry] if number else []
                whole += len(line)
        os.truncate(file, whole)
        if not whole:
            self._append(recipe)

    def add(self, entry: Any) -> None:
        self._append(entry)
        self.entries.append(entry)

    def _append(self, entry: Any) -> None:
        with self.file.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")


def is_disk_full(error: OSError) -> bool:
    """Whether there was no space left, or no quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
