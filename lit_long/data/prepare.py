"""From sources to a token store: parts → shards → which documents are trained on, which are held out, which are duplicates → manifest.

Which documents make which split is the only step that looks at a whole source. It keeps about 100 bytes a document in memory, and no text
or token.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lit_long.config import CorpusConfig, SourceConfig, UserError
from lit_long.data.builtin_corpus import Document, build_corpus, fingerprint
from lit_long.data.conversations import template_of
from lit_long.data.paths import describe_left_out
from lit_long.data.pool import available_cores
from lit_long.data.shards import HASHES, Task, make_shards, read_record, text_hash
from lit_long.data.sources import list_left_out, list_parts, resolve_source, shared_name
from lit_long.data.store_tokenizer import TRAINED, StoreTokenizer, resolve_tokenizer
from lit_long.data.token_store import (
    FORMAT,
    INDEX,
    MANIFEST,
    SHARDS,
    SPLITS,
    count_lengths,
    shard_file,
)
from lit_long.data.tokenizer import encode_documents
from lit_long.files import Log, replacing, write_atomically
from lit_long.pretrained.digests import read_digest
from lit_long.tokenizers.tokenizer import check_embedded

_SOURCES, _TOKENS = "sources.log", "tokens.log"  # how far the built-in corpus is; gone when the store is complete
_AT_ONCE = 64  # documents of the built-in corpus that are encoded between two entries of the log
LEFT_OUT = {  # why a row that was read is no document, in a store's account and in words
    "where": "left out by where",
    "unanswered": "without an answer",
    "too_short": "too short",
    "too_long": "too long",
    "not_kept": "not kept",
}
_WIDE = np.dtype([*INDEX.descr, ("bytes", "<i8"), ("first", "<u8"), ("second", "<u8")])
Report = Callable[[str, float], None]


def prepare(
    corpus: CorpusConfig,
    folder: Path,
    report: Report = lambda message, done: None,
    sources: dict[str, SourceConfig] | None = None,
    builtin: bool = True,
    processes: int = 0,
) -> dict:
    """Build the corpus and its tokenizer, write the store into ``folder``, and return the manifest.

    Called again after it was interrupted, it goes on with the sources' shards that are not there yet; the result is the same.

    Args:
        report: called as ``report(message, fraction done)`` along the way.
        sources: one's own documents, by the name of their domain.
        builtin: whether the built-in corpus is a part of it.
        processes: that tokenise sources side by side; 0 = one a core. The store does not depend on it.

    Raises:
        UserError: as `build_corpus`, `train_tokenizer`, `resolve_source` and `prepare_sources` do.
    """
    sources = {name: resolve_source(name, source) for name, source in sorted((sources or {}).items())}
    inputs = fingerprint(corpus, builtin)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # a rewrite that is interrupted must not look complete
    log = folder / _SOURCES
    found = build_corpus(corpus, lambda message, done: report(message, 0.4 * done), log) if builtin else {}
    store_tokenizer, tokenizer = resolve_tokenizer(corpus, folder, lambda: found, sources, inputs, report)
    domains: dict[str, dict] = {}
    for done, ((domain, split), documents) in enumerate(found.items()):
        report(f"encoding {domain}, {split}", 0.5 + (0.1 if sources else 0.5) * done / len(found))
        entry = _write_tokens(folder / domain / split, documents, tokenizer, store_tokenizer)
        domains.setdefault(domain, {})[split] = entry
    accounts: dict[str, dict] = {}
    if sources:
        start = 0.6 if builtin else 0.1
        own, accounts = prepare_sources(
            folder,
            sources,
            store_tokenizer,
            processes or available_cores(),
            lambda message, done: report(message, start + (0.99 - start) * done),
        )
        domains |= own
    told = []
    for name, account in accounts.items():
        if said := describe_left_out(list_left_out(name, sources[name])):
            account["files_left_out"] = said
            told.append(f" · {name}: {said}")
        if count := account.get("instruct", {}).get("left_out"):
            told.append(f" · {name}: {count:,} conversations left out")
    manifest = {
        "format": FORMAT,
        "digest": _digest(folder, domains, accounts),
        "tokenizer": store_tokenizer.digest,
        "vocab_size": tokenizer.get_vocab_size(),
        "separator": store_tokenizer.separator,
        "dtype": store_tokenizer.dtype,
        "inputs": inputs,
        "domains": domains,
    } | ({"sources": accounts} if accounts else {})
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    for file in (log, *(folder / domain / split / _TOKENS for domain, split in found), *([] if sources else [folder / TRAINED])):
        file.unlink(missing_ok=True)
    report(f"data ready{''.join(told)}", 1.0)
    return manifest


def prepare_share(
    corpus: CorpusConfig,
    folder: Path,
    share: tuple[int, int],
    report: Report,
    sources: dict[str, SourceConfig],
    builtin: bool,
    processes: int,
    alone: AbstractContextManager,
) -> tuple[int, int]:
    """Make one share of the sources' shards: `prepare` finds them there, and makes what is missing and the rest of the store.

    Any number of calls may run at once, on machines that share the file system, as long as no `prepare` does.

    Args:
        share: (i, n) is the i-th of n, counted from 1.
        alone: entered while the tokenizer is resolved, so that the first of many trains it and the others do not.

    Returns:
        How many shards there are now, of all shares, and how many there will be.
    """
    sources = {name: resolve_source(name, source) for name, source in sorted(sources.items())}
    inputs = fingerprint(corpus, builtin)
    with alone:
        found = partial(build_corpus, corpus, report, folder / _SOURCES) if builtin else dict
        store_tokenizer, _ = resolve_tokenizer(corpus, folder, found, sources, inputs, report)
    return make_share(folder, sources, store_tokenizer, share, processes or available_cores(), report)


def prepare_sources(
    folder: Path, sources: dict[str, SourceConfig], store_tokenizer: StoreTokenizer, processes: int, report: Report
) -> tuple[dict[str, dict], dict[str, dict]]:
    """Write the shards and indices of resolved sources into ``folder``.

    Returns:
        Entries of the manifest: per domain its splits, and per source what became of its documents.

    Raises:
        UserError: as the readers do; and for a source, or a split of it, without documents.
    """
    tasks = _tasks(folder, sources, store_tokenizer)
    records = make_shards([task for found in tasks.values() for task in found], processes, report)
    of_source: dict[str, list[dict[str, Any]]] = {}
    for name, found in tasks.items():
        of_source[name], records = records[: len(found)], records[len(found) :]
        _clean(folder / name / SHARDS, len(found))
    tables = {name: _read_rows(folder / name / SHARDS, of_source[name]) for name in tasks}
    for name, rows in tables.items():
        if not len(rows):
            raise UserError(_empty(name, sources[name], of_source[name]))
    held = {
        name: _held_out(_sides(rows, sources[name], of_source[name]), sources[name].validation_share)
        for name, rows in tables.items()
    }
    held_documents = np.concatenate([tables[name]["first"][chosen] for name, chosen in held.items()])
    domains, accounts = {}, {}
    for name, source in sorted(sources.items()):
        rows, validation = tables[name], held[name]
        unique = _first_of_equals(rows, validation) if source.dedup else np.ones(len(rows), bool)
        # Held out of another source, as a document or with the questions about it, or of this one by another name.
        leaked = np.isin(rows["first"], held_documents) & ~validation
        splits = {"train": unique & ~validation & ~leaked, "validation": unique & validation}
        if not splits["train"].any():
            raise UserError(
                f"data.sources.{name} ({source.path}): all its {int(unique.sum())} documents are held out, so there are none to train on. "
                f"Give it more documents, or lower data.sources.{name}.validation_share (0 holds out none)."
            )
        domains[name] = {split: _write_index(folder / name / split, rows, chosen) for split, chosen in splits.items()}
        accounts[name] = _account(source, of_source[name], int((~unique).sum()), int((unique & leaked).sum()))
    return domains, accounts


def make_share(
    folder: Path,
    sources: dict[str, SourceConfig],
    store_tokenizer: StoreTokenizer,
    share: tuple[int, int],
    processes: int,
    report: Report,
) -> tuple[int, int]:
    """Make every n-th shard of resolved sources, the i-th of each n, for ``share`` = (i, n).

    Returns:
        How many shards there are now, whoever made them, and how many there will be.
    """
    tasks = [task for found in _tasks(folder, sources, store_tokenizer).values() for task in found]
    number, count = share
    make_shards(tasks[number - 1 :: count], processes, report)
    return sum(read_record(task) is not None for task in tasks), len(tasks)


def _tasks(folder: Path, sources: dict[str, SourceConfig], store_tokenizer: StoreTokenizer) -> dict[str, list[Task]]:
    """By source, the shards it will have."""
    return {
        name: [
            Task(
                f"data.sources.{name}",
                source,
                part,
                file,
                store_tokenizer.file,
                store_tokenizer.digest,
                store_tokenizer.separator,
                store_tokenizer.dtype,
                template,
                store_tokenizer.embeddings,
            )
            for number, part in enumerate(list_parts(name, source))
            for file in [shard_file(folder / name / SHARDS, number)]
        ]
        for name, source in sorted(sources.items())
        for template in [
            template_of(f"data.sources.{name}", source, store_tokenizer.template) if source.instruct.schema else None
        ]
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


def _sides(rows: np.ndarray, source: SourceConfig, records: list[dict[str, Any]]) -> np.ndarray:
    """uint64 [documents], what decides which are held out: the hash of each document, or of what ``split_by`` finds in its file's name."""
    if not source.split_by:
        return rows["first"]
    names = (records[row["shard"]]["names"][row["place"]] for row in rows)
    return np.array([int.from_bytes(text_hash(shared_name(source, name).encode())[:8], "little") for name in names], np.uint64)


