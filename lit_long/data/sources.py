"""One's own documents: what a source's path means, what it holds, and how the reading is cut into parts.

A part is what one process reads at a time and what one shard of the token store comes from. Parts follow from the files alone, so that
the store is the same whatever the number of processes:

    text       files in a row, up to 64 MiB together; each file is one document
    jsonl      64 MiB of an uncompressed file (a line belongs to the part it begins in), or a whole .gz or .zst file
    parquet    row groups in a row, up to 64 MiB together
    hf         131,072 rows, or one of the data set's own shards when streaming

Imports neither pyarrow nor `datasets` before there is something for them to read: planning a sweep must be quick.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lit_long.checkpoints.digests import file_digests
from lit_long.config import SourceConfig, UserError, identity_fields, nearest
from lit_long.data.conversations import check_instruct
from lit_long.data.rows import columns

KINDS = ("text", "jsonl", "parquet", "hf")
HUGGING_FACE = "hf:"
PART_BYTES = 2**26
PART_ROWS = 2**17
_COMPRESSED = (".gz", ".zst")
# Where texts lie, and what is decided of them once all are there.
_NOT_IN_SHARDS = ("path", "streaming", "dedup", "validation_share", "content", "instruct")
_SAVED = ("state.json", "dataset_dict.json")  # what `datasets` leaves in a folder it saved


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


@dataclass(frozen=True)
class Found:
    """What a settled source holds: for hf no files but its fingerprint."""

    files: tuple[Path, ...]
    names: tuple[str, ...]
    digests: tuple[str, ...]

    @property
    def content(self) -> str:
        """sha256 that changes with any name or byte, and not with the place."""
        return hashlib.sha256(json.dumps([self.names, self.digests]).encode()).hexdigest()


def settle_source(name: str, source: SourceConfig) -> SourceConfig:
    """The source with its kind and content filled in and its path made absolute.

    Raises:
        UserError: no path, nothing there, files of several kinds, or settings that make no sense; or another content than insisted on.
    """
    key = f"data.sources.{name}"
    _check_settings(key, source)
    columns(key, source)
    kind = source.kind if source.kind != "auto" else _kind_of(key, source.path)
    path = source.path
    if kind != "hf":
        path = str(Path(path).expanduser().absolute())
    elif (folder := Path(path.removeprefix(HUGGING_FACE)).expanduser()).exists():
        path = f"{HUGGING_FACE}{folder.absolute()}"
    settled = replace(source, kind=kind, path=path)
    content = find(name, settled).content
    if source.content not in ("", content):
        raise UserError(
            f"{key}: what is in {source.path} now is not what was planned with (its digest is {content[:12]}…, not "
            f"{source.content[:12]}…). Put the files back, or start the command again to use what is there."
        )
    return replace(settled, content=content)


def find(name: str, source: SourceConfig) -> Found:
    """Files of a settled source, with their digests. Raises UserError if there is none."""
    key = f"data.sources.{name}"
    if source.kind == "hf":
        from lit_long.data.hub import fingerprint

        return Found((), (), (fingerprint(key, source),))
    files, root = files_of(key, source.path, source.kind)
    return Found(tuple(files), tuple(file.relative_to(root).as_posix() for file in files), tuple(file_digests(files)))


def parts(name: str, source: SourceConfig) -> list[Part]:
    """All parts of a settled source, in order."""
    if source.kind == "hf":
        from lit_long.data.hub import parts_of

        return parts_of(f"data.sources.{name}", source)
    found = find(name, source)
    files = list(zip(map(str, found.files), found.names, found.digests))
    if source.kind == "text":
        return [
            Part("text", *map(tuple, zip(*[files[i] for i in run])))
            for run in _runs([Path(path).stat().st_size for path, _, _ in files])
        ]
    cut = _cut_jsonl if source.kind == "jsonl" else _cut_parquet
    return [
        Part(source.kind, (path,), (file,), (digest,), start, stop) for path, file, digest in files for start, stop in cut(path)
    ]


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


def _cut_jsonl(path: str) -> list[tuple[int, int]]:
    if path.endswith(_COMPRESSED):
        return [(0, -1)]
    size = Path(path).stat().st_size
    return [(start, min(start + PART_BYTES, size)) for start in range(0, max(size, 1), PART_BYTES)]


def _cut_parquet(path: str) -> list[tuple[int, int]]:
    from lit_long.data.readers import open_parquet

    with open_parquet(path) as file:
        sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups)]
    return [(run.start, run.stop) for run in _runs(sizes)]


def _check_settings(key: str, source: SourceConfig) -> None:
    if not source.path:
        raise UserError(f"{key}.path is missing: name a folder, a file, a glob or {HUGGING_FACE}NAME.")
    if not (key.rpartition(".")[2].replace("-", "_").isidentifier()):
        raise UserError(f"{key}: a source's name is made of letters, digits, - and _, for it names folders and columns.")
    if source.kind not in ("auto", *KINDS):
        raise UserError(f"{key}.kind: unknown kind {source.kind!r}{nearest(source.kind, ('auto', *KINDS))}")
    if source.instruct.schema:
        check_instruct(key, source)
    for name, lowest in (("keep", "above 0"), ("validation_share", "of at least 0")):
        value = getattr(source, name)
        if not (0 <= value <= 1) or (name == "keep" and value == 0):
            raise UserError(f"{key}.{name} must be a share {lowest} and at most 1, not {value}")
    if source.min_characters < 0 or source.max_characters < 0 or 0 < source.max_characters < source.min_characters:
        raise UserError(
            f"{key}: min_characters={source.min_characters} and max_characters={source.max_characters} leave no document; "
            f"both are counts, and 0 as max_characters means no limit."
        )
    try:
        codec = codecs.lookup(source.encoding).name
    except LookupError:
        raise UserError(f"{key}.encoding: Python knows no encoding {source.encoding!r}; most text is utf-8 or latin-1.") from None
    if codec.startswith(("utf-16", "utf-32")) and source.kind == "jsonl":
        raise UserError(
            f"{key}.encoding: JSON lines in {source.encoding} cannot be cut at line ends; convert the files to utf-8."
        )


def _kind_of(key: str, path: str) -> str:
    """The kind that a path means. Raises UserError for a mixture of kinds."""
    if path.startswith(HUGGING_FACE):
        return "hf"
    if any((Path(path).expanduser() / name).is_file() for name in _SAVED):
        raise UserError(f"{key}.path={path} was saved by Hugging Face datasets; write path={HUGGING_FACE}{path}.")
    files, _ = files_of(key, path, "auto")
    kinds = {_suffix_kind(file) for file in files}
    if len(kinds) > 1:
        raise UserError(
            f"{key}.path={path} holds files of several kinds ({', '.join(sorted(kinds))}, such as {files[0].name} and "
            f"{next(f.name for f in files if _suffix_kind(f) != _suffix_kind(files[0]))}). Say which with {key}.kind=…, or name them "
            f"with a glob such as {path.rstrip('/')}/**/*.jsonl."
        )
    return kinds.pop()


def _suffix_kind(file: Path) -> str:
    suffixes = [suffix for suffix in file.suffixes if suffix not in _COMPRESSED]
    return {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}.get(suffixes[-1] if suffixes else "", "text")


def files_of(key: str, path: str, kind: str) -> tuple[list[Path], Path]:
    """Files of a path, sorted by name, and the folder that names are relative to. Hidden ones are left out.

    A folder's files are those of the kind: of a folder of jsonl files its README is no part, but a folder of text is all text.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [place], place.parent
    if place.is_dir():
        root, candidates = place, place.rglob("*")
    elif glob.has_magic(path):
        root = Path(*_before_magic(place))
        candidates = map(Path, glob.glob(str(place), recursive=True))
    else:
        raise UserError(f"{key}.path={path}: there is no such file or folder (looked for {place.absolute()}).")
    files = [file for file in candidates if file.is_file() and not any(p.startswith(".") for p in file.relative_to(root).parts)]
    if kind in ("jsonl", "parquet") and place.is_dir():
        files = [file for file in files if _suffix_kind(file) == kind]
    if not files:
        raise UserError(f"{key}.path={path}: there is no {'' if kind == 'auto' else kind + ' '}file (hidden ones do not count).")
    return sorted(files, key=lambda file: file.relative_to(root).as_posix()), root


def _before_magic(place: Path) -> Iterator[str]:
    for part in place.parts:
        if glob.has_magic(part):
            return
        yield part


def plain_source(source: SourceConfig) -> dict[str, Any]:
    """What decides which texts of a part become documents: all settings that a shard depends on, those yet to come included."""
    settings = {name: value for name, value in asdict(source).items() if name not in _NOT_IN_SHARDS}
    return settings | instruct_identity(source)


def instruct_identity(source: SourceConfig) -> dict[str, Any]:
    """What prepared instruction data depend on; nothing of a source of plain text, as before there was another kind."""
    return {"instruct": identity_fields(source.instruct)} if source.instruct.schema else {}
