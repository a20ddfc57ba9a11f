"""Texts out of the parts of a source, one after the other; whatever is wrong with a file ends in a message that says where.

Nothing is skipped but blank lines of JSON lines, which end at "\\n" and nowhere else: a line that cannot be read, a missing field or a compressed file without its end stops
the preparation, for a store that is silently short is worse than none.

Each row gives one document. Its text is one field of the row (``text: content``) or a template filled with several fields
(``text: "{question}\\n\\n{answer}"``). ``where`` keeps only the rows with the given values. A dot leads into a nested object
(``meta.redpajama_set_name``), unless the field's own name has the dot. In instruction data the document is the whole row (conversations.py).
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from lit_long.config import SourceConfig, UserError
from lit_long.data.conversations import list_instruct_columns, to_canonical
from lit_long.data.fields import advice, column_of, fields_of, fill, names, value_of
from lit_long.data.hub import load_rows
from lit_long.data.paths import HEAD, opened, readable, text_advice

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_BATCH_ROWS = 256  # of parquet; long documents make rows large
_READ_BYTES = 2**20


@dataclass(frozen=True)
class Part:
    """A piece of a source.

    ``files`` are paths and ``names`` what messages and document names call them (none for hf). ``start`` and ``stop`` count bytes (jsonl),
    row groups (parquet) or rows (hf); of a whole file they are 0 and -1. ``digests`` are the files' sha256, or the data set's fingerprint.
    """

    kind: str
    files: tuple[str, ...]
    names: tuple[str, ...]
    digests: tuple[str, ...]
    start: int = 0
    stop: int = -1


class LeftOut(Enum):
    """Why a row gives no document; the values name counts of a store's account."""

    WHERE = "where"
    UNANSWERED = "unanswered"


class Row(NamedTuple):
    """A row of a source: its place as in `Text`, and its document or why it gives none."""

    place: int
    text: str | LeftOut


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
    for place, text in read_rows(key, source, part):
        if isinstance(text, str):
            yield Text(place, text)


def read_rows(key: str, source: SourceConfig, part: Part) -> Iterator[Row]:
    """All rows of a part, those that give no document, too. Raises UserError as `read_part` does."""
    yield from _READERS[part.kind](key, source, part)


def try_first_document(key: str, source: SourceConfig, part: Part) -> None:
    """Read a part that is a file, or its first piece, to its first document.

    Raises:
        UserError: as `read_part` does up to there.
    """
    if part.kind == "text":
        (path,) = part.files
        with readable(key, path), opened(path) as file:
            head = file.read(HEAD)
        _decoded(key, source, path, head, whole=len(head) < HEAD)
        return
    rows = _read_parquet(key, source, part, 1) if part.kind == "parquet" else read_rows(key, source, part)
    next((row for row in rows if isinstance(row.text, str)), None)  # of rows that are left out, the text is never looked at


def _read_text(key: str, source: SourceConfig, part: Part) -> Iterator[Row]:
    for number, path in enumerate(part.files):
        with readable(key, path), opened(path) as file:
            content = file.read()
        text = _decoded(key, source, path, content)
        yield Row(number, _whole(key, path, text.removeprefix("\ufeff")))


def _decoded(key: str, source: SourceConfig, path: str, content: bytes, whole: bool = True) -> str:
    """``whole``: otherwise the last character may be cut off."""
    try:
        return codecs.getincrementaldecoder(source.encoding)().decode(content, final=whole)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{key}: {path}, line {line}: {_not_text(source, error, 0)}") from None


def _read_jsonl(key: str, source: SourceConfig, part: Part) -> Iterator[Row]:
    (path,) = part.files
    compressed = part.stop < 0
    with readable(key, path), opened(path) as file:
        place = _first_line(file, part.start)
        number = 0
        while (compressed or place < part.stop) and (line := file.readline()):
            number += 1
            if stripped := (line if place else line.removeprefix(codecs.BOM_UTF8)).strip():
                where = f"{path}, line {number}" if compressed else path
                try:
                    text = _json_text(key, source, stripped)
                except UserError as error:
                    where = where if compressed else f"{path}, line {_line_number(path, place)} (byte {place})"
                    raise UserError(f"{key}: {where}: {error}") from None
                yield Row(number if compressed else place, text)
            place += len(line)


def _first_line(file: BinaryIO, start: int) -> int:
    """Move to the first line that begins at ``start`` or after, and return where that is."""
    if start:
        file.seek(start - 1)
        file.readline()  # the rest of a line that belongs to the part before; only its line end, if one begins right at ``start``
    return file.tell() if start else 0


def _json_text(key: str, source: SourceConfig, line: bytes) -> str | LeftOut:
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
    return _row_text(key, source, row)


def _row_text(key: str, source: SourceConfig, row: Any) -> str | LeftOut:
    if not isinstance(row, dict):
        raise UserError(f"must hold an object such as {{'text': '…'}}, not {type(row).__name__}.")
    text = make_document(key, source, row)
    return _whole("", "", text) if isinstance(text, str) else text


def _read_json(key: str, source: SourceConfig, part: Part) -> Iterator[Row]:
    (path,) = part.files
    with readable(key, path), opened(path) as file:
        number = 0
        try:
            for number, row in enumerate(json_values(file, source.encoding)):
                yield Row(number, _row_text(key, source, row))
                number += 1
        except UnicodeDecodeError as error:
            raise UserError(f"{key}: {path}, row {number}: {_not_text(source, error, 0)}") from None
        except (ValueError, RecursionError) as error:
            said = "nested too deeply" if isinstance(error, RecursionError) else error
            raise UserError(
                f"{key}: {path}, row {number}: is not valid JSON: {said}. If the file was cut off, get it again{text_advice(key)}."
            ) from None
        except UserError as error:
            raise UserError(f"{key}: {path}, row {number}: {error}") from None


