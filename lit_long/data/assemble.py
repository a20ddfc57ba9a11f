"""From sources to their part of the store: parts → shards → which documents are trained on, which are held out, which are duplicates.

The last step is the only one that looks at a whole source. It keeps about 100 bytes a document in memory, and no text or token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lit_long.config import SourceConfig, UserError
from lit_long.data.conversations import template_of
from lit_long.data.documents import INDEX, counts, shard_file
from lit_long.data.shards import FOLDER, HASHES, Task, make_shards, read_record
from lit_long.data.sources import parts
from lit_long.data.words import Words
from lit_long.files import replacing

_WIDE = np.dtype([*INDEX.descr, ("bytes", "<i8"), ("first", "<u8"), ("second", "<u8")])
Report = Callable[[str, float], None]


def prepare_sources(
    folder: Path, sources: dict[str, SourceConfig], words: Words, processes: int, report: Report
) -> tuple[dict[str, dict], dict[str, dict]]:
    """Write the shards and indices of settled sources into ``folder``.

    Returns:
        Entries of the manifest: per domain its splits, and per source what became of its documents.

    Raises:
        UserError: as the readers do; and for a source, or a split of it, without documents.
    """
    tasks = _tasks(folder, sources, words)
    records = make_shards([task for found in tasks.values() for task in found], processes, report)
    of_source: dict[str, list[dict[str, Any]]] = {}
    for name, found in tasks.items():
        of_source[name], records = records[: len(found)], records[len(found) :]
        _clean(folder / name / FOLDER, len(found))
    tables = {name: _read_rows(folder / name / FOLDER, of_source[name]) for name in tasks}
    for name, rows in tables.items():
        if not len(rows):
            raise UserError(_empty(name, sources[name], of_source[name]))
    held = {name: _held_out(rows, sources[name].validation_share) for name, rows in tables.items()}
    held_texts = np.concatenate([_texts(tables[name][chosen]) for name, chosen in held.items()])
    domains, accounts = {}, {}
    for name, source in sorted(sources.items()):
        rows, validation = tables[name], held[name]
        unique = _first_of_equals(rows) if source.dedup else np.ones(len(rows), bool)
        leaked = (
            np.isin(_texts(rows), held_texts) & ~validation
        )  # held out of another source, or of this one as its only document
        splits = {"train": unique & ~validation & ~leaked, "validation": unique & validation}
        if not splits["train"].any():
            raise UserError(
                f"data.sources.{name} ({source.path}): all its {int(unique.sum())} documents are held out, so there are none to train on. "
                f"Give it more documents, or lower data.sources.{name}.validation_share (0 holds out none)."
            )
        domains[name] = {split: _write(folder / name / split, rows, chosen) for split, chosen in splits.items()}
        accounts[name] = _account(source, of_source[name], int((~unique).sum()), int((unique & leaked).sum()))
    return domains, accounts


def make_share(
    folder: Path, sources: dict[str, SourceConfig], words: Words, share: tuple[int, int], processes: int, report: Report
) -> tuple[int, int]:
    """Make every n-th shard of settled sources, the i-th of each n, for ``share`` = (i, n).

    Returns:
        How many shards there are now, whoever made them, and how many there will be.
    """
    tasks = [task for found in _tasks(folder, sources, words).values() for task in found]
    number, count = share
    make_shards(tasks[number - 1 :: count], processes, report)
    return sum(read_record(task) is not None for task in tasks), len(tasks)


def _tasks(folder: Path, sources: dict[str, SourceConfig], words: Words) -> dict[str, list[Task]]:
    """By source, the shards it will have."""
    return {
        name: [
            Task(f"data.sources.{name}", source, part, file, words.file, words.digest, words.separator, words.dtype, template)
            for number, part in enumerate(parts(name, source))
            for file in [shard_file(folder / name / FOLDER, number)]
        ]
        for name, source in sorted(sources.items())
        for template in [template_of(f"data.sources.{name}", source, words.template) if source.instruct.schema else None]
    }


def _clean(folder: Path, shards: int) -> None:
    """Remove what killed processes left half written, and shards of an earlier, longer source. All of this one's are there now."""
    for file in folder.glob(".*.writing"):
        file.unlink(missing_ok=True)
    for file in folder.glob("[0-9]*"):
        if int(file.stem) >= shards:
            file.unlink()


