"""Giraffe's question answering built from facts of our own, for where the data sets are not at hand; its scores do not compare with theirs.

A document is a haystack with one sentence that answers, in the first tenth, the bulk or the last tenth of it. Half the questions stand
before the document, half after it (Giraffe's cycle of six). For AlteredNumericQA every occurrence of the answer's number is changed, so
that a model that knows the fact by heart is wrong: years by 1 to 10, other numbers to one of as many digits. `alter` does so to any text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from lit_long.config import UserError
from lit_long.data.sampling import permutation, random_words
from lit_long.data.token_store import Store
from lit_long.evaluation.needle import border, haystack
from lit_long.evaluation.pages import Pages
from lit_long.evaluation.subject import Subject

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
    subject: Subject, texts: Pages | Store, domain: str, length: int, numeric: bool, seed: int, index: int
) -> tuple[list[int], str]:
    """Prompt of at most ``length`` tokens, short of it by a few, and the answer; a function of the arguments."""
    every = facts()
    fact = every[permutation(len(every), "facts", seed, index // len(every))[index % len(every)]]
    asked, answer = (fact.asked_number, fact.number) if numeric else (fact.asked, fact.word)
    first = f"Question: {asked}\nAnswer it from the document below.\n\n" if index % 2 else ""
    before = subject.words.encode(f"{first}Document:\n")
    after = subject.encode("\n\nAnswer:" if index % 2 else f"\n\nQuestion: {asked}\nAnswer it from the document above.\nAnswer:")
    sentence = subject.encode(f"\n{fact.sentence}\n")
    room = length - len(before) - len(after) - len(sentence)
    if room < 1:
        raise UserError(f"question answering: a length of {length} tokens leaves no room for a document; choose longer lengths")
    low, high = ((0.0, 0.1), (0.1, 0.9), (0.9, 1.0))[index % 6 // 2]
    share = low + (high - low) * float(random_words(1, "place", seed, index)[0]) / 2**64
    for slack in range(0, room, 16):  # a text is not always cut as its parts were, and altered numbers may take more tokens
        hay = haystack(texts, domain, room - slack, "qa", seed, index)
        cut = border(subject, hay, round(share * len(hay)))
        document = subject.words.decode([*hay[:cut], *sentence, *hay[cut:]])
        if numeric:
            document, changed = alter(document, answer, seed, index)
        tokens = [*before, *subject.encode(document), *after]
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
