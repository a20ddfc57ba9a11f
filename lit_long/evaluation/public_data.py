"""Rows of public data sets from local files, laid out as their authors publish them: ``data=FOLDER`` of evaluations through lm-eval, and ``qa=FOLDER``.

The data set OWNER/NAME of the hub is looked for in FOLDER/OWNER/NAME, then in FOLDER/NAME. There a file belongs to a configuration and a
split when its path says so, as on the hub (`ARC-Easy/test-00000-of-00001.parquet`, `main/train.jsonl`); files that name no split at all
(`data/qasper.jsonl` of LongBench) belong to every one; SCROLLS' archives (`qasper.zip`, with `qasper/validation.jsonl`) are read as they are.

What is missing, cut off or only half there is an error that names it: nothing is ever scored on a part of a data set in silence.
"""

from __future__ import annotations

import json
import random
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_long.config import UserError
from lit_long.data.paths import Listing, detect_format, files_below, kind_by_name, opened, readable
from lit_long.data.readers import open_parquet
from lit_long.files import lines_of

ENDINGS = (".json", ".jsonl", ".parquet")  # and what else says the same, compressed or not (data/paths.py)
SPLITS = ("train", "validation", "test", "dev", "prompt")
SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})((?:\.\w+)+)$")
Row = dict[str, Any]


class Unavailable(UserError):
    """The task cannot be measured here at all, as when its data set is not there; a suite leaves it out, and says so."""


def local_rows(folder: str, path: str, config: str | None, split: str) -> list[Row]:
    """The rows of one split, in the order of the files.

    Args:
        path: OWNER/NAME on the hub.
        config: the data set's configuration; None where it has but one.

    Raises:
        Unavailable: there is nothing of it.
        UserError: it is damaged, incomplete or empty, naming the file.
    """
    root = place(folder, path)
    archive = root / f"{config}.zip"
    if archive.is_file():
        rows = list(zipped(archive, f"{config}/{split}.jsonl"))
    else:
        files = files_of(root, config, split)
        rows = [row for file in files for row in rows_of(file)]
    wanted = f"{path}{f' ({config})' if config else ''}, split {split}"
    if not rows:
        raise UserError(f"data={folder}: {wanted} holds no rows; was the download cut off? Get it again")
    if odd := next((number for number, row in enumerate(rows) if not isinstance(row, dict)), None):
        raise UserError(f"data={folder}: {wanted}: row {odd} is no record; is it another file?")
    return rows


def draw_rows(there: int, count: int, seed: int) -> list[int]:
    """Which of ``there`` rows are asked, in their order; all, if ``count`` is 0 or no fewer. Data sets have an order (HellaSwag's first third is of
    one source), so the first ones stand for nothing."""
    if not count or count >= there:
        return list(range(there))
    return sorted(random.Random(seed).sample(range(there), count))


def place(folder: str, path: str) -> Path:
    """Where the data set lies."""
    base = Path(folder).expanduser()
    if not base.is_dir():
        raise UserError(f"data={folder}: there is no such folder")
    for root in (base / path, base / path.rpartition("/")[2]):
        if root.is_dir():
            return root
    raise Unavailable(f"data={folder}: holds no {path}: looked for {base / path} and {base / path.rpartition('/')[2]}")


def files_of(root: Path, config: str | None, split: str) -> list[Path]:
    """The files of one split; every shard of them is there."""
    paths = {file.relative_to(root).as_posix(): file for file in files_of_rows(f"data={root}", root)}
    if config:
        paths = {name: file for name, file in paths.items() if re.search(rf"(^|/){re.escape(config)}(?=[/.\-]|$)", name)}
    if not paths:
        raise Unavailable(f"{root}: holds no {', '.join(ENDINGS)} file{f' of {config}' if config else ''}")
    if any(says(name, each) for name in paths for each in SPLITS):
        paths = {name: file for name, file in paths.items() if says(name, split)}
    if not paths:
        raise UserError(
            f"{root}: the split {split}{f' of {config}' if config else ''} is missing; was only half of it downloaded?"
        )
    check_shards(list(paths.values()))
    return list(paths.values())


def says(name: str, split: str) -> bool:
    """Whether a file's name, or its folder's, is that of the split."""
    return bool(re.search(rf"(^|[/_.\-]){split}(?=[/_.\-]|$)", name))


def check_shards(files: list[Path]) -> None:
    """Raise a UserError when some of ``-00000-of-00003`` are missing."""
    for file in files:
        if found := SHARD.match(file.name):
            stem, _, count, ending = found.groups()
            for number in range(int(count)):
                shard = file.with_name(f"{stem}-{number:05d}-of-{count}{ending}")
                if not shard.is_file():
                    raise UserError(f"{shard}: is missing, while {file.name} is there; get the rest of the download")


def zipped(archive: Path, member: str) -> Iterator[Row]:
    """The rows of a JSON-lines file in an archive."""
    try:
        with zipfile.ZipFile(archive) as content, content.open(member) as lines:
            for number, line in enumerate(lines):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise UserError(f"{archive}, {member}, line {number + 1}: cannot be read as JSON: {error}") from None
    except KeyError:
        raise UserError(f"{archive}: has no {member}; is it SCROLLS' archive?") from None
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive}: is no whole ZIP file ({error}); was the download cut off? Get it again") from None


def files_of_rows(key: str, root: Path) -> list[Path]:
    """Files below a folder whose names say that they hold rows, sorted. Raises UserError as `files_below` does."""
    return sorted(file for file in files_below(key, Listing(root)) if kind_by_name(file.name) in ("jsonl", "json", "parquet"))


def rows_of(file: Path) -> Iterator[Any]:
    """The rows of one file."""
    if detect_format("data", file).kind == "parquet":
        with open_parquet(str(file)) as parquet:
            for batch in parquet.iter_batches(64):
                yield from batch.to_pylist()
        return
    with readable("data", str(file)), opened(str(file)) as stream:
        text = stream.read().decode("utf-8", errors="replace").removeprefix("\ufeff")
    try:
        yield from json.loads(text) if text.lstrip().startswith("[") else map(json.loads, lines_of(text))
    except ValueError as error:
        raise UserError(f"{file}: cannot be read as JSON: {error}. If the file was cut off, get it again") from None