_BLANK = re.compile(r"[ \t\r\n,]*")


def json_values(file: BinaryIO, encoding: str) -> Iterator[Any]:
    """The values of a JSON array, or JSON values one after the other, of which one at a time is in memory.

    Raises:
        ValueError: what is there is no JSON, or an array has no end.
    """
    decode, scan = codecs.getincrementaldecoder(encoding)().decode, json.JSONDecoder().raw_decode
    text, at, ended, in_array, begun = "", 0, False, False, False
    while True:
        at = _BLANK.match(text, at).end()
        if at < len(text):
            if not begun:
                begun, in_array = True, text[at] == "["
                at += in_array
                continue
            if in_array and text[at] == "]":
                if (text[at + 1 :] + decode(file.read(), final=True)).strip():
                    raise ValueError("something stands behind the end of the array")
                return
            try:
                value, stop = scan(text, at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos >= len(text) - 16
                if ended or not is_cut:
                    raise ValueError(f"{error.msg}, at {text[error.pos : error.pos + 40]!r}") from None
            else:
                if stop < len(text) or ended or isinstance(value, (dict, list, str)):
                    yield value
                    at = stop
                    continue
        elif ended:
            if in_array:
                raise ValueError("the array has no end")
            return
        more = file.read(max(_READ_BYTES, len(text) - at))  # a long value is tried again few times
        ended = not more
        text, at = text[at:] + decode(more, final=ended), 0
        text = text.removeprefix("\ufeff") if not begun else text


def _read_parquet(key: str, source: SourceConfig, part: Part, batch_rows: int = _BATCH_ROWS) -> Iterator[Row]:
    (path,) = part.files
    with readable(key, path), open_parquet(path) as file:
        wanted = columns_in(key, source, file.schema_arrow.names, f"{path}: has no column")
        place = sum(file.metadata.row_group(group).num_rows for group in range(part.start))
        groups = list(range(part.start, part.stop))
        for batch in file.iter_batches(batch_rows, row_groups=groups, columns=wanted):
            for row in batch.to_pylist():
                yield Row(place, _document(key, source, row, f"{path}, row {place}", "column"))
                place += 1


def _read_hub(key: str, source: SourceConfig, part: Part) -> Iterator[Row]:
    rows, first = load_rows(key, source, part.start, part.stop)
    found = rows.column_names
    wanted = columns_in(key, source, found, f"{source.path} has no field") if found is not None else list_columns(key, source)
    try:
        for place, row in enumerate(rows.select_columns(wanted), start=first):
            yield Row(place, _document(key, source, row, f"row {place}", "field"))
    except UserError:
        raise
    except Exception as error:  # each of the many formats raises its own
        raise UserError(f"{key}: {source.path}, after row {first}: cannot be read: {type(error).__name__}: {error}") from None


_READERS = {"text": _read_text, "jsonl": _read_jsonl, "json": _read_json, "parquet": _read_parquet, "hf": _read_hub}


def columns_in(key: str, source: SourceConfig, found: list[str], lacking: str) -> list[str]:
    """The columns to read of those ``found``. Raises UserError, in which ``lacking`` says whose column is missing."""
    wanted = {name: column_of(name, found) for name in list_columns(key, source)}
    if missing := [name.partition(".")[0] for name, column in wanted.items() if column is None]:
        raise UserError(
            f"{key}: {lacking} '{missing[0]}', but {names(found)}. {advice(f'{key}.text', 'the one that holds the text')}."
        )
    return sorted(set(wanted.values()))


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


def _document(key: str, source: SourceConfig, row: dict[str, Any], where: str, kind: str) -> str | LeftOut:
    """The row's text, or why it is left out. Raises UserError naming ``where``."""
    try:
        text = make_document(key, source, row, kind)
    except UserError as error:
        raise UserError(f"{key}: {where}: {error}") from None
    return _whole(key, where, text) if isinstance(text, str) else text


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


def list_columns(key: str, source: SourceConfig) -> list[str]:
    """Fields that a source's rows must have, in groups or not. Raises UserError for a template that is none."""
    of_text = list_instruct_columns(key, source) if source.instruct.schema else fields_of(f"{key}.text", source.text)
    return sorted({*of_text, *source.where})


def make_document(key: str, source: SourceConfig, row: dict[str, Any], kind: str = "field") -> str | LeftOut:
    """The row's text, or why it gives none; of instruction data a conversation's JSON.

    Raises:
        UserError: a missing field, or one that is no text; the message begins without a place.
    """
    for name, wanted in source.where.items():
        if not matches(value_of(f"{key}.where", name, row, kind), wanted):
            return LeftOut.WHERE
    if source.instruct.schema:
        return to_canonical(key, source, row, kind) or LeftOut.UNANSWERED
    return fill(f"{key}.text", source.text, row, kind)


def matches(value: Any, wanted: str) -> bool:
    """Whether a field's value is the one that was written: true, false and null as JSON has them, numbers however they are written."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(ValueError, InvalidOperation):
            return value == (
                float(wanted) if isinstance(value, float) else Decimal(wanted)
            )  # a float does not tell large ids apart
    return wanted == str(value) or (not isinstance(value, str) and wanted == json.dumps(value, default=str))