def _held_out(sides: np.ndarray, share: float) -> np.ndarray:
    """bool [documents]. At least those with the smallest hash are held out, unless ``share`` is 0."""
    if share >= 1:
        return np.ones(len(sides), bool)
    chosen = sides < np.uint64(share * HASHES)
    if share and not chosen.any():
        chosen = sides == sides.min()
    return chosen


def _first_of_equals(rows: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """bool [documents]: one of each text, the first that is held out or, if none is, the first."""
    order = np.lexsort((~held_out, rows["second"], rows["first"]))  # stable: of equals the first stays first
    same = (rows["first"][order][1:] == rows["first"][order][:-1]) & (rows["second"][order][1:] == rows["second"][order][:-1])
    unique = np.ones(len(rows), bool)
    unique[order[1:][same]] = False
    return unique


def _write_index(folder: Path, rows: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    """Write the index of one split and return its entry in the manifest."""
    index = np.zeros(int(chosen.sum()), INDEX)
    for field in INDEX.names:
        index[field] = rows[field][chosen]
    with replacing(folder / "index.npy") as writing, writing.open("wb") as file:
        np.save(file, index)
    digest = hashlib.sha256(index.tobytes()).hexdigest()
    return count_lengths(index["tokens"]) | {"bytes": int(rows["bytes"][chosen].sum()), "index": digest}


def _account(source: SourceConfig, records: list[dict[str, Any]], duplicates: int, held_elsewhere: int) -> dict[str, Any]:
    """What became of a source's documents, and its shards' checksums."""
    counted = ("read", *LEFT_OUT)
    sums = {name: sum(record.get(name, 0) for record in records) for name in counted}  # an older shard does not count all of them
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
    counts = {reason: sum(record.get(reason, 0) for record in records) for reason in LEFT_OUT}
    counts["conversations"] = read - sum(counts.values())
    words = LEFT_OUT | {"conversations": "conversations left out"}
    said = [f"{count} {words[reason]}" for reason, count in counts.items() if count]
    return f"data.sources.{name} is empty: none of the {read} documents in {source.path} is left ({', '.join(said)}). {_remedy(counts)}"


def _remedy(counts: dict[str, int]) -> str:
    """What to change where nothing is left, by the reason that most were left out for."""
    return {
        "where": "Change where; values are compared as they are written.",
        "unanswered": "Change instruct.schema, or name other data.",
        "conversations": "Raise instruct.max_tokens, or set instruct.template=plain.",
    }.get(max(counts, key=lambda reason: counts[reason]), "Change min_characters, max_characters or keep.")


def _write_tokens(folder: Path, documents: list[Document], tokenizer: Tokenizer, store_tokenizer: StoreTokenizer) -> dict:
    """Write one split, or go on with it, and return its entry in the manifest. ``bytes`` are of the texts (UTF-8), without separators."""
    folder.mkdir(parents=True, exist_ok=True)
    about = hashlib.sha256(f"{store_tokenizer.digest} {store_tokenizer.separator} {store_tokenizer.dtype}".encode())
    for document in documents:
        about.update(hashlib.sha256(document.text.encode()).digest())
    tokens, log = folder / "tokens.bin", Log(folder / _TOKENS, about.hexdigest())
    tokens.touch()
    lengths = [length for entry in log.entries for length in entry]
    size = sum(lengths) * np.dtype(store_tokenizer.dtype).itemsize
    if tokens.stat().st_size < size:
        raise UserError(f"{tokens} was cut off by something else; delete {folder} and prepare again")
    os.truncate(tokens, size)
    with tokens.open("ab") as file:
        for start in range(len(lengths), len(documents), _AT_ONCE):
            texts = [document.text for document in documents[start : start + _AT_ONCE]]
            encoded = list(encode_documents(tokenizer, texts, store_tokenizer.separator))
            for name, row in zip((document.name for document in documents[start:]), encoded, strict=False):
                check_embedded(tokenizer, int(row.max()), store_tokenizer.embeddings, f"the built-in corpus ({name})")
                file.write(row.astype(store_tokenizer.dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())  # what the log says must be there, after a power cut, too
            log.add([len(row) for row in encoded])
            lengths += log.entries[-1]
    np.save(folder / "offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))
    (folder / "names.json").write_text(json.dumps([document.name for document in documents]), encoding="utf-8")
    return count_lengths(np.array(lengths)) | {"bytes": sum(len(document.text.encode()) for document in documents)}


def _digest(folder: Path, domains: dict, accounts: dict | None = None) -> str:
    """sha256 over the tokenizer and over every token and offset file, with their paths. Of shards and indices their checksums stand in."""
    digest = hashlib.sha256()
    accounts = accounts or {}
    splits = [
        f"{domain}/{split}/{file}"
        for domain in domains
        if domain not in accounts
        for split in SPLITS
        for file in ("tokens.bin", "offsets.npy")
    ]
    for name in ["tokenizer.json", *splits]:
        digest.update(f"{name} {read_digest(folder / name)}\n".encode())
    for name, account in accounts.items():
        sums = [shard["sha256"] for shard in account["shards"]] + [domains[name][split]["index"] for split in SPLITS]
        digest.update(f"{name} {' '.join(sums)}\n".encode())
    return digest.hexdigest()
