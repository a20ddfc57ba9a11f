"""RULER-6: the six tasks of RULER (Hsieh et al. 2024) that need no data set, as one task, made here: no lm-eval and no download.

Texts, answer lengths and scores are those of RULER's own scripts at NVIDIA/RULER c3f5e3b (2026-07-22). lm-eval 0.4.13, whose generators `ruler.py`
calls, has RULER's of 2024, before its mended vt, cwe and fwe: there cwe's example is not shown, fwe's text leaves no room for the answer, and vt's
assignments share lines with the noise. What differs from RULER: a text depends on (task, length, seed, index) and the tokenizer alone; word lists and coded
texts are shuffled anew for each; and below 4,096 tokens vt's example takes an eighth of the length.

A model with a chat template is asked through it, as RULER's instruct models are: task and question as the user's message, and the answer's beginning after the
assistant's header.

Words are wonderwords' (extra `eval`), 8,166 of them, as RULER's lists have; cwe's texts have no more of them, so from about 110,000 tokens on they are shorter than
asked (RULER then takes other words).
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from random import Random
from string import ascii_lowercase, ascii_uppercase
from typing import Any, ClassVar

from lit_long.config import UserError
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.samples import Key
from lit_long.evaluation.statistics import mean, share
from lit_long.evaluation.task import Sample, Task, by

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
MAGIC = (
    "A special magic {one} is hidden within the following text. Make sure to memorize it. I will quiz you about the {one} afterwards.\n{text}\n"
    "What is the special magic {one} for {key} mentioned in the provided text? The special magic {one} for {key} mentioned in the provided text is"
)
TRACK = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{text}\n"
    "Question: Find all variables that are assigned the value {value} in the text above. Answer: According to the chain(s) of variable "
    "assignment in the text above, {count} variables are assigned the value {value}, they are: "
)
COMMON = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear most often.\n{text}\n"
    "Question: What are the 10 most common words in the above list? Answer: The top 10 words that appear most often in the list are:"
)
FREQUENT = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded words. {text}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently appeared words in the above "
    "coded text? Answer: According to the coded text above, the three most frequently appeared words are:"
)
CHAIN = 5  # variables with the same value
EXAMPLE = 500  # tokens of vt's example at most
SHORT = 4096  # tokens below which RULER shows fewer repetitions
BEGUN = (" The special magic", " Answer:")  # where a task's answer begins that the model goes on with
ZETA_2 = math.pi**2 / 6
Tokens = Callable[[str], list[int]]
Text = tuple[str, list[str]]  # with the answer begun, and what it must contain


@dataclass(frozen=True)
class Kind:
    """``make``: from randomness, units of text, the length in tokens and the tokenizer to a text. ``least`` units at least; ``new`` tokens of an answer."""

    make: Callable[[Random, int, int, Tokens], Text]
    least: int
    new: int


def magic(draw: Random, units: int, kind: str, key: str, hay: Callable[[], str]) -> Text:
    """One needle among ``units`` lines of hay."""
    value = unique(draw) if kind == "uuids" else number(draw)
    lines = [hay() for _ in range(units)]
    lines.insert(draw.randrange(units), NEEDLE.format(kind=kind, key=key, value=value))
    return MAGIC.format(one=kind[:-1], key=key, text="\n".join(lines)), [value]


def number(draw: Random) -> str:
    return str(draw.randint(10**6, 10**7 - 1))


def unique(draw: Random) -> str:
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))


def named(draw: Random) -> str:
    return f"{draw.choice(words('adjective'))}-{draw.choice(words('noun'))}"


def single_1(draw: Random, units: int, length: int, tokens: Tokens) -> Text:
    return magic(draw, units, "numbers", named(draw), lambda: NOISE)


def multikey_2(draw: Random, units: int, length: int, tokens: Tokens) -> Text:
    return magic(draw, units, "numbers", named(draw), lambda: NEEDLE.format(kind="numbers", key=named(draw), value=number(draw)))


def multikey_3(draw: Random, units: int, length: int, tokens: Tokens) -> Text:
    return magic(draw, units, "uuids", unique(draw), lambda: NEEDLE.format(kind="uuids", key=unique(draw), value=unique(draw)))


def chain(draw: Random, units: int, letters: int) -> Text:
    """A variable with a number, and four that get it one from the other, in this order among ``units`` lines of noise."""
    names: list[str] = []
    while len(names) < CHAIN:
        name = "".join(draw.choices(ascii_uppercase, k=letters))
        names += [name] if name not in names else []
    value = draw.randint(10_000, 99_998)
    steps = [f"VAR {names[0]} = {value}", *(f"VAR {new} = VAR {old} " for old, new in pairwise(names))]
    lines = [NOISE] * units
    for place, (at, step) in enumerate(zip(sorted(draw.sample(range(units), CHAIN)), steps, strict=True)):
        lines.insert(at + place, step)
    return TRACK.format(text="\n".join(lines), value=value, count=CHAIN), names


def tracking(draw: Random, units: int, length: int, tokens: Tokens) -> Text:
    """After one example with its answer."""

    def example(lines: int) -> str:
        text, names = chain(Random(seed), lines, 3)
        return f"{text} {' '.join(names)}\n\n"

    seed, room = draw.random(), min(EXAMPLE, length // 8)
    shown = example(largest(lambda lines: len(tokens(example(lines))) <= room, CHAIN))
    text, names = chain(draw, units, 5)
    return shown + text, names


def listed(draw: Random, units: int, often: int, rarely: int) -> Text:
    """``units`` words, ten of them ``often`` and the others ``rarely``, numbered in any order."""
    chosen = draw.sample(words("noun", "adjective", "verb"), units)
    found = chosen[:10] * often + chosen[10:] * rarely
    draw.shuffle(found)
    return COMMON.format(text=numbered(found)), chosen[:10]


def numbered(found: list[str]) -> str:
    return " ".join(f"{place}. {word}" for place, word in enumerate(found, 1))


def common_words(draw: Random, units: int, length: int, tokens: Tokens) -> Text:
    """After one example with its answer."""
    short = length < SHORT
    example, right = listed(draw, 20, 3, 1) if short else listed(draw, 40, 10, 3)
    text, answers = listed(draw, units, 6, 1) if short else listed(draw, units, 30, 3)
    return f"{example} {numbered(right)}\n{text}", answers


def coded_words(draw: Random, units: int, length: int, tokens: Tokens) -> Text:
    """The k-th of the coded words ⌊units·k⁻²/ζ(2)⌋ times; the first is noise."""
    count, coded = (length - KINDS["fwe"].new) // 50, ["..."]
    while len(coded) < max(4, count):
        word = "".join(draw.choices(ascii_lowercase, k=6))
        coded += [word] if word not in coded else []
    found = [word for k, word in enumerate(coded, 1) for _ in range(int(units / k**2 / ZETA_2))]
    draw.shuffle(found)
    return FREQUENT.format(text=" ".join(found)), coded[1:4]


@cache
def words(*categories: str) -> list[str]:
    """wonderwords' words of those categories, sorted. Raises UserError where it is not installed."""
    try:
        from wonderwords import RandomWord
    except ImportError:
        raise UserError("ruler6: wonderwords, whose words it hides, is not installed: pip install 'lit-long[eval]'") from None
    source = RandomWord()
    return sorted({word for category in categories for word in source.filter(include_categories=[category])})


