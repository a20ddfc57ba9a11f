"""A model's verdict on an example, and whether its verdicts are worth anything.

Beside the examples, the critic judges planted wrong answers: those of other examples, about other documents. One that rejects fewer than
30 % of them checks nothing; nor does one that rejects them no more often than the genuine ones. Of a few planted answers neither may be
certain: it is then unknown whether the critic works. A verdict that cannot be read keeps an example out, but it is no rejection: a critic
that only stammers has found nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_long.data.sampling import permutation
from lit_long.instruct.extract import between

if TYPE_CHECKING:
    from lit_long.instruct.pipeline import Example

INERT = 0.3  # share of planted wrong answers that must be rejected, at least
CHANCE = 0.05  # how likely the difference to the genuine ones may be by chance, at most
_NEGATIVE = re.compile(r"\b(wrong|incorrect|no|false|unsupported|not\s+(correct|supported|right))\b", re.IGNORECASE)
_POSITIVE = re.compile(r"\b(correct|right|yes|true|supported)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """``verdict``: correct, wrong, unclear, or unchecked where nobody was asked; ``score`` from 0 to 1, None where there is none."""

    verdict: str
    score: float | None
    reason: str = ""

    def accepts(self, threshold: float) -> bool:
        return self.verdict == "unchecked" or (self.verdict == "correct" and (self.score is None or self.score >= threshold))


UNCHECKED = Verdict("unchecked", None)


def read_verdict(reply: str) -> Verdict:
    """What a reply in tags says. A score without a verdict stands for one; a reply with neither is unclear."""
    parts = between(reply, ("verdict", "score", "reason"))
    number = re.search(r"\d+(?:\.\d+)?", parts.get("score", ""))
    score = min(1.0, float(number[0]) / 10) if number else None
    word = parts.get("verdict", "")
    says_no, says_yes = bool(_NEGATIVE.search(word)), bool(_POSITIVE.search(_NEGATIVE.sub("", word)))
    if says_no and says_yes:  # "correct or wrong", as it was asked
        verdict, score = "unclear", None
    elif says_no or says_yes:
        verdict = "correct" if says_yes else "wrong"
    else:
        verdict = "unclear" if score is None else "correct" if score >= 0.5 else "wrong"
    if score is None and verdict != "unclear":
        score = float(verdict == "correct")
    return Verdict(verdict, score, parts.get("reason", ""))


def preferred(probability: float) -> Verdict:
    """The verdict of a model that only says how likely it would call the answer correct."""
    return Verdict("correct" if probability >= 0.5 else "wrong", round(probability, 4))


def plant(examples: Sequence[Example], count: int, seed: int) -> list[tuple[Example, Example]]:
    """At most ``count`` pairs: the first example's question is to be judged with the second one's answer, which is of the same kind, about
    another document and nowhere in the first one's chunk."""
    pairs = []
    for turn in range(-(-count // max(1, len(examples)))):
        others = [examples[int(i)] for i in permutation(len(examples), "planted", seed, turn)]
        for place, example in enumerate(examples):
            turned = others[place:] + others[:place]
            fits = (
                other
                for other in turned
                if other.kind == example.kind
                and other.document_id != example.document_id
                and other.answer.lower() not in example.item.chunk.lower()
            )
            if (other := next(fits, None)) is not None:
                pairs.append((example, other))
    return list(dict.fromkeys(pairs))[:count]


def worth(planted: list[Verdict], genuine: list[Verdict], threshold: float) -> dict[str, Any]:
    """What the manifest says of the critic: shares that it rejects, how likely it would reject so many more of the planted ones if they were
    the same to it (Fisher's exact test, one-sided), and whether it is inert: None where that cannot be told."""

    def rejected(verdicts: list[Verdict]) -> int:
        return sum(verdict.verdict != "unclear" and not verdict.accepts(threshold) for verdict in verdicts)

    counts = [(rejected(verdicts), len(verdicts)) for verdicts in (planted, genuine)]
    wrong, right = (count / asked if asked else None for count, asked in counts)
    chance = inert = None
    if wrong is not None and right is not None:
        from scipy.stats import fisher_exact  # half a second to import

        chance = float(fisher_exact([[count, asked - count] for count, asked in counts], alternative="greater").pvalue)
        useless = wrong < INERT or wrong <= right
        inert = True if useless else False if chance <= CHANCE else None
    unclear = sum(verdict.verdict == "unclear" for verdict in [*planted, *genuine])
    found = {"planted": len(planted), "rejected_planted": wrong, "rejected_generated": right, "chance": chance, "inert": inert}
    return found | {"unclear": unclear}
