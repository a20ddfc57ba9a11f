"""Giraffe's FreeFormQA and AlteredNumericQA as tasks, on the published questions or on built ones (Pal et al. 2023).

Presence accuracy: the answer, as it is written, is a part of what the model writes within 50 tokens (Giraffe's rule). A published prompt
that exceeds the model's range loses its beginning, and is counted as truncated; it goes through the model's chat template if it has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from lit_long.config import UserError
from lit_long.data.token_store import Store
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.pages import Pages
from lit_long.evaluation.qa_built import built_question
from lit_long.evaluation.qa_published import Published, read_published
from lit_long.evaluation.samples import Key
from lit_long.evaluation.statistics import share
from lit_long.evaluation.subject import Subject
from lit_long.evaluation.task import Sample, Task, by

NEW = 50  # tokens of an answer, Giraffe's
BUILT, PUBLISHED = "built", "WikiQA"


@dataclass
class FreeFormQA(Task):
    """``count`` questions at every length; of published ones all, if it is 0. ``qa``: where they lie, or "" to build them."""

    name: ClassVar[str] = "free_form_qa"
    prompt: ClassVar[str] = "giraffe; chat template where there is one, built ones plain/1"
    numeric: ClassVar[bool] = False

    texts: Pages | Store
    data: str
    haystack: str
    lengths: list[int]
    count: int = 20
    seed: int = 0
    qa: str = ""

    @cached_property
    def published(self) -> Published | None:
        return read_published(self.qa, self.name) if self.qa else None

    def settings(self) -> dict[str, Any]:
        data = self.published.digest if self.published else self.data
        return {"data": data, "source": PUBLISHED if self.published else BUILT, "seed": None if self.published else self.seed}

    def keys(self) -> list[Key]:
        if not self.published:
            return [Key(BUILT, length, index) for length in self.lengths for index in range(self.count)]
        there = self.published.questions
        if missing := [length for length in self.lengths if length not in there]:
            known = ", ".join(map(str, sorted(there)))
            raise UserError(
                f"qa={self.qa}: has no {self.name} of length {missing[0]:,}; there is {known}: set lengths=[…] accordingly"
            )
        return [
            Key(PUBLISHED, length, index)
            for length in self.lengths
            for index in range(min(self.count or len(there[length]), len(there[length])))
        ]

    def measure(self, subject: Subject, keys: list[Key]) -> Iterator[Sample]:
        asked = [self.question(subject, key) for key in keys]
        room = subject.context - NEW
        for place, written in subject.write([tokens[-room:] for tokens, _ in asked], NEW):
            tokens, answer = asked[place]
            about = {"prompt_tokens": min(len(tokens), room), "truncated": len(tokens) > room}
            yield keys[place], about | {"reference": answer, "written": written, "present": answer in written}

    def question(self, subject: Subject, key: Key) -> tuple[list[int], str]:
        """Tokens of the prompt, and the answer."""
        if not self.published:
            return built_question(subject, self.texts, self.haystack, key.length - NEW, self.numeric, self.seed, key.index)
        question = self.published.questions[key.length][key.index]
        if subject.words.chat_template is None:
            return subject.words.encode(f"{question.prompt}\n\nAnswer:"), question.answer
        return subject.words.encode(subject.words.chat([{"role": "user", "content": question.prompt}])), question.answer

    def scores(self, samples: list[dict[str, Any]]) -> list[Measurement]:
        return [
            Measurement("presence", domain, length, **share([each["present"] for each in group]))
            for (domain, length), group in by(samples, "domain", "length")
        ]


@dataclass
class AlteredNumericQA(FreeFormQA):
    """The same of numbers, which were altered: no answer can be known beforehand."""

    name: ClassVar[str] = "altered_numeric_qa"
    numeric: ClassVar[bool] = True
