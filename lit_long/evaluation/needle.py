"""A needle in a haystack: one sentence hidden in a text, at every length and depth (Kamradt 2023; scored as by Fu et al. 2024, §5).

The haystack is any text: documents of a domain end to end, from a place that the seed chooses. The needle goes where a sentence or line
ends, at or before the depth asked for. The answer's score is the share of the needle's words that are in it; unlike Fu's, a word counts
once, and its punctuation not at all, so that a perfect answer scores 1.

A prompt is a function of (tokenizer, texts, length, depth, seed), and has exactly ``length`` tokens together with the room for the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lit_long.config import UserError
from lit_long.data.sampling import random_words
from lit_long.data.token_store import Store, describe_longest
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.in_memory_corpus import InMemoryCorpus
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.samples import Key
from lit_long.evaluation.statistics import mean
from lit_long.evaluation.task import Sample, Task, by

BEFORE = "This is a very long story book: <book> "
AFTER = (
    " </book>.\nBased on the content of the book, Question: What is the best thing to do in San Francisco?\n"
    "Answer: The best thing to do in San Francisco is"
)
NEEDLE = "\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.\n"
EXPECTED = "eat a sandwich and sit in Dolores Park on a sunny day."
NEW = 32  # tokens of an answer; the needle's are about 15
ENDS = (".", "!", "?", "\n")


@dataclass
class Needle(Task):
    """``depths``: how many, evenly from the beginning (0 %) to the end (100 %); ``trials`` haystacks for each."""

    name: ClassVar[str] = "needle"
    prompt: ClassVar[str] = "fu-2024, with the answer begun/1"

    texts: InMemoryCorpus | Store
    data: str
    domain: str
    lengths: list[int]
    depths: int = 5
    trials: int = 1
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        return {"data": self.data, "depths": self.depths, "trials": self.trials, "seed": self.seed}

    def keys(self) -> list[Key]:
        return [Key(self.domain, length, index) for length in self.lengths for index in range(self.depths * self.trials)]

    def check(self, evaluated: EvaluatedModel) -> None:
        super().check(evaluated)
        needle_prompt(
            evaluated, self.texts, self.domain, min(self.lengths) - NEW, 0.0, self.seed, 0
        )  # which says if it is too short

    def depth(self, index: int) -> float:
        """0 to 1."""
        return (index // self.trials) / max(1, self.depths - 1)

    def measure(self, evaluated: EvaluatedModel, keys: list[Key]) -> Iterator[Sample]:
        prompts = [
            needle_prompt(
                evaluated, self.texts, self.domain, key.length - NEW, self.depth(key.index), self.seed, key.index % self.trials
            )
            for key in keys
        ]
        for place, written in evaluated.write_sharing(prompts, NEW, stop=("\n",)):
            key = keys[place]
            found = {"depth": round(100 * self.depth(key.index), 1), "written": written, "score": overlap(written, EXPECTED)}
            yield key, {"prompt_tokens": len(prompts[place]), "reference": EXPECTED} | found

    def scores(self, samples: list[dict[str, Any]]) -> list[Measurement]:
        rows = []
        for (domain, length), group in by(samples, "domain", "length"):
            rows.append(Measurement("score", domain, length, **mean([each["score"] for each in group])))
            for (depth,), cell in by(group, "depth"):
                found = mean([each["score"] for each in cell])
                rows.append(Measurement("score_at_depth", domain, length, **found, settings={"depth": depth}))
        return rows


def needle_prompt(
    evaluated: EvaluatedModel, texts: InMemoryCorpus | Store, domain: str, length: int, depth: float, seed: int, trial: int
) -> list[int]:
    """Tokens [length]: the book with the needle at ``depth`` (0 to 1), and the question. Raises UserError when it is too short."""
    before, needle, after = evaluated.tokenizer.encode(BEFORE), evaluated.encode(NEEDLE), evaluated.encode(AFTER)
    room = length - len(before) - len(needle) - len(after)
    if room < 1:
        least = length - room + 1 + NEW
        raise UserError(f"needle: a length of {length + NEW} tokens leaves no room for a haystack; the least is {least}")
    hay = haystack(texts, domain, room, seed, trial)
    cut = border(evaluated, hay, round(depth * room))
    return [*before, *hay[:cut], *needle, *hay[cut:], *after]


def border(evaluated: EvaluatedModel, hay: list[int], cut: int) -> int:
    """The last place at or before token ``cut`` where a sentence or line has just ended; the end of the text is one."""
    while 0 < cut < len(hay) and not evaluated.tokenizer.decode([hay[cut - 1]]).endswith(ENDS):
        cut -= 1
    return cut


def haystack(texts: InMemoryCorpus | Store, domain: str, length: int, *key: int | str) -> list[int]:
    """``length`` tokens of the domain's held-out documents end to end, without separators, from a document that ``key`` chooses; where there is but
    one, from a token of it that ``key`` chooses.

    Texts that are shorter are repeated.
    """
    documents = texts.documents(domain, "validation")
    if not len(documents) or int(documents.lengths.max()) < 2:
        raise UserError(f"domain '{domain}' has no held-out text to hide something in ({describe_longest(documents)})")
    word = random_words(1, "haystack", domain, *key)[0]
    if len(documents) == 1:
        text = documents[0][1:]
        return np.resize(np.roll(text, -int(word % np.uint64(len(text)))), length).tolist()
    index = int(word % np.uint64(len(documents)))
    tokens: list[int] = []
    while len(tokens) < length:
        tokens += documents[index % len(documents)][1:].tolist()
        index += 1
    return tokens[:length]


def overlap(written: str, expected: str) -> float:
    """Share of the expected words that were written, whatever their case and order."""
    words, wanted = (set(re.findall(r"\w+", text.lower())) for text in (written, expected))
    return len(words & wanted) / len(wanted)
