"""The outputs of one task, a JSON line a sample, written as they come: the truth about an evaluation, from which scores are computed.

The first line says what was asked (model, data, prompt version, settings); a file that was asked something else is refused, not mixed.
An evaluation that was killed finds its samples again and goes on with those that are missing; half a line at the end is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from lit_long.config import UserError


class Key(NamedTuple):
    """Which sample of a task. ``length`` is the task's, in tokens."""

    domain: str
    length: int
    index: int


class Samples:
    """A task's samples in ``file``. A context manager: it holds the file open to append.

    Args:
        identity: what determines the samples, as plain JSON values.
        writes: whether there is a file at all; of several ranks that measure the first one has it.

    Raises:
        UserError: the file holds samples of something else, or is no such file.
    """

    def __init__(self, file: Path, identity: dict[str, Any], writes: bool = True) -> None:
        self.file, self.identity = file, json.loads(json.dumps(identity))
        self.records: dict[Key, dict[str, Any]] = {}
        self._stream: IO[bytes] | None = None
        self._writes = writes

    def __enter__(self) -> Samples:
        if not self._writes:
            return self
        self.file.parent.mkdir(parents=True, exist_ok=True)
        kept = 0
        if self.file.exists():
            kept = self._read(self.file.read_bytes())
        self._stream = self.file.open("ab")
        self._stream.truncate(kept)
        if not kept:
            self._write(self.identity)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._stream:
            self._stream.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """In the order of their keys, whatever the order they were written in."""
        return iter(self.records[key] for key in sorted(self.records))

    def add(self, key: Key, record: dict[str, Any]) -> None:
        """Keep one sample, on disk before this returns."""
        self.records[key] = key._asdict() | record
        self._write(self.records[key])

    def _write(self, content: dict[str, Any]) -> None:
        if self._stream:
            self._stream.write(json.dumps(content, ensure_ascii=False).encode() + b"\n")
            self._stream.flush()

    def _read(self, content: bytes) -> int:
        """Take over the whole lines; returns the number of their bytes."""
        whole = content[: content.rfind(b"\n") + 1]
        try:
            first, *rest = [json.loads(line) for line in whole.splitlines()] or [self.identity]
            first_keys = first.keys()
            found = {Key(row["domain"], row["length"], row["index"]): row for row in rest}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.file}: not a file of samples ({error}); move it away, or name another out=…") from None
        if first != self.identity:
            other = sorted(key for key in first_keys | self.identity.keys() if first.get(key) != self.identity.get(key))
            raise UserError(
                f"{self.file}: holds the samples of another evaluation, which differs in {', '.join(other)}; name another out=…, or "
                f"delete the file to measure again"
            )
        self.records = found
        return len(whole)
