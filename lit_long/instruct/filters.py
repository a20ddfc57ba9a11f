"""Rules that an example must pass, whatever a model thinks of it. Each is reported by the number of examples that it turns away.

grounded    enough of the answer's words stand in the chunk
length      the question and the answer are neither too short nor too long, and the answer is not just the question
vague       the question is not about the question, the text or the passage, which its reader would not recognise
duplicate   no example before it asks the same
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from lit_long.config.ranges import CountOrNone, Share

RULES = ("grounded", "length", "vague", "duplicate")
_VAGUE = re.compile(
    r"\b(the|this|that|your)\s+(above |given |following )?(question|text|passage|article|answer)s?\b", re.IGNORECASE
)
_WORD = re.compile(r"\w+")
# Words that any English text holds; they ground nothing.
_COMMON = frozenset(
    _WORD.findall(
        "a an and are as at be been but by can did do does for from had has have he her his how i if in into is it its may more most no not of "
        "on one only or our out she should so some such than that the their them then there these they this those to up was we were what when "
        "where which who why will with would you your"
    )
)


@dataclass
class FilterConfig:
    """``grounded``: share of the answer's words, common ones left out, that must stand in the chunk. The others count words."""

    grounded: Share = 0.6
    question_words: tuple[CountOrNone, CountOrNone] = (4, 60)
    answer_words: tuple[CountOrNone, CountOrNone] = (1, 120)
    short_answer_words: CountOrNone = 15  # at most, of a short answer
    vague: bool = True  # whether that rule is applied


@dataclass
class Filters:
    """Looks at examples in their order."""

    config: FilterConfig
    seen: set[str] = field(default_factory=set)

    def failed(self, question: str, answer: str, kind: str, chunk: str) -> list[str]:
        """Rules that the example does not pass."""
        asked, said, config = words(question), words(answer), self.config
        fewest, most = config.answer_words
        most = config.short_answer_words if kind == "short" else most
        fits = config.question_words[0] <= len(asked) <= config.question_words[1] and fewest <= len(said) <= most
        key = " ".join(asked)
        found = []
        if grounded(answer, chunk) < config.grounded:
            found.append("grounded")
        if not fits or said == asked:
            found.append("length")
        if config.vague and _VAGUE.search(question):
            found.append("vague")
        if key in self.seen:
            found.append("duplicate")
        self.seen.add(key)
        return found


def words(text: str) -> list[str]:
    """Words in lower case."""
    return _WORD.findall(text.lower())


def grounded(answer: str, chunk: str) -> float:
    """Share of the answer's words that stand in the chunk; of all of them where it has only common ones."""
    said = words(answer)
    said = [word for word in said if word not in _COMMON] or said
    there = set(words(chunk))
    return sum(word in there for word in said) / len(said) if said else 0.0
