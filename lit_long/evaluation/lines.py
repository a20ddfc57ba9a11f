"""LongChat-Lines (LongEval's lines, extended by Giraffe to 25k tokens): a list of named registers, and the question for one of them.

    line brave-otter: REGISTER_CONTENT is <40213>

The answer counts when the first integer in it is the register's value (Giraffe's rule). The wording around the lines is ours: a base
model continues the sentence that asks. A prompt is a function of (tokenizer, length, seed, index).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lit_long.config import UserError
from lit_long.data.sampling import permutation, random_words
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.samples import Key
from lit_long.evaluation.statistics import share
from lit_long.evaluation.subject import Subject
from lit_long.evaluation.task import Sample, Task, by

ADJECTIVES = """
able bold brave brisk calm clear clever cold cosy crisp deep dry eager early faint fair fast fine firm fond fresh glad grand
great green happy hardy keen kind large late light loud lucky mild neat nimble noble odd old pale plain proud quick quiet
rapid rare ready rich rough round sharp short shy silent slow small smart soft solid still strong sunny sweet swift tall tame
tidy tiny warm wide wild wise
"""
NOUNS = """
acorn anchor apple arrow badger barrel basket beacon bell birch boat bridge brook cabin candle canyon castle cedar cliff
cloud comet copper coral crane creek crow dune eagle ember falcon feather fern field finch flint forest fox garden glacier
grove harbour harvest hawk heron hill island ivory jacket kettle lagoon lantern lark maple marble meadow mill moon moss oak
orchard otter owl path pebble pine plum pond quill raven reef ridge river robin rose saddle sail shell sparrow spring stone
storm swan thistle timber tower valley violet walnut willow wren
"""
OPENING = "Below is a record of lines. Each line has a name, and holds a number, its REGISTER_CONTENT.\n\n"
LINE = "line {name}: REGISTER_CONTENT is <{value}>\n"
QUESTION = "\nThe record is over. The REGISTER_CONTENT in line {name} is <"
NEW = 35  # Giraffe's
LEAST_TOKENS = 8  # of a line, in any vocabulary: five digits, four words and their marks


@dataclass
class Lines(Task):
    """``count`` records at every length."""

    name: ClassVar[str] = "longchat_lines"
    prompt: ClassVar[str] = "lit-long/1"

    lengths: list[int]
    count: int = 4
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        return {"data": "generated", "seed": self.seed}

    def keys(self) -> list[Key]:
        return [Key("lines", length, index) for length in self.lengths for index in range(self.count)]

    def measure(self, subject: Subject, keys: list[Key]) -> Iterator[Sample]:
        asked = [lines_prompt(subject, key.length - NEW, self.seed, key.index) for key in keys]
        for place, written in subject.write([prompt for prompt, _ in asked], NEW, stop=("\n",)):
            prompt, value = asked[place]
            right = first_integer(written) == value
            yield keys[place], {"prompt_tokens": len(prompt), "reference": value, "written": written, "right": right}

    def scores(self, samples: list[dict[str, Any]]) -> list[Measurement]:
        return [
            Measurement("accuracy", domain, length, **share([each["right"] for each in group]))
            for (domain, length), group in by(samples, "domain", "length")
        ]


def lines_prompt(subject: Subject, length: int, seed: int, index: int) -> tuple[list[int], int]:
    """As many lines as fit into ``length`` tokens with the question for one of them, anywhere among them; and its value.

    Raises:
        UserError: not even two lines fit, or more than there are names for.
    """
    adjectives, nouns = ADJECTIVES.split(), NOUNS.split()
    order = permutation(len(adjectives) * len(nouns), "lines", seed, index)
    names = [f"{adjectives[i % len(adjectives)]}-{nouns[i // len(adjectives)]}" for i in order]
    values = [10_000 + int(word % np.uint64(40_000)) for word in random_words(len(names), "values", seed, index)]
    near = names[: length // LEAST_TOKENS + 1]  # more cannot fit
    texts = [LINE.format(name=name, value=value) for name, value in zip(near, values, strict=False)]
    lines, questions = (subject.words.batch(rows) for rows in (texts, [QUESTION.format(name=name) for name in near]))
    opening = subject.words.encode(OPENING)
    ends = np.cumsum([len(row) for row in lines]) + len(opening) + max(map(len, questions))
    rows = lines[: int(np.searchsorted(ends, length, side="right"))]
    if len(rows) == len(names):
        raise UserError(
            f"longchat_lines: {length + NEW:,} tokens hold more lines than have names ({len(names):,}); choose shorter lengths"
        )
    if len(rows) < 2:
        raise UserError(f"longchat_lines: a length of {length + NEW} tokens holds no record of two lines; choose longer lengths")
    chosen = int(random_words(1, "chosen", seed, index)[0] % np.uint64(len(rows)))
    return [*opening, *(token for row in rows for token in row), *questions[chosen]], values[chosen]


def first_integer(text: str) -> int | None:
    """The first whole number in ``text``; 12,345 is one number."""
    found = re.search(r"\d+(?:,\d{3})*", text)
    return int(found[0].replace(",", "")) if found else None
