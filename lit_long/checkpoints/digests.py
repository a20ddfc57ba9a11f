"""sha256 of files. Those of large files are remembered, since every command asks for them and 140 GB take minutes to read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path

from lit_long.files import write_atomically

LARGE = 2**28  # bytes
MEMORY = Path("~/.cache/lit-long/digests.json")


def file_digest(file: Path) -> str:
    """sha256 of the content of ``file``.

    In the Hugging Face hub's cache large files are links to blobs that are named by it. Another large file is read once, and again when
    its size or time of change is no longer the same; deleting ~/.cache/lit-long/digests.json forgets all.
    """
    blob = file.resolve().name if file.is_symlink() else ""
    if re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob
    status = file.stat()
    if status.st_size < LARGE:
        return read_digest(file)
    key, memory = f"{file.resolve()} {status.st_size} {status.st_mtime_ns}", MEMORY.expanduser()
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(memory.read_text(encoding="utf-8"))
    if key not in known:
        known[key] = read_digest(file)
        with contextlib.suppress(OSError):  # a home that cannot be written to costs time, no more
            write_atomically(memory, json.dumps(known, indent=0))
    return known[key]


def read_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
