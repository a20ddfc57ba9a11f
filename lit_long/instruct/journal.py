"""What was answered, one line a reply, appended and never changed: killed at any moment, a command asks only what is not in it.

The first line says what the replies depend on. Other settings need another folder, or their data would be a mixture of two.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from lit_long.config import UserError

FILE = "journal.jsonl"


class Journal:
    """Replies by key, in ``folder``/journal.jsonl. Held by one process at a time.

    Raises:
        UserError: another process writes it, or it was written with other settings.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.replies: dict[str, str] = {}
        self._file = (folder / FILE).open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder}: another process is generating into it; wait for it, or choose another out=") from None
        lines = self._whole_lines()
        if not lines:
            self._append([{"recipe": recipe}])
        elif (old := json.loads(lines[0])["recipe"]) != (new := json.loads(json.dumps(recipe))):
            changed = sorted(key for key in old | new if old.get(key) != new.get(key))
            raise UserError(f"{folder}: was begun with other settings ({', '.join(changed)}); choose another out=, or delete it")
        for line in lines[1:]:
            entry = json.loads(line)
            self.replies[entry["key"]] = entry["reply"]

    def _whole_lines(self) -> list[bytes]:
        """The lines there are; half a line, from a process that was killed or a disk that was full, is cut off."""
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self._file.fileno(), len(whole))
        return whole.splitlines()

    def add(self, replies: dict[str, str]) -> None:
        """Keep replies, on the disk before this returns."""
        self._append([{"key": key, "reply": reply} for key, reply in replies.items()])
        self.replies |= replies

    def _append(self, entries: list[dict[str, Any]]) -> None:
        content = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        self._file.write(content.encode(errors="backslashreplace"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
