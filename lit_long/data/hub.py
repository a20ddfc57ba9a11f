"""Sources that Hugging Face `datasets` loads: a folder it saved, a folder of data files, or a repository on the hub.

``hf:FOLDER`` · ``hf:ORG/NAME`` · ``hf:ORG/NAME@COMMIT``. A folder is known by its files' content, a repository by its commit, which is
looked up once when planning unless it is given. `datasets` is an extra of lit-long and imported only here.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from lit_long.config import SourceConfig, UserError
from lit_long.data.paths import Listing, detect_format, files_below
from lit_long.pretrained.digests import file_digests

HUGGING_FACE = "hf:"
PART_ROWS = 2**17
_COMMIT = re.compile(r"[0-9a-f]{40}")


@functools.cache
def _commit(key: str, name: str, revision: str | None) -> str:
    """The commit that a repository's revision stands for. Cached: one planning, one answer."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision).sha)
    except Exception as error:  # the hub's client raises its own, requests' and httpx's
        raise UserError(
            f"{key}.path={HUGGING_FACE}{name}: the hub cannot say which commit that is: {str(error).splitlines()[0]}. Give the commit "
            f"({HUGGING_FACE}{name}@…, 40 hexadecimal digits), or a folder."
        ) from None


def _place(key: str, source: SourceConfig) -> tuple[str, str | None]:
    """Folder and None, or repository and commit."""
    name = source.path.removeprefix(HUGGING_FACE)
    if Path(name).is_dir():
        return name, None
    name, _, revision = name.partition("@")
    return name, revision if _COMMIT.fullmatch(revision) else _commit(key, name, revision or None)


def fingerprint(key: str, source: SourceConfig) -> str:
    """What stands for the data set's content. Raises UserError if it is not there."""
    name, commit = _place(key, source)
    if commit:
        return f"{name}@{commit}"
    folder = Path(name)
    # .arrow, .json, .csv … : `datasets` decides what it reads of them. Its own caches (cache-*.arrow) and hidden files are none of it.
    files = sorted(file for file in files_below(key, Listing(folder)) if not re.match(r"cache-.*\.arrow", file.name))
    for file in files:
        detect_format(key, file)  # is it a pointer?
    if not files:
        raise UserError(f"{key}.path={source.path}: the folder holds no files.")
    named = [[file.relative_to(folder).as_posix(), digest] for file, digest in zip(files, file_digests(files))]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def list_ranges(key: str, source: SourceConfig) -> list[tuple[int, int]]:
    """Where the parts of the data set start and stop: ranges of rows, or (when streaming) the number of a shard and -1."""
    if source.streaming:
        return [(shard, -1) for shard in range(_load(key, source).num_shards)]
    rows = len(_load(key, source))
    return [(start, min(start + PART_ROWS, rows)) for start in range(0, rows, PART_ROWS)]


def load_rows(key: str, source: SourceConfig, start: int, stop: int) -> tuple[Any, int]:
    """The rows of one part, a Dataset or IterableDataset, and the number of the first; when streaming, rows count within the shard."""
    data = _load(key, source)
    if source.streaming:
        return data.shard(data.num_shards, start), 0
    return data.select(range(start, stop)), start


def _load(key: str, source: SourceConfig) -> Any:
    """The data set's split, a Dataset or (streaming) an IterableDataset."""
    datasets = _datasets(key)
    name, commit = _place(key, source)
    try:
        if commit is None and any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json")):
            data = datasets.load_from_disk(name)
            data = data[source.split] if isinstance(data, dict) else data
            return data.to_iterable_dataset() if source.streaming else data
        return datasets.load_dataset(name, source.subset or None, split=source.split, streaming=source.streaming, revision=commit)
    except Exception as error:  # `datasets` raises what its many readers raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise UserError(
            f"{key}.path={source.path}: `datasets` cannot load split '{source.split}'{f' of {source.subset}' if source.subset else ''}: "
            f"{type(error).__name__}: {reason}. Check path, subset and split."
        ) from None


def _datasets(key: str) -> ModuleType:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{key}: {HUGGING_FACE} paths need the package datasets: pip install 'lit-long[datasets]'") from None
    datasets.disable_progress_bars()
    return datasets
