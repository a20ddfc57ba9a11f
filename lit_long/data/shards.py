"""Shards: the documents of one part of a source, tokenised. Each is written once, whole or not at all, by whichever process is free.

FOLDER/DOMAIN/shards/NUMBER.tokens    all documents end to end, uint16 (uint32 for vocabularies over 65,535)
FOLDER/DOMAIN/shards/NUMBER.npy       one row a document: number of tokens and of bytes, hash of its text, place in its file
FOLDER/DOMAIN/shards/NUMBER.answers   of instruction data: where answers begin and end, int64 [answers, 2], in tokens of the shard
FOLDER/DOMAIN/shards/NUMBER.json      what it was made from, counts and checksums; written last, so its presence means complete

A shard is a pure function of its part, the source's settings and the tokenizer, whose hashes stand in it. Preparing again makes only what
is missing or was made from something else. A process holds one batch of documents at a time, never a whole part.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lit_long.config import SourceConfig, UserError
from lit_long.data.conversations import ChatTemplate, Encoder, asked_document
from lit_long.data.pool import process_pool
from lit_long.data.readers import LeftOut, Part, Text, read_rows
from lit_long.data.sources import plain_source, shared_name
from lit_long.data.tokenizer import encode_documents, load_tokenizer
from lit_long.files import is_disk_full, replacing, write_atomically
from lit_long.tokenizers.tokenizer import check_embedded

# ``first`` and ``second`` are the halves of the text's hash: the one chooses what is held out, the other what is kept.
ROW = np.dtype([("tokens", "<i8"), ("bytes", "<i8"), ("first", "<u8"), ("second", "<u8"), ("place", "<i8")])
HASHES = 2.0**64
DEPTHS = 10
_FORMAT = 1


@dataclass(frozen=True)
class Task:
    """One shard to be made: where, from what, and with which tokenizer (``separator`` opens a document)."""

    key: str
    source: SourceConfig
    part: Part
    file: Path  # without suffix
    tokenizer: Path
    tokenizer_digest: str
    separator: int
    dtype: str
    template: ChatTemplate | None = None  # of instruction data
    embeddings: int | None = None  # ids beyond them are refused; see `StoreTokenizer`

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the files beside the record."""
        return (".tokens", ".npy", ".answers") if self.source.instruct.schema else (".tokens", ".npy")

    @property
    def recipe(self) -> str:
        """sha256 of everything that the shard's content depends on, and of nothing else (no paths)."""
        part = {name: value for name, value in asdict(self.part).items() if name != "files"}
        content = [_FORMAT, plain_source(self.source), part, self.tokenizer_digest, self.separator, self.dtype]
        content += [self.template.digest] if self.template else []
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def make_shards(tasks: list[Task], processes: int, report: Callable[[str, float], None]) -> list[dict[str, Any]]:
    """The records of all shards, in order, after making those that are not there. ``report(message, fraction done)``.

    Raises:
        UserError: what a reader has to say of its input, or a full disk.
    """
    records = [read_record(task) for task in tasks]
    missing = [number for number, record in enumerate(records) if record is None]
    if not missing:
        return [record for record in records if record]
    done = len(tasks) - len(missing)
    report(f"tokenising, {done} of {len(tasks)} shards were there", done / len(tasks))
    workers = min(processes, len(missing))
    if workers == 1:
        results: Iterator[tuple[int, dict[str, Any]]] = ((number, make_shard(tasks[number])) for number in missing)
    else:
        results = _in_processes({number: tasks[number] for number in missing}, workers, threads=processes // workers > 1)
    tokens = sum(record["tokens"] for record in records if record)
    for number, record in results:
        records[number] = record
        done, tokens = done + 1, tokens + record["tokens"]
        report(f"tokenising, {done} of {len(tasks)} shards, {tokens:,} tokens", done / len(tasks))
    return [record for record in records if record]


def _in_processes(tasks: dict[int, Task], workers: int, threads: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Shards as they come."""
    with process_pool(workers, threads) as pool:
        futures = {pool.submit(make_shard, task): number for number, task in tasks.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()


def read_record(task: Task) -> dict[str, Any] | None:
    """The record of a shard made after the task's recipe and whole, else None."""
    try:
        record = json.loads(task.file.with_suffix(".json").read_text(encoding="utf-8"))
        sizes = [task.file.with_suffix(suffix).stat().st_size for suffix in task.suffixes]
    except (OSError, ValueError):
        return None
    return record if record.get("recipe") == task.recipe and record.get("sizes") == sizes else None


def make_shard(task: Task) -> dict[str, Any]:
    """Tokenise one part and return the shard's record."""
    try:
        return _make_shard(task, load_tokenizer(task.tokenizer))
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise UserError(
            f"No space left on the disk that holds {task.file.parent}. Free some, and give the same command again: it goes on where it was."
        ) from None


def _make_shard(task: Task, tokenizer: Tokenizer) -> dict[str, Any]:
    task.file.with_suffix(".json").unlink(missing_ok=True)  # what is being rewritten must not look complete
    rows = _Conversations(task) if task.source.instruct.schema else _Rows(task)
    digest, tokens = hashlib.sha256(), 0
    with replacing(task.file.with_suffix(".tokens")) as writing, writing.open("wb") as file:
        for document in rows.documents(tokenizer):
            check_embedded(tokenizer, int(document.max()), task.embeddings, f"{task.key} ({', '.join(task.part.names[:1])})")
            content = document.astype(task.dtype).tobytes()
            digest.update(content)
            file.write(content)
            rows.lengths.append(len(document))
            tokens += len(document)
        _to_disk(file)
    table = rows.table()
    with replacing(task.file.with_suffix(".npy")) as writing, writing.open("wb") as file:
        np.save(file, table)
        _to_disk(file)
    record = {
        "recipe": task.recipe,
        "documents": len(table),
        "tokens": tokens,
        "read": rows.read,
        "too_short": rows.too_short,
        "too_long": rows.too_long,
        "not_kept": rows.not_kept,
        **{reason.value: count for reason, count in rows.none.items()},
        "sha256": {"tokens": digest.hexdigest(), "rows": hashlib.sha256(table.tobytes()).hexdigest()},
        "names": list(task.part.names),
    }
    if isinstance(rows, _Conversations):
        content = rows.answers().tobytes()
        write_atomically(task.file.with_suffix(".answers"), content)
        record["sha256"]["answers"] = hashlib.sha256(content).hexdigest()
        record["instruct"] = rows.counts()
    record["sizes"] = [task.file.with_suffix(suffix).stat().st_size for suffix in task.suffixes]
    write_atomically(task.file.with_suffix(".json"), json.dumps(record))
    return record


class _Rows:
    """The texts that are kept of a part, and what is noted of each while they are on their way to the tokenizer."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._hashes: list[bytes] = []
        self._places: list[int] = []
        self._bytes: list[int] = []
        self.lengths: list[int] = []
        self.read = self.too_short = self.too_long = self.not_kept = 0
        self.none = dict.fromkeys(LeftOut, 0)

    def documents(self, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
        """int64 [tokens] of each text, the separator first."""
        return encode_documents(tokenizer, self.texts(), self._task.separator)

    def texts(self) -> Iterator[str]:
        source = self._task.source
        for place, text in read_rows(self._task.key, source, self._task.part):
            self.read += 1
            if isinstance(text, LeftOut):
                self.none[text] += 1
            elif len(text) < source.min_characters:
                self.too_short += 1
            elif source.max_characters and len(text) > source.max_characters:
                self.too_long += 1
            else:
                content = text.encode()
                digest = text_hash(content)
                if not is_kept(digest, source.keep):
                    self.not_kept += 1
                    continue
                self._hashes.append(side_hash(source, text, digest)[:8] + digest[8:])
                self._places.append(place)
                self._bytes.append(len(content))
                yield text

    def table(self) -> np.ndarray:
        """ROW [documents]."""
        rows = np.zeros(len(self.lengths), ROW)
        halves = np.frombuffer(b"".join(self._hashes), "<u8").reshape(-1, 2)
        rows["tokens"], rows["bytes"], rows["place"] = self.lengths, self._bytes, self._places
        rows["first"], rows["second"] = halves[:, 0], halves[:, 1]
        return rows


class _Conversations(_Rows):
    """The same of instruction data: texts are conversations, of which it is noted which tokens are answers."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._answers: list[np.ndarray] = []
        self._depths = np.zeros(DEPTHS, dtype=np.int64)
        self._left_out = self._cut = 0

    def documents(self, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
        task, at = self._task, 0
        encoder = Encoder.make(tokenizer, task.separator, task.template, task.source.instruct.max_tokens)
        for text in self.texts():
            encoded = encoder(text)
            if encoded is None:
                self._left_out += 1
                self._hashes.pop(), self._places.pop(), self._bytes.pop()
                continue
            self._answers.append(encoded.answers + at)
            self._cut += encoded.cut
            if encoded.depth is not None:
                self._depths[min(DEPTHS - 1, int(encoded.depth * DEPTHS))] += 1
            at += len(encoded.tokens)
            yield encoded.tokens

    def answers(self) -> np.ndarray:
        """int64 [answers, 2], in tokens of the shard."""
        return np.concatenate(self._answers) if self._answers else np.zeros((0, 2), np.int64)

    def counts(self) -> dict[str, Any]:
        """Conversations left out (see `Encoder`) and those whose document was cut; of ``qa`` how deep chunks lie, in tenths."""
        answers = self.answers()
        tokens = int((answers[:, 1] - answers[:, 0]).sum())
        return {"left_out": self._left_out, "cut": self._cut, "answer_tokens": tokens, "depths": self._depths.tolist()}


def text_hash(content: bytes) -> bytes:
    """16 bytes. 128 bits tell any number of documents apart."""
    return hashlib.blake2b(content, digest_size=16).digest()


def side_hash(source: SourceConfig, text: str, digest: bytes) -> bytes:
    """What decides whether a text is held out, unless ``split_by`` does: its own hash, or that of the document that it asks about."""
    return text_hash(asked_document(text).encode()) if source.instruct.schema == "qa" else digest


def is_kept(digest: bytes, share: float) -> bool:
    return int.from_bytes(digest[8:], "little") < share * HASHES


def is_held_out(digest: bytes, share: float) -> bool:
    """Whether a text belongs to the validation split; the same text does in every source of the same share."""
    return int.from_bytes(digest[:8], "little") < share * HASHES


def passes(source: SourceConfig, text: Text, part: Part) -> bool:
    """Whether the filters let a text of a part through to the training split; for the tokenizer's sample."""
    long_enough = len(text.text) >= source.min_characters
    short_enough = not source.max_characters or len(text.text) <= source.max_characters
    if not (long_enough and short_enough):
        return False
    digest = text_hash(text.text.encode())
    named = source.split_by and text_hash(shared_name(source, part.names[text.place]).encode())
    decides = named or side_hash(source, text.text, digest)
    return is_kept(digest, source.keep) and not is_held_out(decides, source.validation_share)


def _to_disk(file: Any) -> None:
    """The record must not reach the disk before what it vouches for: after a power cut it would be believed."""
    file.flush()
    os.fsync(file.fileno())
