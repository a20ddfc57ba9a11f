"""Writing files so that a reader, or a crash, sees all of one or nothing."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes."""
    with replacing(file) as writing:
        writing.write_bytes(content.encode() if isinstance(content, str) else content)


def lines_of(content: str) -> list[str]:
    """Its lines, without blank ones. They end at "\\n" only: JSON may hold what `str.splitlines` takes for line ends, such as U+2028."""
    return [line for line in content.split("\n") if line.strip()]


def is_disk_full(error: OSError) -> bool:
    """Whether there was no space left, or no quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
