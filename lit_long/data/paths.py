"""Which files a path names, and what each of them holds. That is looked at, not guessed from the name: names lie, and the same kind has many.

    parquet    begins with PAR1
    jsonl      one JSON object a line: the first line is one
    json       objects in an array, or one after the other over several lines
    text       the rest, if it is text

Any of them may be compressed: gzip, zstd, bzip2 or xz, by its first bytes. Names count only where they say more than the content can: a
damaged ``x.jsonl`` is JSON lines that cannot be read, and JSON in ``x.txt`` is refused, for one of the two is a mistake.

Linked folders are followed. What is left out of a folder is told by `Listing.left_out`; pointers and archives are errors, for they stand for
documents that are not there.
"""

from __future__ import annotations

import bz2
import codecs
import fnmatch
import functools
import glob
import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from lit_long.config import UserError

HEAD = 2**14  # bytes that are looked at
_READ_BYTES = 2**20
_MAGIC = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),  # a frame, or one to skip
    "bz2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
}
_COMPRESSED = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz")
_CLAIMS = dict.fromkeys((".jsonl", ".jsonlines", ".ndjson", ".ldjson", ".jl"), "jsonl") | {".json": "json"}
_CLAIMS |= dict.fromkeys((".parquet", ".pq"), "parquet")
_CLAIMS |= dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".html", ".htm", ".xml"), "text")
_UNPACK = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar", ".lz4", ".br", ".sz", ".snappy", ".lzma", ".lzo", ".z")
_NO_TEXT = (b"\x89PNG", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"%PDF-", b"PK\x03\x04", b"\x7fELF", b"SQLite format 3\0")
# Files that lie among rows and say something about them; of the second, rows themselves.
_ABOUT = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|changelog|authors|contributing|checksums?|(md5|sha1|sha256|sha512)sums?)([._-].*)?"
    r"|_success|.*\.(md5|sha1|sha256|sha512|crc|lock)",
    re.IGNORECASE,
)
_ABOUT_ROWS = re.compile(r"dataset_infos?\.json|_metadata|_common_metadata")
_POINTERS = (b"version https://git-lfs", b"version https://hawser", b"/annex/objects/")
_STRING = r'"(?:[^"\\]|\\.)*("|$)'
_OBJECT = rf"\{{\s*({_STRING}\s*(:|$)|\}})"
_JSON = re.compile(rf"{_OBJECT}|\[\s*({_OBJECT}|{_STRING}\s*([,\]]|$))", re.DOTALL)
_NUMBERS = re.compile(r"\[[\s\[\]\d.,eE+-]+")
_REFUSED = {
    "archive": "is an archive, or compressed in a way that is not read here (gzip, zstd, bzip2 and xz are). Unpack it, or move it elsewhere.",
    "arrow": "is an Arrow file, which Hugging Face datasets reads: path=hf:{folder}",
}
_MISNAMED = (
    "looks like JSON, which is no prose. If its rows are documents, give it the ending .json{rows}{text}; else move it elsewhere."
)
_NOT_TEXT = "is no {encoding} text. If it is text in another encoding, set encoding=utf-16 or the like beside path."


@dataclass(frozen=True)
class FileFormat:
    """What a file holds. ``kind``: text, jsonl, json, parquet; or what is no source: pointer, archive, arrow, binary.
    ``compression``: gzip, zstd, bz2, xz or none. ``misnamed``: JSON under the name of a text."""

    kind: str
    compression: str
    misnamed: bool = False
    empty: bool = False

    @property
    def source_kind(self) -> str:
        """The kind of a source that holds it: jsonl includes json."""
        return "jsonl" if self.kind == "json" else self.kind


@dataclass
class Listing:
    """Files sorted by name, what each holds, the folder that names are relative to, and what was left out: names by reason."""

    root: Path
    files: list[Path] = field(default_factory=list)
    formats: list[FileFormat] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, name: str) -> None:
        self.left_out.setdefault(reason, []).append(name)

    @property
    def names(self) -> list[str]:
        return [file.relative_to(self.root).as_posix() for file in self.files]

    @property
    def kinds(self) -> list[str]:
        """Of a source that these files are."""
        return sorted({form.source_kind for form in self.formats})


