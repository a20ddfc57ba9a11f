"""Texts out of the parts of a source, one after the other; whatever is wrong with a file ends in a message that says where.

Nothing is skipped but blank lines of JSON lines: a line that cannot be read, a missing field or a compressed file without its end stops
the preparation, for a store that is silently short is worse than none.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from lit_long.config import SourceConfig, UserError
from lit_long.data.fields import names
from lit_long.data.rows import columns, document
from lit_long.data.sources import Part

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_BATCH_ROWS = 256  # of parquet; long documents make rows large
_READ_BYTES = 2**20


class Text(NamedTuple):
    """One document. ``place``: in a text part the file's number, in JSON lines the byte its line starts at (of the line itself, the number,
    in a compressed file), else the row."""

    place: int
    text: str


def read_part(key: str, source: SourceConfig, part: Part) -> Iterator[Text]:
    """All documents of a part, unfiltered. ``key`` (``data.sources.NAME``) begins the messages.

    Raises:
        UserError: naming the file and the line, byte or row.
    """
    if part.kind == "hf":
        from lit_long.data.hub import read_rows

        for place, row in read_rows(key, source, part):
            if (text := _document(key, source, row, f"row {place}", "field")) is not None:
                yield Text(place, text)
    else:
        yield from {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}[part.kind](key, source, part)


def _read_text(key: str, source: SourceConfig, part: Part) -> Iterator[Text]:
    for number, path in enumerate(part.files):
        with _readable(key, path), _opened(path) as file:
            content = file.read()
        try:
            text = content.decode(source.encoding)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(f"{key}: {path}, line {line}: {_not_text(source, error, 0)}") from None
        yield Text(number, _whole(key, path, text.removeprefix("\ufeff")))


def _read_jsonl(key: str, source: SourceConfig, part: Part) -> Iterator[Text]:
    (path,) = part.files
    compressed = part.stop < 0
    with _readable(key, path), _opened(path) as file:
        place = _first_line(file, part.start)
        number = 0
        while (compressed or place < part.stop) and (line := file.readline()):
            number += 1
            if stripped := line.strip():
                where = f"{path}, line {number}" if compressed else path
                if place == 0 or number == 1:
                    stripped = stripped.removeprefix(codecs.BOM_UTF8)
                try:
                    text = _json_text(key, source, stripped)
                except UserError as error:
                    where = where if compressed else f"{path}, line {_line_number(path, place)} (byte {place})"
                    raise UserError(f"{key}: {where}: {error}") from None
                if text is not None:
                    yield Text(number if compressed else place, text)
            place += len(line)


def _first_line(file: BinaryIO, start: int) -> int:
    """Move to the first line that begins at ``start`` or after, and return where that is."""
    if start:
        file.seek(start - 1)
        file.readline()  # the rest of a line that belongs to the part before; only its line end, if one begins right at ``start``
    return file.tell() if start else 0


def _json_text(key: str, source: SourceConfig, line: bytes) -> str | None:
    try:
        row = json.loads(line.decode(source.encoding))
    except UnicodeDecodeError as error:
        raise UserError(_not_text(source, error, 0)) from None
    except ValueError as error:
        raise UserError(
            f"is not valid JSON: {error}. The line starts with {line[:40]!r}; if the file was cut off, get it again."
        ) from None
    except RecursionError:
        raise UserError(f"is nested too deeply for JSON: {line[:40]!r}…") from None
    if not isinstance(row, dict):
        raise UserError(f"must hold an object such as {{'text': '…'}}, not {type(row).__name__}.")
    text = document(key, source, row)
    return text if text is None else _whole("", "", text)


def _read_parquet(key: str, source: SourceConfig, part: Part) -> Iterator[Text]:
    (path,) = part.files
    with _readable(key, path), open_parquet(path) as file:
        wanted, found = columns(key, source), file.schema_arrow.names
        if missing := [name for name in wanted if name not in found]:
            raise UserError(
                f"{key}: {path}: has no column '{missing[0]}', but {names(found)}. Set {key}.text to the one that holds the text."
            )
        place = sum(file.metadata.row_group(group).num_rows for group in range(part.start))
        groups = list(range(part.start, part.stop))
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=wanted):
            for row in batch.to_pylist():
                if (text := _document(key, source, row, f"{path}, row {place}", "column")) is not None:
                    yield Text(place, text)
                place += 1


@contextmanager
def open_parquet(path: str) -> Iterator[ParquetFile]:
    """A parquet file, its checksums verified where it has some. Raises UserError if it is none, or has lost its end."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path}: cannot be read as parquet: {reason}. If the file was cut off or damaged, get it again."
        ) from None


def _document(key: str, source: SourceConfig, row: dict[str, Any], where: str, kind: str) -> str | None:
    """The row's text, or None if it is left out. Raises UserError naming ``where``."""
    try:
        text = document(key, source, row, kind)
    except UserError as error:
        raise UserError(f"{key}: {where}: {error}") from None
    return text if text is None else _whole(key, where, text)


def _whole(key: str, where: str, text: str) -> str:
    """The text, once it is known that it can be written down as UTF-8 (JSON may hold half of a surrogate pair)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        start = f"{key}: {where}: " if where else ""
        raise UserError(
            f"{start}character {error.start} of the text is half of a surrogate pair, which is no character. Repair it."
        ) from None
    return text


def _not_text(source: SourceConfig, error: UnicodeDecodeError, start: int) -> str:
    return (
        f"byte {start + error.start} (0x{error.object[error.start]:02x}) is not {source.encoding} text: {error.reason}. If the file is text "
        f"in another encoding, set encoding=latin-1 or the like beside path; if it is no text, name the text files with a glob such as "
        f"path=FOLDER/**/*.txt."
    )


def _line_number(path: str, place: int) -> int:
    """Number of the line that starts at byte ``place``; counted only when there is something to say about it."""
    lines = 1
    with Path(path).open("rb") as file:
        while place > 0 and (block := file.read(min(place, _READ_BYTES))):
            lines += block.count(b"\n")
            place -= len(block)
    return lines


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed."""
    if path.endswith(".gz"):
        with gzip.open(path) as file:
            yield file
    elif path.endswith(".zst"):
        import io

        import pyarrow

        with Path(path).open("rb") as raw, pyarrow.CompressedInputStream(raw, "zstd") as stream:
            yield io.BufferedReader(stream, _READ_BYTES)
    else:
        with Path(path).open("rb") as file:
            yield file


@contextmanager
def _readable(key: str, path: str) -> Iterator[None]:
    """Turn what goes wrong below into a message."""
    try:
        yield
    except (EOFError, zlib.error) as error:
        raise UserError(f"{key}: {path}: is damaged or was cut off: {error}. Get the file again.") from None
    except OSError as error:
        raise UserError(
            f"{key}: {path}: cannot be read: {error.strerror or error}. Get the file again, or check its rights."
        ) from None
