"""The folder that a command writes to."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lit_long.config.typed import UserError


def check_writable(folder: Path, key: str) -> None:
    """Try whether ``folder`` can be made and written to, before anything is computed; nothing stays behind.

    Args:
        key: the setting that names it, for the message.

    Raises:
        UserError: it cannot.
    """
    try:
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        os.rmdir(tempfile.mkdtemp(prefix=".lit-long-", dir=there))
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be written: {error.strerror}; choose another place with {key}=…") from None