KINDS = {
    "niah_single_1": Kind(single_1, 1, 128),
    "niah_multikey_2": Kind(multikey_2, 1, 128),
    "niah_multikey_3": Kind(multikey_3, 1, 128),
    "vt": Kind(tracking, CHAIN, 30),
    "cwe": Kind(common_words, 20, 120),
    "fwe": Kind(coded_words, 35, 50),  # with fewer the third word would not be more frequent than the fourth
}


def largest(fits: Callable[[int], bool], least: int, most: int = 1 << 30) -> int:
    """The largest number from ``least``, which fits, to ``most`` that fits, if whatever is smaller fits, too."""
    low, step = least, least
    while low + step <= most and fits(low + step):
        low, step = low + step, 2 * step
    high = min(low + step, most + 1)  # does not fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@dataclass
class Ruler6(Task):
    """``count`` texts of each of the six tasks, which are its domains, at every length (the answer included)."""

    name: ClassVar[str] = "ruler6"
    prompt: ClassVar[str] = "NVIDIA/RULER c3f5e3b; chat template where there is one/2"

    lengths: list[int]
    count: int = 20
    seed: int = 0
    units: dict[tuple[str, int], int] = field(default_factory=dict, repr=False)  # by task and length: as many as fit

    def settings(self) -> dict[str, Any]:
        words("noun")  # says what is missing
        return {"data": "generated", "seed": self.seed, "words": f"wonderwords {version('wonderwords')}"}

    def keys(self) -> list[Key]:
        return [Key(kind, length, index) for kind in KINDS for length in self.lengths for index in range(self.count)]

    def check(self, evaluated: EvaluatedModel) -> None:
        """Also raises UserError where a length holds no text of some task."""
        super().check(evaluated)
        for kind in KINDS:
            self.fitting(evaluated, kind, min(self.lengths))

    def fitting(self, evaluated: EvaluatedModel, kind: str, length: int) -> int:
        """Units of text that fit. Raises UserError if not even the least do."""
        if (kind, length) not in self.units:
            least = KINDS[kind].least
            most = len(words("noun", "adjective", "verb")) if kind == "cwe" else 1 << 30
            room = length - KINDS[kind].new
            tokens = evaluated.tokenizer.encode

            def size(units: int) -> int:
                return len(ask(evaluated, KINDS[kind].make(Random(f"{self.seed} {kind} {length}"), units, length, tokens)[0]))

            shortest = int(1.1 * size(least))  # words differ in their tokens
            if shortest > room:
                raise UserError(
                    f"ruler6: {kind} needs lengths of {shortest + KINDS[kind].new:,} tokens or more with this tokenizer, not {length:,}"
                )
            self.units[kind, length] = largest(lambda units: size(units) <= room, least, most)
        return self.units[kind, length]

    def text(self, evaluated: EvaluatedModel, key: Key) -> tuple[list[int], list[str]]:
        """Tokens of the prompt, at most ``key.length`` less the answer's, and the answers."""
        kind, tokens, units = KINDS[key.domain], evaluated.tokenizer.encode, self.fitting(evaluated, key.domain, key.length)
        while True:
            draw = Random(f"{self.seed} {key.domain} {key.length} {key.index}")
            text, answers = kind.make(draw, units, key.length, tokens)
            prompt = ask(evaluated, text)
            if len(prompt) <= key.length - kind.new:
                return prompt, answers
            units -= max(1, units // 50)
            if units < kind.least:
                raise UserError(f"ruler6: {key.domain} does not fit into {key.length:,} tokens; choose longer lengths")

    def measure(self, evaluated: EvaluatedModel, keys: list[Key]) -> Iterator[Sample]:
        asked = [self.text(evaluated, key) for key in keys]
        for place, written in evaluated.write([prompt for prompt, _ in asked], KINDS[keys[0].domain].new):
            prompt, answers = asked[place]
            yield (
                keys[place],
                {
                    "prompt_tokens": len(prompt),
                    "reference": answers,
                    "written": written,
                    "score": recalled(written, answers),
                },
            )

    def scores(self, samples: list[dict[str, Any]]) -> list[Measurement]:
        """Of each task, and of ``all``, their mean: RULER's average, over six of its thirteen tasks."""
        rows = []
        for domain in ("all", *KINDS):
            own = [each for each in samples if domain in ("all", each["domain"])]
            for (length,), group in by(own, "length"):
                values = [each["score"] for each in group]
                whole = set(values) <= {0.0, 1.0}
                found = share([bool(value) for value in values]) if whole else mean(values)
                rows.append(Measurement("score", domain, length, **found))
        return rows


def ask(evaluated: EvaluatedModel, text: str) -> list[int]:
    """Tokens of a text with its answer begun; through the chat template, if there is one."""
    tokenizer = evaluated.tokenizer
    if tokenizer.chat_template is None:
        return tokenizer.encode(text)
    at = max(text.rfind(begun) for begun in BEGUN)
    return tokenizer.encode(f"{tokenizer.chat([{'role': 'user', 'content': text[:at]}])}{text[at:]}")


def recalled(written: str, answers: list[str]) -> float:
    """The share of the answers that were written, in any case of letters: RULER's string_match_all of one text, 0 to 1."""
    return sum(answer.lower() in written.lower() for answer in answers) / len(answers)