def _read_rows(folder: Path, records: list[dict[str, Any]]) -> np.ndarray:
    """Rows of all shards, with ``shard`` and ``start`` in front."""
    tables = []
    for number, record in enumerate(records):
        table = np.load(shard_file(folder, number).with_suffix(".npy"))
        if hashlib.sha256(table.tobytes()).hexdigest() != record["sha256"]["rows"]:
            file = shard_file(folder, number).with_suffix(".npy")
            raise UserError(f"{file} is damaged: its checksum is not the one it was written with. Delete it and prepare again.")
        rows = np.zeros(len(table), _WIDE)
        for field in table.dtype.names:
            rows[field] = table[field]
        rows["shard"] = number
        rows["start"] = np.cumsum(table["tokens"]) - table["tokens"]
        tables.append(rows)
    return np.concatenate(tables) if tables else np.zeros(0, _WIDE)


def _texts(rows: np.ndarray) -> np.ndarray:
    """uint64 [documents], a number for each text. 64 bits: of a billion documents, one in forty times one is taken for another's equal."""
    return rows["first"] ^ (rows["second"] * np.uint64(0x9E3779B97F4A7C15))


def _held_out(rows: np.ndarray, share: float) -> np.ndarray:
    """bool [documents]. At least one document is held out, the one with the smallest hash, unless ``share`` is 0."""
    if share >= 1:
        return np.ones(len(rows), bool)
    chosen = rows["first"] < np.uint64(share * HASHES)
    if share and not chosen.any():
        chosen = rows["first"] == rows["first"].min()
    return chosen


def _first_of_equals(rows: np.ndarray) -> np.ndarray:
    """bool [documents]: whether no document before it has the same text."""
    order = np.lexsort((rows["second"], rows["first"]))  # stable: of equals the first stays first
    same = (rows["first"][order][1:] == rows["first"][order][:-1]) & (rows["second"][order][1:] == rows["second"][order][:-1])
    unique = np.ones(len(rows), bool)
    unique[order[1:][same]] = False
    return unique


def _write(folder: Path, rows: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    """Write the index of one split and return its entry in the manifest."""
    index = np.zeros(int(chosen.sum()), INDEX)
    for field in INDEX.names:
        index[field] = rows[field][chosen]
    with replacing(folder / "index.npy") as writing, writing.open("wb") as file:
        np.save(file, index)
    digest = hashlib.sha256(index.tobytes()).hexdigest()
    return counts(index["tokens"]) | {"bytes": int(rows["bytes"][chosen].sum()), "index": digest}


def _account(source: SourceConfig, records: list[dict[str, Any]], duplicates: int, held_elsewhere: int) -> dict[str, Any]:
    """What became of a source's documents, and its shards' checksums."""
    sums = {name: sum(record[name] for record in records) for name in ("read", "too_short", "too_long", "not_kept")}
    return {
        "kind": source.kind,
        "content": source.content,
        **sums,
        "duplicates": duplicates,
        "held_out_elsewhere": held_elsewhere,
        "shards": [{"tokens": record["tokens"], "sha256": _sum(record)} for record in records],
    } | ({"instruct": _conversations(records)} if source.instruct.schema else {})


def _sum(record: dict[str, Any]) -> str:
    """A shard's checksum; of instruction data that of its answers belongs to it."""
    sums = record["sha256"]
    return f"{sums['tokens']}{sums.get('answers', '')}"


def _conversations(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums of what shards count of conversations."""
    found = [record["instruct"] for record in records]
    sums = {name: sum(counts[name] for counts in found) for name in ("left_out", "cut", "answer_tokens")}
    return sums | {"depths": np.sum([counts["depths"] for counts in found], axis=0).tolist()}


def _empty(name: str, source: SourceConfig, records: list[dict[str, Any]]) -> str:
    read = sum(record["read"] for record in records)
    if not read:
        return f"data.sources.{name} is empty: there is no document in {source.path}. Take it out, or name another path."
    left_out = ", ".join(
        f"{count} {reason}"
        for reason, field in (("too short", "too_short"), ("too long", "too_long"), ("not kept", "not_kept"))
        if (count := sum(record[field] for record in records))
    )
    return (
        f"data.sources.{name} is empty: none of the {read} documents in {source.path} is left ({left_out}). "
        f"Change min_characters, max_characters or keep."
    )