def describe_left_out(left_out: dict[str, list[str]]) -> str:
    """For messages: ``3 files left out: 2 hidden (.gitattributes, .git/), 1 no text (cover.png)``; empty if there is none."""
    count = sum(map(len, left_out.values()))
    reasons = [
        f"{len(names)} {reason} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})" for reason, names in left_out.items()
    ]
    return f"{count} {'file' if count == 1 else 'files'} left out: {', '.join(reasons)}" if count else ""


def list_files(key: str, path: str, kind: str = "auto", encoding: str = "utf-8") -> Listing:
    """Files of a path: a file, a folder or a glob.

    Args:
        key: begins the messages, and is where they tell to set ``kind``.
        kind: ``text`` takes every file for text; ``jsonl`` and ``parquet`` every one that is named, and of a folder those that hold it;
            ``auto`` and ``mixed`` take each for what it holds.

    Raises:
        UserError: nothing there, a dangling link, a pointer, an archive, a text that looks like JSON, or a file that cannot be read.
    """
    place = Path(path).expanduser()
    where = f"{key}.path={path}" if key.startswith("data.") else key
    found = Listing(place.parent)
    alone = place.is_file()
    if alone:
        candidates = [place]
    elif place.is_dir():
        found.root = place
        candidates = files_below(key, found)
    elif glob.has_magic(path):
        found.root = Path(*_before_magic(place))
        candidates = _globbed(key, place, found)
    elif place.is_symlink():
        raise UserError(_dangling(key, place))
    else:
        raise UserError(f"{where}: there is no such file or folder (looked for {place.absolute()}).")
    for file in sorted(candidates, key=lambda file: file.relative_to(found.root).as_posix()):
        name, form = file.relative_to(found.root).as_posix(), detect_format(key, file, encoding)
        if form.kind == "binary" and not alone:
            found.leave_out("no text", name)
            continue
        if kind == "text":
            form = replace(form, kind="text")
        elif kind in ("jsonl", "parquet"):
            if form.source_kind != kind and not alone and (place.is_dir() or _is_about(file.name, form)):
                found.leave_out("about the data" if _is_about(file.name, form) else f"not {kind}", name)
                continue
            form = form if form.source_kind == kind else replace(form, kind=kind)
        elif form.kind in _REFUSED or form.misnamed or form.kind == "binary":
            said = _MISNAMED if form.misnamed else _NOT_TEXT if form.kind == "binary" else _REFUSED[form.kind]
            raise UserError(
                f"{key}: {file}: {said.format(folder=file.parent, encoding=encoding, text=text_advice(key), rows=_rows_advice(key))}"
            )
        found.files.append(file)
        found.formats.append(form)
    if kind != "text" and set(found.kinds) - {"text"} and not alone:
        about = [_is_about(file.name, form) for file, form in zip(found.files, found.formats)]
        for name in (name for name, is_about in zip(found.names, about) if is_about):
            found.leave_out("about the data", name)
        kept = [pair for pair, is_about in zip(zip(found.files, found.formats), about) if not is_about]
        found.files, found.formats = [file for file, _ in kept], [form for _, form in kept]
    if not found.files:
        wanted, said = "" if kind in ("auto", "mixed") else f"{kind} ", describe_left_out(found.left_out)
        raise UserError(f"{where}: there is no {wanted}file{f' ({said})' if said else ''}.")
    return found


def text_advice(key: str) -> str:
    """For messages; paths that commands name (``text=``) have no settings."""
    return f"; if it is the text that is meant, set {key}.kind=text" if key.startswith("data.") else ""


def _rows_advice(key: str) -> str:
    return f" or set {key}.kind=jsonl" if key.startswith("data.") else ""


