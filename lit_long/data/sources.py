"""One's own documents: what a source's path means, what it holds, and how the reading is cut into parts.

A part is what one process reads at a time and what one shard of the token store comes from. Parts follow from the files alone, so that
the store is the same whatever the number of processes:

    text       files in a row, up to 64 MiB together; each file is one document
    jsonl      64 MiB of an uncompressed file (a line belongs to the part it begins in), or a whole compressed file
    json       a whole file: JSON objects in an array, or one after the other
    parquet    row groups in a row, up to 64 MiB together
    hf         131,072 rows, or one of the data set's own shards when streaming

A source of kind ``mixed`` has files of several kinds, a source of kind jsonl may have json files, too.
"""

from __future__ import annotations

import codecs
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from lit_long.config import SourceConfig, UserError, check_path, differing, nearest
from lit_long.data.conversations import check_instruct
from lit_long.data.hub import HUGGING_FACE, fingerprint, list_ranges
from lit_long.data.paths import FileFormat, describe_left_out, list_files
from lit_long.data.readers import Part, list_columns, open_parquet, read_part, try_first_document
from lit_long.pretrained.digests import file_digests

KINDS = ("text", "jsonl", "parquet", "mixed", "hf")
PART_BYTES = 2**26
# Where texts lie, and what is decided of them once all are there.
_NOT_IN_SHARDS = ("path", "streaming", "dedup", "validation_share", "split_by", "content", "instruct")
_SAVED = ("state.json", "dataset_dict.json")  # what `datasets` leaves in a folder it saved


@dataclass(frozen=True)
class Found:
    """What a resolved source holds: for hf no files but its fingerprint."""

    files: tuple[Path, ...]
    names: tuple[str, ...]
    digests: tuple[str, ...]
    formats: tuple[FileFormat, ...] = ()

    @property
    def content(self) -> str:
        """sha256 that changes with any name or byte, and not with the place."""
        return hashlib.sha256(json.dumps([self.names, self.digests]).encode()).hexdigest()


def resolve_source(name: str, source: SourceConfig, key: str = "") -> SourceConfig:
    """The source with its kind and content filled in and its path made absolute, once its first rows could be read.

    Args:
        key: begins the messages; data.sources.NAME unless a command names the path otherwise.

    Raises:
        UserError: no path, nothing there, what cannot be read, or settings that make no sense; or another content than insisted on.
    """
    key = key or f"data.sources.{name}"
    _check_settings(key, name, source)
    check_path(source.path.removeprefix(HUGGING_FACE), f"{key}.path={source.path}", "the folder")
    list_columns(key, source)
    kind = source.kind if source.kind != "auto" else _kind_of(key, source)
    path = source.path
    if kind != "hf":
        path = str(Path(path).expanduser().absolute())
    elif (folder := Path(path.removeprefix(HUGGING_FACE)).expanduser()).exists():
        path = f"{HUGGING_FACE}{folder.absolute()}"
    resolved = replace(source, kind=kind, path=path)
    found = find_files(name, resolved, key)
    content = found.content
    if source.content not in ("", content):
        raise UserError(
            f"{key}: what is in {source.path} now is not what was planned with (its digest is {content[:12]}…, not "
            f"{source.content[:12]}…). Put the files back, or start the command again to use what is there."
        )
    _try_first_documents(key, resolved, found)
    if source.split_by:
        _check_split_by(key, resolved, found)
    return replace(resolved, content=content)


def _check_split_by(key: str, source: SourceConfig, found: Found) -> None:
    """Raise a UserError unless files have names, and the names tell at least two sides."""
    if source.kind != "text":
        raise UserError(f"{key}.split_by is for text files, whose names it looks at; {source.path} holds {source.kind}.")
    try:
        shared = {shared_name(source, name) for name in found.names}
    except re.error as error:
        raise UserError(f"{key}.split_by={source.split_by} is no pattern: {error}.") from None
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    if len(shared) < 2 and 0 < source.validation_share < 1:
        raise UserError(
            f"{key}.split_by={source.split_by} finds the same in all names, so all documents would be held out; set {key}.validation_share=0, or "
            f"another pattern."
        )


def shared_name(source: SourceConfig, name: str) -> str:
    """What the name of a document's file has in common with those on its side of the split, as ``split_by`` finds it.

    Raises:
        UserError: it finds nothing.
    """
    found = re.search(source.split_by, name)
    if found is None:
        raise UserError(f"split_by={source.split_by} is not found in the file's name {name}.")
    return found[min(1, found.re.groups)]


def find_files(name: str, source: SourceConfig, key: str = "") -> Found:
    """Files of a resolved source, with their digests. Raises UserError if there is none."""
    key = key or f"data.sources.{name}"
    if source.kind == "hf":
        return Found((), (), (fingerprint(key, source),))
    listing = list_files(key, source.path, source.kind, source.encoding)
    digests = tuple(file_digests(listing.files))
    return Found(tuple(listing.files), tuple(listing.names), digests, tuple(listing.formats))


def _try_first_documents(key: str, source: SourceConfig, found: Found) -> None:
    """Read the first and the last file of each kind to their first document, and raise a UserError where that cannot be done.

    Nothing else is known of a source before its documents are prepared, and by then much may have been computed.
    """
    if source.kind == "hf":
        if importlib.util.find_spec("datasets") is None:
            raise UserError(f"{key}: {HUGGING_FACE} paths need the package datasets: pip install 'lit-long[datasets]'")
        return
    by_kind: dict[str, list[tuple[Path, FileFormat]]] = {}
    for file, form in zip(found.files, found.formats):
        by_kind.setdefault(form.kind, []).append((file, form))
    _check_wide(key, source, set(by_kind))
    for kind, files in by_kind.items():
        for file, form in {files[0]: None, files[-1]: None}:
            start, stop = (0, -1) if kind == "text" else next(iter(_cut_file(str(file), form)), (0, 0))
            try_first_document(key, source, Part(kind, (str(file),), (str(file),), ("",), start, stop))


