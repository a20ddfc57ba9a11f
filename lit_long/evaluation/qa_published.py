"""Giraffe's question answering as published: abacusai/WikiQA-Free_Form_QA and abacusai/WikiQA-Altered_Numeric_QA.

A row holds a conversation, and a file the rows of one length, which its name tells (2k, 4k, 8k, 16k: `ffqa_4k.json`, `4k-00000-of-00001.parquet`):

    {"conversations": [{"from": "human", "value": PROMPT, "tok_len": 3805}, {"from": "gpt", "value": ANSWER}]}

Both data sets may lie in one folder; which one a file belongs to is told by its path (free_form or ffqa; altered_numeric or altqa).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_long.config import UserError
from lit_long.data.paths import Listing, detect_format, files_below, kind_by_name, opened, readable
from lit_long.data.readers import open_parquet
from lit_long.files import lines_of

LENGTHS = {"2k": 2048, "4k": 4096, "8k": 8192, "16k": 16384}
PATHS = {
    "free_form_qa": re.compile(r"free.?form|ffqa", re.IGNORECASE),
    "altered_numeric_qa": re.compile(r"altered|altqa", re.IGNORECASE),
}
LENGTH = re.compile(r"(?<![0-9a-z])(2k|4k|8k|16k)(?![0-9a-z])")
ENDINGS = (".json", ".jsonl", ".parquet")  # and what else says the same, compressed or not (data/paths.py)


@dataclass(frozen=True)
class Question:
    """A whole prompt, document included, and the answer that must appear."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Published:
    """The questions of one task by length, in the order of the files, and the digest of the files."""

    questions: dict[int, list[Question]]
    digest: str


def read_published(folder: str, task: str) -> Published:
    """What ``folder`` (or one file) has of ``task``.

    Raises:
        UserError: nothing of that task there, or a file that is damaged, cut off, or of another schema, naming file and row.
    """
    root = Path(folder).expanduser()
    files = [root] if root.is_file() else files_of_rows(f"qa={folder}", root)
    mine = [(file, found[1]) for file in files if PATHS[task].search(str(file)) and (found := LENGTH.search(file.stem.lower()))]
    if not mine:
        raise UserError(
            f"qa={folder}: holds no file of {task}: looked for .json, .jsonl or .parquet files whose path says {task} and whose name says the "
            f"length (2k, 4k, 8k, 16k), as downloaded from abacusai's data sets; leave qa out for questions that are built here"
        )
    questions: dict[int, list[Question]] = {}
    digest = hashlib.sha256()
    for file, length in mine:
        digest.update(f"{length} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
        found = [question(row, file, number) for number, row in enumerate(rows_of(file))]
        if not found:
            raise UserError(f"{file}: holds no rows; was the download cut off? Get it again")
        questions.setdefault(LENGTHS[length], []).extend(found)
    return Published(questions, digest.hexdigest())


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


def question(row: Any, file: Path, number: int) -> Question:
    try:
        prompt, answer = (row["conversations"][place]["value"].strip() for place in (0, 1))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise UserError(
            f"{file}, row {number}: holds no conversation of a question and an answer (conversations: [{{value}}, {{value}}])"
        ) from None
    if not answer or not prompt:
        raise UserError(
            f"{file}, row {number}: its {'answer' if prompt else 'question'} is empty, and everything would count as right"
        )
    return Question(prompt, answer)