def files_below(key: str, found: Listing) -> list[Path]:
    """All files in and below the listing's root. Linked folders are followed, but for those that lead back to where they are linked from.

    Raises:
        UserError: a link that leads nowhere, or a folder that cannot be read.
    """
    files: list[Path] = []

    def enter(folder: Path, above: list[Path]) -> None:
        for entry in _entries(key, folder):
            path = Path(entry.path)
            name = path.relative_to(found.root).as_posix()
            if entry.name.startswith("."):
                found.leave_out("hidden", name)
            elif not path.exists():
                raise UserError(_dangling(key, path))
            elif entry.is_file():
                files.append(path)
            elif not entry.is_dir():
                found.leave_out("no regular file", name)
            elif _leads_back(path, above):
                found.leave_out("a link back to a folder that it lies in", name)
            else:
                enter(path, [*above, path.resolve()])

    enter(found.root, [found.root.resolve()])
    return files


def _globbed(key: str, pattern: Path, found: Listing) -> list[Path]:
    """Files that match. As `glob.glob`, which never ends where links lead back."""

    def match(folder: Path, parts: tuple[str, ...], above: list[Path]) -> Iterator[Path]:
        name, rest = parts[0], parts[1:]
        entries = _entries(key, folder) if glob.has_magic(name) and folder.is_dir() else ()
        if name == "**":
            yield from match(folder, rest or ("*",), above)
            for entry in entries:
                path = Path(entry.path)
                if not entry.name.startswith(".") and path.is_dir() and not _leads_back(path, above):
                    yield from match(path, parts, [*above, path.resolve()])
            return
        names = [entry.name for entry in entries if fnmatch.fnmatchcase(entry.name, name)]
        for each in names if glob.has_magic(name) else [name]:
            if os.path.lexists(path := folder / each) and (not each.startswith(".") or name.startswith(".")):
                yield from match(path, rest, above) if rest else [path]

    files = []
    parts = pattern.parts[len(found.root.parts) :]
    for path in sorted(set(match(found.root, parts, [found.root.resolve()]))):
        name = path.relative_to(found.root).as_posix()
        if any(part.startswith(".") for part in path.relative_to(found.root).parts):
            found.leave_out("hidden", name)
        elif not path.exists():
            raise UserError(_dangling(key, path))
        elif path.is_file():
            files.append(path)
        elif "**" not in parts:
            found.leave_out("a folder" if path.is_dir() else "no regular file", name)
    return files


def _entries(key: str, folder: Path) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{key}: {folder}: cannot be read: {error.strerror or error}. Check its rights.") from None


def _leads_back(folder: Path, above: list[Path]) -> bool:
    """Whether it is, or holds, one of the folders that it was reached through."""
    real = folder.resolve()
    return any(each.is_relative_to(real) for each in above)


def _before_magic(place: Path) -> Iterator[str]:
    for part in place.parts:
        if glob.has_magic(part):
            return
        yield part


def _dangling(key: str, link: Path) -> str:
    return f"{key}: {link}: is a link to {os.readlink(link)}, which is not there. Put that back, or remove the link."


def _is_about(name: str, form: FileFormat) -> bool:
    """Whether a file that lies among rows says something about them."""
    return bool((_ABOUT_ROWS if form.kind != "text" else _ABOUT).fullmatch(name)) or (form.empty and kind_by_name(name) is None)


def kind_by_name(name: str) -> str | None:
    """The kind that a file's name speaks of: jsonl, json, parquet, text; None where it may be anything."""
    suffix = Path(_plain_name(name)).suffix
    return _CLAIMS.get(suffix)


def _plain_name(name: str) -> str:
    """In small letters, without the ending of a compression."""
    name = name.lower()
    return next((name.removesuffix(ending) for ending in _COMPRESSED if name.endswith(ending)), name)


def detect_format(key: str, file: Path, encoding: str = "utf-8") -> FileFormat:
    """What a file holds, by its first bytes. Raises UserError for a pointer to what is not there, and for what cannot be read."""
    with readable(key, str(file)):
        status = file.stat()
        form = _detect_format(str(file), encoding, status.st_size, status.st_mtime_ns)
    if form.kind == "pointer":
        raise UserError(
            f"{key}: {file}: is a pointer of Git LFS (or git-annex), not the data; run git lfs pull (git annex get .) in its folder."
        )
    return form


