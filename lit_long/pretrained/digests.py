"""sha256 of files. Those of large files are remembered, since every command asks for them and 140 GB take minutes to read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lit_long.files import cache_folder, waiting_lock, write_atomically

LARGE = 2**28  # bytes


def file_digest(file: Path) -> str:
    """sha256 of the content of ``file``, remembered when it is large (see `file_digests`)."""
    return file_digests([file])[0]


def file_digests(files: Sequence[Path]) -> list[str]:
    """sha256 of the content of each file.

    In the Hugging Face hub's cache large files are links to blobs that are named by it. Other files that are large together are read once,
    by one process, and again when size or time of change is no longer the same; deleting digests.json in the cache (`cache_folder`) forgets all.
    """
    statuses = [file.stat() for file in files]
    if sum(status.st_size for status in statuses) < LARGE:
        return [blob_name(file) or read_digest(file) for file in files]
    keys = [f"{file.resolve()} {status.st_size} {status.st_mtime_ns}" for file, status in zip(files, statuses)]
    unnamed = {key: file for key, file in zip(keys, files) if not blob_name(file)}
    memory = cache_folder() / "digests.json"
    known = remembered(memory)
    if not unnamed.keys() <= known.keys():
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a home that cannot be written to costs time, no more
                stack.enter_context(waiting_lock(memory.with_name(".digests.lock")))  # the ranks of a job ask at once
            known = remembered(memory)
            missing = {key: file for key, file in unnamed.items() if key not in known}
            with ThreadPoolExecutor() as pool:  # hashing lets go of Python's lock
                known.update(zip(missing, pool.map(read_digest, missing.values())))
            if missing:
                with contextlib.suppress(OSError):
                    write_atomically(memory, json.dumps(known, indent=0))
    return [blob_name(file) or known[key] for key, file in zip(keys, files)]


def remembered(memory: Path) -> dict[str, str]:
    """Digests that were written down, by path, size and time of change; none where that cannot be read."""
    try:
        return json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def blob_name(file: Path) -> str:
    """The sha256 that a file of the Hugging Face hub's cache is named by, or ""."""
    blob = file.resolve().name if file.is_symlink() else ""
    return blob if re.fullmatch(r"[0-9a-f]{64}", blob) else ""


def read_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
