"""Giraffe's question answering, FreeFormQA and AlteredNumericQA, on the published questions or on built ones (Pal et al. 2023).

Presence accuracy: the answer, as it is written, is a part of what the model writes within 50 tokens (Giraffe's rule). A published prompt
that exceeds the model's range loses its beginning, and is counted as truncated; it goes through the model's chat template if it has one.

**Published**: abacusai/WikiQA-Free_Form_QA and abacusai/WikiQA-Altered_Numeric_QA. A row holds a conversation, and a file the rows of one
length, which its name tells (2k, 4k, 8k, 16k: `ffqa_4k.json`, `4k-00000-of-00001.parquet`):

    {"conversations": [{"from": "human", "value": PROMPT, "tok_len": 3805}, {"from": "gpt", "value": ANSWER}]}

Both data sets may lie in one folder; which one a file belongs to is told by its name (free_form or ffqa; altered_numeric or altqa) or, if that
does not, by the nearest folder whose name does. All rows are asked, or as many as the user says, drawn by seed.

**Built** from facts of our own, for where the data sets are not at hand; the scores do not compare with those of the published ones. A
document is a haystack with one sentence that answers, in the first tenth, the bulk or the last tenth of it. Half the questions stand
before the document, half after it (Giraffe's cycle of six). For AlteredNumericQA every occurrence of the answer's number is changed, so
that a model that knows the fact by heart is wrong: years by 1 to 10, other numbers to one of as many digits. `alter` does so to any text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lit_long.config import UserError
from lit_long.data.sampling import permutation, random_words
from lit_long.data.token_store import Store
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.in_memory_corpus import InMemoryCorpus
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.needle import border, haystack
from lit_long.evaluation.public_data import draw_rows, files_of_rows, rows_of
from lit_long.evaluation.samples import Key
from lit_long.evaluation.statistics import share
from lit_long.evaluation.task import Sample, Task, by

LENGTHS = {"2k": 2048, "4k": 4096, "8k": 8192, "16k": 16384}
PATHS = {
    "free_form_qa": re.compile(r"free.?form|ffqa", re.IGNORECASE),
    "altered_numeric_qa": re.compile(r"altered|altqa", re.IGNORECASE),
}
LENGTH = re.compile(r"(?<![0-9a-z])(2k|4k|8k|16k)(?![0-9a-z])")


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
    mine = [(file, found[1]) for file in files if task_of(file) == task and (found := LENGTH.search(file.stem.lower()))]
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


def task_of(file: Path) -> str:
    """The task that a file's name, or else the nearest folder's, speaks of; "" if none does. Raises UserError where one speaks of both."""
    for part in reversed(file.absolute().parts):
        named = [task for task, pattern in PATHS.items() if pattern.search(part)]
        if len(named) > 1:
            raise UserError(
                f"{file}: {part!r} names both {named[0]} and {named[1]}; rename it, so that it is known whose questions these are"
            )
        if named:
            return named[0]
    return ""


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


YEARS = range(1000, 2100)
NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+|\d+")


@dataclass(frozen=True)
class Fact:
    """A sentence, a question whose answer is a word in it, and one whose answer is a number in it."""

    sentence: str
    asked: str
    word: str
    asked_number: str
    number: str


def facts() -> list[Fact]:
    return [Fact(*(field.strip() for field in line.split("|"))) for line in FACTS.strip().splitlines()]


FACTS = """
The Eiffel Tower in Paris was completed in 1889. | In which city does the Eiffel Tower stand? | Paris | In which year was the Eiffel Tower completed? | 1889
The Golden Gate Bridge in San Francisco was opened in 1937. | In which city is the Golden Gate Bridge? | San Francisco | In which year was the Golden Gate Bridge opened? | 1937
Mount Everest in the Himalayas is 8849 metres high. | In which mountains does Mount Everest lie? | Himalayas | How many metres high is Mount Everest? | 8849
The Statue of Liberty was a gift of France and was dedicated in 1886. | Which country gave the Statue of Liberty? | France | In which year was the Statue of Liberty dedicated? | 1886
The Brooklyn Bridge, designed by John Roebling, was opened in 1883. | Who designed the Brooklyn Bridge? | Roebling | In which year was the Brooklyn Bridge opened? | 1883
The Suez Canal in Egypt was opened in 1869. | In which country is the Suez Canal? | Egypt | In which year was the Suez Canal opened? | 1869
The Danube, which flows into the Black Sea, is 2850 kilometres long. | Into which sea does the Danube flow? | Black Sea | How many kilometres long is the Danube? | 2850
Apollo 11, with Neil Armstrong on board, landed on the Moon in 1969. | Which astronaut was on board Apollo 11? | Armstrong | In which year did Apollo 11 land on the Moon? | 1969
The Berlin Wall in Germany fell in 1989. | In which country did the Berlin Wall stand? | Germany | In which year did the Berlin Wall fall? | 1989
Penicillin was discovered by Alexander Fleming in 1928. | Who discovered penicillin? | Fleming | In which year was penicillin discovered? | 1928
The Sydney Opera House in Australia was opened in 1973. | In which country is the Sydney Opera House? | Australia | In which year was the Sydney Opera House opened? | 1973
The printing press of Johannes Gutenberg was at work in Mainz by 1450. | In which city did Gutenberg print? | Mainz | By which year was the press of Gutenberg at work? | 1450
The planet Uranus was discovered by William Herschel in 1781. | Who discovered the planet Uranus? | Herschel | In which year was Uranus discovered? | 1781
Lake Baikal in Siberia is 1642 metres deep. | In which region is Lake Baikal? | Siberia | How many metres deep is Lake Baikal? | 1642
The Gotthard railway tunnel in Switzerland was opened in 1882. | In which country is the Gotthard tunnel? | Switzerland | In which year was the Gotthard railway tunnel opened? | 1882
The telephone was patented by Alexander Graham Bell in 1876. | Who patented the telephone? | Bell | In which year was the telephone patented? | 1876
The Colosseum in Rome has 80 entrances. | In which city is the Colosseum? | Rome | How many entrances has the Colosseum? | 80
The Great Fire of London began in Pudding Lane in 1666. | In which street did the Great Fire of London begin? | Pudding Lane | In which year was the Great Fire of London? | 1666
The element radium was found by Marie Curie in 1898. | Who found the element radium? | Curie | In which year was radium found? | 1898
The Trans-Siberian Railway, from Moscow to Vladivostok, is 9289 kilometres long. | Where does the Trans-Siberian Railway end? | Vladivostok | How many kilometres long is the Trans-Siberian Railway? | 9289
"""


def built_question(
    evaluated: EvaluatedModel, texts: InMemoryCorpus | Store, domain: str, length: int, numeric: bool, seed: int, index: int
) -> tuple[list[int], str]:
    """Prompt of at most ``length`` tokens, short of it by a few, and the answer; a function of the arguments."""
    every = facts()
    fact = every[permutation(len(every), "facts", seed, index // len(every))[index % len(every)]]
    asked, answer = (fact.asked_number, fact.number) if numeric else (fact.asked, fact.word)
    first = f"Question: {asked}\nAnswer it from the document below.\n\n" if index % 2 else ""
    before = evaluated.tokenizer.encode(f"{first}Document:\n")
    after = evaluated.encode(
        "\n\nAnswer:" if index % 2 else f"\n\nQuestion: {asked}\nAnswer it from the document above.\nAnswer:"
    )
    sentence = evaluated.encode(f"\n{fact.sentence}\n")
    room = length - len(before) - len(after) - len(sentence)
    if room < 1:
        raise UserError(f"question answering: a length of {length} tokens leaves no room for a document; choose longer lengths")
    low, high = ((0.0, 0.1), (0.1, 0.9), (0.9, 1.0))[index % 6 // 2]
    share = low + (high - low) * float(random_words(1, "place", seed, index)[0]) / 2**64
    for slack in range(0, room, 16):  # a text is not always cut as its parts were, and altered numbers may take more tokens
        hay = haystack(texts, domain, room - slack, "qa", seed, index)
        cut = border(evaluated, hay, round(share * len(hay)))
        document = evaluated.tokenizer.decode([*hay[:cut], *sentence, *hay[cut:]])
        if numeric:
            document, changed = alter(document, answer, seed, index)
        tokens = [*before, *evaluated.encode(document), *after]
        if len(tokens) <= length:
            return tokens, changed if numeric else answer
    raise UserError(f"question answering: no document fits into {length} tokens; choose longer lengths")


def alter(text: str, answer: str, *seed: int | str) -> tuple[str, str]:
    """``text`` with every occurrence of the number in ``answer`` changed, and the answer changed alike; determined by ``seed``.

    12,345 and 12345 are the same number, and digits inside a longer number are none. The new one is not yet in the text.

    Raises:
        UserError: no number in the answer, or none in the text that equals it, or nothing that it could be changed to.
    """
    found = NUMBER.search(answer)
    if found is None:
        raise UserError(f"AlteredNumericQA: the answer {answer!r} has no number to alter")
    old = int(found[0].replace(",", ""))
    present = {int(number.replace(",", "")) for number in NUMBER.findall(text)}
    if old not in present:
        raise UserError(f"AlteredNumericQA: the number of the answer {answer!r} does not occur in the document")
    digits = len(str(old))
    if old in YEARS and "," not in found[0]:
        candidates = [year for year in range(old - 10, old + 11) if year not in present]
    else:
        lowest = 10 ** (digits - 1) if digits > 1 else 0
        drawn = random_words(1000, "digits", old, *seed) % np.uint64(10**digits - lowest)
        candidates = [number for number in (lowest + int(word) for word in drawn) if number not in present]
    if not candidates:
        raise UserError(f"AlteredNumericQA: nothing that {answer!r} could be altered to is missing in the document")
    new = candidates[int(random_words(1, "alter", old, *seed)[0] % np.uint64(len(candidates)))]

    def replaced(match: re.Match[str]) -> str:
        if int(match[0].replace(",", "")) != old:
            return match[0]
        return f"{new:,}" if "," in match[0] else str(new)

    return NUMBER.sub(replaced, text), NUMBER.sub(replaced, answer)


NEW = 50  # tokens of an answer, Giraffe's
BUILT, PUBLISHED = "built", "WikiQA"


@dataclass
class FreeFormQA(Task):
    """``count`` built questions at every length. ``qa``: where published ones lie, "" for none; ``drawn``: how many of them, 0 for all."""

    name: ClassVar[str] = "free_form_qa"
    prompt: ClassVar[str] = "giraffe; chat template where there is one, built ones plain/1"
    numeric: ClassVar[bool] = False

    texts: InMemoryCorpus | Store
    data: str
    haystack: str
    lengths: list[int]
    count: int = 20
    seed: int = 0
    qa: str = ""
    drawn: int = 0

    @cached_property
    def published(self) -> Published | None:
        return read_published(self.qa, self.name) if self.qa else None

    def settings(self) -> dict[str, Any]:
        data = self.published.digest if self.published else self.data
        seeded = not self.published or self.drawn
        return {"data": data, "source": PUBLISHED if self.published else BUILT, "seed": self.seed if seeded else None}

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
            for index in draw_rows(len(there[length]), self.drawn, self.seed)
        ]

    def measure(self, evaluated: EvaluatedModel, keys: list[Key]) -> Iterator[Sample]:
        asked = [self.question(evaluated, key) for key in keys]
        room = evaluated.context - NEW
        for place, written in evaluated.write([tokens[-room:] for tokens, _ in asked], NEW):
            tokens, answer = asked[place]
            about = {"prompt_tokens": min(len(tokens), room), "truncated": len(tokens) > room}
            yield keys[place], about | {"reference": answer, "written": written, "present": answer in written}

    def question(self, evaluated: EvaluatedModel, key: Key) -> tuple[list[int], str]:
        """Tokens of the prompt, and the answer."""
        if not self.published:
            return built_question(evaluated, self.texts, self.haystack, key.length - NEW, self.numeric, self.seed, key.index)
        question = self.published.questions[key.length][key.index]
        if evaluated.tokenizer.chat_template is None:
            return evaluated.tokenizer.encode(f"{question.prompt}\n\nAnswer:"), question.answer
        return evaluated.tokenizer.encode(
            evaluated.tokenizer.chat([{"role": "user", "content": question.prompt}])
        ), question.answer

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
