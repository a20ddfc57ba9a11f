"""FIRST-SENTENCE-RETRIEVAL and PASSKEY as tasks: the examples of data/retrieval.py, answered by retrieval.py, a sample each.

Of PASSKEY also k_max, the effective window of Position Interpolation (Chen et al. 2023, §3.3): the largest distance between the key and
the end of the prompt at which at least a fifth of the trials find it. PI takes 32 distances and 10 trials at the window to be tested;
here the distances are those of the examples at the longest length, and each trial (a seed) has other texts and keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from lit_long.data.synthetic import PASSKEY, RetrievalExample, passkey_examples, retrieval_examples
from lit_long.data.token_store import Store
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.pages import Pages
from lit_long.evaluation.retrieval import Answered, answer, rouge_l
from lit_long.evaluation.samples import Key
from lit_long.evaluation.statistics import mean, share
from lit_long.evaluation.subject import Subject
from lit_long.evaluation.task import Sample, Task, by

LEAST = 0.2  # of the trials that must find the key


@dataclass
class FirstSentence(Task):
    """``count`` examples at every length, about the same texts."""

    name: ClassVar[str] = "first_sentence"
    prompt: ClassVar[str] = "lit-long/1"  # the paper does not give its own
    writes: ClassVar[bool] = True  # an answer of the model's own

    texts: Pages | Store
    data: str
    domain: str
    lengths: list[int]
    count: int = 4
    seed: int = 0
    found: dict[Any, list[RetrievalExample]] = field(default_factory=dict, repr=False)

    def settings(self) -> dict[str, Any]:
        return {"data": self.data, "longest": max(self.lengths), "count": self.count, "seed": self.seed}

    def examples(self, length: int) -> list[RetrievalExample]:
        """All of one length, made once."""
        if length not in self.found:
            self.found[length] = self.make(length)
        return self.found[length]

    def make(self, length: int) -> list[RetrievalExample]:
        longest = max(self.lengths)
        return retrieval_examples(self.texts, length, self.count, max_length=longest, seed=self.seed, domain=self.domain)

    def keys(self) -> list[Key]:
        return [Key(self.domain, length, index) for length in self.lengths for index in range(len(self.examples(length)))]

    def measure(self, subject: Subject, keys: list[Key]) -> Iterator[Sample]:
        examples = self.examples(keys[0].length)
        at_once = max(1, subject.batch_tokens // keys[0].length)
        for start in range(0, len(keys), at_once):
            group = keys[start : start + at_once]
            asked = [examples[key.index] for key in group]
            answers = answer(subject.model, asked, 10**9, lambda tokens: None, write=self.writes)
            yield from ((key, self.record(subject, key, *each)) for key, *each in zip(group, asked, answers, strict=True))

    def record(self, subject: Subject, key: Key, example: RetrievalExample, found: Answered) -> dict[str, Any]:
        """What is kept of one answer."""
        written = subject.words.decode(found.written)
        return {
            "reference": example.text,
            "written": written,
            "rouge_l": rouge_l([written], [example.text]),
            "hits": int(found.hits.sum()),
            "nats": float(found.nats.double().sum()),
            "tokens": len(found.hits),
        }

    def scores(self, samples: list[dict[str, Any]]) -> list[Measurement]:
        rows = []
        for (domain, length), group in by(samples, "domain", "length"):
            about = {"unit": "examples", "tokens": sum(each["tokens"] for each in group)}
            accuracy = mean([each["hits"] / each["tokens"] for each in group])
            rows.append(Measurement("rouge_l", domain, length, **mean([each["rouge_l"] for each in group]), **about))
            rows.append(Measurement("token_accuracy", domain, length, **accuracy, **about))
        return rows


@dataclass
class Passkey(FirstSentence):
    """``count`` depths in each of ``trials``, of which each has a seed of its own."""

    name: ClassVar[str] = "passkey"
    prompt: ClassVar[str] = "lit-long/1"
    writes: ClassVar[bool] = False

    trials: int = 1

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"trials": self.trials}

    def make(self, length: int) -> list[RetrievalExample]:
        longest = max(self.lengths)
        return [
            example
            for trial in range(self.trials)
            for example in passkey_examples(
                self.texts, length, self.count, max_length=longest, seed=self.seed + trial, domain=self.domain
            )
        ]

    def record(self, subject: Subject, key: Key, example: RetrievalExample, found: Answered) -> dict[str, Any]:
        return {
            "reference": example.text,
            "distance": distance(example, subject.encode(PASSKEY.format(key=example.text))),
            "place": key.index % (len(self.examples(key.length)) // self.trials),
            "hits": int(found.hits.sum()),
            "tokens": len(found.hits),
            "found": bool(found.hits.all()),
        }

    def scores(self, samples: list[dict[str, Any]]) -> list[Measurement]:
        rows = []
        for (domain, length), group in by(samples, "domain", "length"):
            found = share([each["found"] for each in group])
            rows.append(Measurement("accuracy", domain, length, **found, unit="examples"))
        longest = [each for each in samples if each["length"] == max(self.lengths)]
        trials = [
            (round(np.mean([each["distance"] for each in g])), [each["found"] for each in g]) for _, g in by(longest, "place")
        ]
        most = max(self.lengths)
        return [*rows, Measurement("k_max", self.domain, most, k_max(trials), n=len(longest), unit="examples")]


def distance(example: RetrievalExample, needle: list[int]) -> int:
    """Tokens from the beginning of the needle to the end of the prompt."""
    prompt = example.tokens[: example.answer_start].tolist()
    starts = (place for place in range(len(prompt)) if prompt[place : place + len(needle)] == needle)
    return len(prompt) - next(starts)


def k_max(trials: list[tuple[int, list[bool]]]) -> int:
    """The largest distance, in tokens, of which at least 20 % of the trials found the key; 0 if there is none."""
    return max((distance for distance, found in trials if sum(found) >= LEAST * len(found)), default=0)