def list_left_out(name: str, source: SourceConfig, key: str = "") -> dict[str, list[str]]:
    """Names of files of a resolved source's path that are no part of it, by reason; of data sets that `datasets` reads it decides."""
    return (
        {}
        if source.kind == "hf"
        else list_files(key or f"data.sources.{name}", source.path, source.kind, source.encoding).left_out
    )


def list_parts(name: str, source: SourceConfig, key: str = "") -> list[Part]:
    """All parts of a resolved source, in order."""
    if source.kind == "hf":
        key = key or f"data.sources.{name}"
        found = (fingerprint(key, source),)
        return [Part("hf", (), (), found, start, stop) for start, stop in list_ranges(key, source)]
    found = find_files(name, source, key)
    files = list(zip(map(str, found.files), found.names, found.digests, found.formats))
    cut: list[Part] = []
    for kind, group in groupby(files, lambda file: file[3].kind):
        if kind == "text":
            texts = [file[:3] for file in group]
            runs = _runs([Path(path).stat().st_size for path, *_ in texts])
            cut += [Part("text", *map(tuple, zip(*[texts[i] for i in run]))) for run in runs]
        else:
            for path, file, digest, form in group:
                cut += [Part(kind, (path,), (file,), (digest,), start, stop) for start, stop in _cut_file(path, form)]
    return cut


def read_documents(key: str, path: str, kind: str = "auto") -> tuple[list[str], str]:
    """The documents of a path that a command names, and what to say of files that were left out.

    Args:
        key: begins the messages, such as ``text=FOLDER``.

    Raises:
        UserError: as `resolve_source` and `read_part` do.
    """
    source = resolve_source("text", SourceConfig(path=path, kind=kind), key)
    texts = [each.text for part in list_parts("text", source, key) for each in read_part(key, source, part)]
    return texts, describe_left_out(list_left_out("text", source, key))


def _cut_file(path: str, form: FileFormat) -> list[tuple[int, int]]:
    """Where the parts of a file of rows start and stop."""
    if form.kind == "parquet":
        return _cut_parquet(path)
    if form.kind == "json" or form.compression:
        return [(0, -1)]
    size = Path(path).stat().st_size
    return [(start, min(start + PART_BYTES, size)) for start in range(0, max(size, 1), PART_BYTES)]


def _runs(sizes: list[int]) -> Iterator[range]:
    """Neighbouring indices whose sizes add up to PART_BYTES at most, or single ones."""
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and total + size > PART_BYTES:
            yield range(start, index)
            start, total = index, 0
        total += size
    if start < len(sizes):
        yield range(start, len(sizes))


def _cut_parquet(path: str) -> list[tuple[int, int]]:
    with open_parquet(path) as file:
        sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups)]
    return [(run.start, run.stop) for run in _runs(sizes)]


def _check_wide(key: str, source: SourceConfig, kinds: set[str]) -> None:
    """Raise a UserError for JSON lines in an encoding whose line ends are not single bytes."""
    if "jsonl" in kinds and codecs.lookup(source.encoding).name.startswith(("utf-16", "utf-32")):
        raise UserError(
            f"{key}.encoding: JSON lines in {source.encoding} cannot be cut at line ends; convert the files to utf-8."
        )


def _check_settings(key: str, name: str, source: SourceConfig) -> None:
    if not source.path:
        raise UserError(f"{key}.path is missing: name a folder, a file, a glob or {HUGGING_FACE}NAME.")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", name):
        raise UserError(
            f"{key}: a source's name begins with a letter and is made of ASCII letters, digits, - and _, for it names folders, columns and metrics."
        )
    if source.kind not in ("auto", *KINDS):
        raise UserError(f"{key}.kind: unknown kind {source.kind!r}{nearest(source.kind, ('auto', *KINDS))}")
    if source.instruct.schema:
        check_instruct(key, source)
    if 0 < source.max_characters < source.min_characters:
        raise UserError(
            f"{key}: min_characters={source.min_characters} and max_characters={source.max_characters} leave no document; "
            f"0 as max_characters means no limit."
        )
    try:
        codecs.lookup(source.encoding)
    except LookupError:
        raise UserError(f"{key}.encoding: Python knows no encoding {source.encoding!r}; most text is utf-8 or latin-1.") from None


def _kind_of(key: str, source: SourceConfig) -> str:
    """The kind that a path means."""
    path = source.path
    if path.startswith(HUGGING_FACE):
        return "hf"
    if any((Path(path).expanduser() / name).is_file() for name in _SAVED):
        raise UserError(f"{key}.path={path} was saved by Hugging Face datasets; write path={HUGGING_FACE}{path}.")
    kinds = list_files(key, path, "auto", source.encoding).kinds
    return kinds[0] if len(kinds) == 1 else "mixed"


def plain_source(source: SourceConfig) -> dict[str, Any]:
    """What decides which texts of a part become documents: all settings that a shard depends on, those yet to come included."""
    settings = {name: value for name, value in asdict(source).items() if name not in _NOT_IN_SHARDS}
    return settings | instruct_identity(source)


def instruct_identity(source: SourceConfig) -> dict[str, Any]:
    """What prepared instruction data depend on; nothing of a source of plain text, as before there was another kind."""
    if not source.instruct.schema:
        return {}
    by_document = {"held_out": "documents"} if source.instruct.schema == "qa" else {}  # before, single questions were
    return {"instruct": differing(source.instruct)} | by_document