@functools.lru_cache(maxsize=2**16)
def _detect_format(file: str, encoding: str, size: int, changed: int) -> FileFormat:
    compression = detect_compression(file)
    with opened(file) as opened_file:
        head = opened_file.read(HEAD)
    kind = _kind_of(Path(file).name, head, compression, encoding)
    misnamed = kind in ("jsonl", "json") and kind_by_name(Path(file).name) == "text"
    return FileFormat(kind, compression, misnamed, not head)


def _kind_of(name: str, head: bytes, compression: str, encoding: str) -> str:
    claim, whole = kind_by_name(name), len(head) < HEAD
    if whole and head.removeprefix(codecs.BOM_UTF8).startswith(_POINTERS):
        return "pointer"
    if head.startswith(b"PAR1") or (claim == "parquet" and not head.startswith(b"ARROW1")):
        return "archive" if compression else "parquet"  # pyarrow decompresses what is inside, not the file
    if head.startswith(b"ARROW1") or _plain_name(name).endswith((".arrow", ".feather")):
        return "arrow"
    if _plain_name(name).endswith(_UNPACK) or head[257:262] == b"ustar":
        return "archive"
    text = head.decode(encoding, "replace").lstrip("\ufeff \t\r\n")
    if claim in ("jsonl", "json"):
        return _form(text, whole, claim)
    if _looks_like_json(text, whole):
        return _form(text, whole, "json")
    return "binary" if head.startswith(_NO_TEXT) or (b"\0" in head and _undecodable(head, whole, encoding)) else "text"


def _looks_like_json(text: str, whole: bool) -> bool:
    if _JSON.match(text):
        return True
    if not text.startswith("["):
        return False
    if not whole:
        return bool(_NUMBERS.fullmatch(text))
    try:
        return isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return False


def _form(text: str, whole: bool, claim: str) -> str:
    """jsonl or json. Of a damaged first line its name says which of them it is."""
    first, newline, _ = text.partition("\n")
    if claim == "jsonl":
        return "json" if first.strip() == "{" or re.match(r"\[\s*\{", text) else "jsonl"
    if not text or (text.startswith("{") and not newline and not whole):
        return "jsonl"  # nothing at all, or a long line
    try:
        return "jsonl" if isinstance(json.loads(first), dict) else "json"
    except (ValueError, RecursionError):
        return "json"


def _undecodable(head: bytes, whole: bool, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(head, final=whole)
    except UnicodeDecodeError:
        return True
    return False


def detect_compression(file: str) -> str:
    """gzip, zstd, bz2, xz, or an empty string."""
    with open(file, "rb") as raw:
        head = raw.read(16)
    return next((name for name, magic in _MAGIC.items() if magic.match(head)), "")


@contextmanager
def opened(file: str) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed."""
    match detect_compression(file):
        case "gzip":
            with gzip.open(file) as stream:
                yield stream
        case "bz2":
            with bz2.open(file) as stream:
                yield stream
        case "xz":
            with lzma.open(file) as stream:
                yield stream
        case "zstd":
            import pyarrow

            with open(file, "rb") as raw, pyarrow.CompressedInputStream(raw, "zstd") as stream:
                yield io.BufferedReader(stream, _READ_BYTES)
        case _:
            with open(file, "rb") as stream:
                yield stream


@contextmanager
def readable(key: str, path: str) -> Iterator[None]:
    """Turn what goes wrong below into a message."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{key}: {path}: is damaged or was cut off: {error}. Get the file again.") from None
    except OSError as error:
        said = error.strerror or str(error)
        if "too much memory" in said:  # zstd's words for a window of more than 128 MiB
            raise UserError(
                f"{key}: {path}: was compressed with a window of more than 128 MiB (zstd --long=28 or more), which is not read here. Compress it "
                f"again without: zstd -dc --long=31 FILE | zstd -o NEW"
            ) from None
        raise UserError(f"{key}: {path}: cannot be read: {said}. Get the file again, or check its rights.") from None
