"""Llama-2-7B-32K-Instruct's data (Together 2023) in small, made by rule from training documents: files of the schemas that `data=together_32k_instruct` reads.

    sharegpt.jsonl   short conversations: one to three questions about a passage, in turn
    booksum.jsonl    chapters of three parts; the summary is the first sentence of each
    mqa.jsonl        a question about one of several documents

Lengths are spread from the shortest to the context, and the question is about any of the documents, so no answer is found by its place. Row i is a function of (seed, i) and the documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from lit_long.config import UserError
from lit_long.config.ranges import Count, Seed
from lit_long.data.questions import PARTS, PASSAGE, Passages, Texts, ask, ask_of_several, make_chapter
from lit_long.data.sampling import random_words
from lit_long.instruct.pipeline import write_lines

KINDS = ("normal", "short")
LEAST, MOST = 32, 128  # tokens of what a conversation is about
ANSWER, REQUEST = 96, 64  # tokens that an answer and what asks for it may take
TURNS = 3
Row = dict[str, Any]


@dataclass
class TogetherCommand:
    """``n`` rows of each file, in conversations of at most ``context`` tokens."""

    out: str = ""
    n: Count = 1000
    context: Count = 2048
    seed: Seed = 0
    domains: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    root: str = ""

    def check(self) -> None:
        """Raise a UserError for settings that make no sense."""
        if not self.out:
            raise UserError("command line: out=DIR is missing")
        if self.context < 2 * (ANSWER + REQUEST):
            raise UserError(
                f"command line: context={self.context} is too short for several documents; the least is {2 * (ANSWER + REQUEST)}"
            )


def write_together(
    texts: Texts, domains: list[str], command: TogetherCommand, report: Callable[[str, float], None]
) -> dict[str, int]:
    """Write the three files into ``command.out``; their numbers of rows by name."""
    makers = {"sharegpt": conversations, "booksum": chapters, "mqa": several_documents}
    counts = {}
    for number, (name, maker) in enumerate(makers.items()):
        rows: list[Row] = []
        for row in islice(maker(texts, domains, command), command.n):
            rows.append(row)
            report(f"{name}: {len(rows)} of {command.n}", (number + len(rows) / command.n) / len(makers))
        write_lines(Path(command.out) / f"{name}.jsonl", rows)
        counts[name] = len(rows)
    return counts


def conversations(texts: Texts, domains: list[str], command: TogetherCommand) -> Iterator[Row]:
    sources = [Passages(texts, domain, "train", MOST) for domain in domains]
    for key, words in items("conversation", command):
        text = sources[words[0] % len(sources)].draw(LEAST + words[1] % (MOST - LEAST + 1), *key)
        asked = list(islice(ask(text, KINDS[words[2] % 2], *key), 1 + words[3] % TURNS))
        turns = [(f"{text}\n\n{one.asked}" if not number else one.asked, one.answer) for number, one in enumerate(asked)]
        if turns:
            said = [{"from": who, "value": value} for turn in turns for who, value in zip(("human", "gpt"), turn, strict=True)]
            yield {"conversations": said}


def chapters(texts: Texts, domains: list[str], command: TogetherCommand) -> Iterator[Row]:
    most = (command.context - ANSWER - REQUEST) // PARTS
    sources = [Passages(texts, domain, "train", most) for domain in domains]
    for key, words in items("chapter", command):
        size = LEAST + words[1] % (most - LEAST + 1)
        made = make_chapter([sources[words[0] % len(sources)].draw(size, *key, part) for part in range(PARTS)])
        if made and len(texts.tokenizer.encode(made[1], add_special_tokens=False)) <= ANSWER:
            yield {"chapter": made[0], "summary_text": made[1]}


def several_documents(texts: Texts, domains: list[str], command: TogetherCommand) -> Iterator[Row]:
    sources = [Passages(texts, domain, "train", PASSAGE) for domain in domains]
    most = (command.context - ANSWER - REQUEST) // (PASSAGE + 8)  # 8: its heading
    for key, words in items("documents", command):
        source, count = sources[words[0] % len(sources)], 2 + words[1] % (most - 1)
        passages = [source.draw(PASSAGE, *key, number) for number in range(count)]
        place, whole = words[2] % count, "\n\n".join(passages)
        asked = (each for each in ask(passages[place], KINDS[words[3] % 2], *key) if whole.count(each.quoted) == 1)
        if question := next(asked, None):
            yield {"prompt": ask_of_several(passages, question), "completion": question.answer}


def items(kind: str, command: TogetherCommand) -> Iterator[tuple[tuple[str | int, ...], list[int]]]:
    """Of each item the key of its random numbers, and four of them. Some make no row, and the next are tried: at most 20 for each row."""
    for number in range(20 * command.n):
        yield (
            ("together", kind, command.seed, number),
            [int(word) for word in random_words(4, "together", kind, command.seed, number)],
        )
