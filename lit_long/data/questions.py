"""Questions about real text, made by rule, with one right answer each: to tune small models and to ask them, where no capable model is at hand.

    normal   Which sentence starts with "its first three words"?                                  the sentence
    short    Which sentence starts with "its first three words"? Give its first four words.       its first four words

The quoted words stand once in the whole text, so finding the answer means finding the place. An answer begins with the words that were quoted: a model
of 1.3M parameters learns to go on from there in 100,000 tokens, and did not learn in three times as many to begin with the words that follow
(docs/lab-book.md, 2026-11-29).

And two forms of Llama-2-7B-32K-Instruct's data (Together 2023):

    documents   passages of several documents, numbered, and a question about one of them (multi-document question answering)
    chapter     three passages under headings, and for a summary the first sentence of each (BookSum)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenizers import Tokenizer

from lit_long.config import Unfit
from lit_long.data.sampling import Places, permutation, random_words
from lit_long.data.synthetic import first_sentence
from lit_long.data.token_store import Documents, ShardedDocuments, describe_longest

QUOTED, SHORT = 3, 4  # words: that are quoted, and of a short answer
WORDS = range(7, 31)  # of a sentence
PARTS = 3  # of a chapter
PASSAGE = 40  # tokens of one of several documents
FORMS = {
    "normal": 'Which sentence starts with "{}"?',
    "short": 'Which sentence starts with "{}"? Give its first four words.',
}
DOCUMENTS = "Answer the question from the documents below.\n\n{}\n\nQuestion: {}"
CHAPTER = "{}\n\nSummarise this chapter."
_SENTENCE = re.compile(r"(?:(?<=^)|(?<=[.!?]\s))[A-Z][^\n.!?]*[.!?](?=\s|$)", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n\s*\n[ \t]*")
_SEARCHED = 256  # tokens from a random place on in which a paragraph is looked for
_TRIES = 200


@dataclass(frozen=True)
class Question:
    """``answer`` begins with the words ``quoted``; ``start`` to ``stop``: characters of the text where the sentence lies."""

    asked: str
    answer: str
    quoted: str
    start: int
    stop: int


def sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences lie that can be asked about: of 7 to 30 words on one line, without quotation marks."""
    found = []
    for match in _SENTENCE.finditer(text):
        words = match[0].split(" ")
        if len(words) in WORDS and "" not in words and '"' not in match[0]:
            found.append(match.span())
    return found


def question_about(text: str, sentence: tuple[int, int], kind: str) -> Question | None:
    """The question of that kind (`FORMS`) about a sentence of the text; None if its first words stand elsewhere, too."""
    words = text[slice(*sentence)].split(" ")
    quoted = " ".join(words[:QUOTED])
    if text.count(quoted) != 1:
        return None
    answer = " ".join(words[:SHORT] if kind == "short" else words)
    return Question(FORMS[kind].format(quoted), answer, quoted, *sentence)


def ask_of_several(passages: Sequence[str], question: Question) -> str:
    """The prompt that asks the question about one of several documents."""
    numbered = "\n\n".join(f"Document {number}:\n{passage}" for number, passage in enumerate(passages, 1))
    return DOCUMENTS.format(numbered, question.asked)


def conversation(*turns: str) -> list[dict[str, str]]:
    """What a user and an assistant say in turn, as messages."""
    return [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]


def make_chapter(parts: Sequence[str]) -> tuple[str, str] | None:
    """A chapter of several parts, and its summary: the first sentence of each; None if two are the same, or one stands elsewhere, too."""
    found = [first_sentence(part) for part in parts]
    chapter = "\n\n".join(f"Part {number}\n{part}" for number, part in enumerate(parts, 1))
    if None in found or any(chapter.count(sentence) != 1 for sentence in found):
        return None
    return chapter, " ".join(found)


class Texts(Protocol):
    """A `Store`, or texts in memory."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def documents(self, domain: str, split: str) -> Documents | ShardedDocuments: ...


class Passages:
    """Passages of a domain's documents; each starts where a paragraph starts with a sentence, and has exactly as many tokens as asked for.

    Raises Unfit if no document has more than ``longest`` tokens.
    """

    def __init__(self, texts: Texts, domain: str, split: str, longest: int) -> None:
        self._documents, self._tokenizer = texts.documents(domain, split), texts.tokenizer
        self._places = Places(self._documents, longest + 1)
        if not self._places:
            raise Unfit(
                f"No {split} document of domain '{domain}' has more than {longest} tokens, as questions about texts of that length need "
                f"({describe_longest(self._documents)})."
            )

    def draw(self, tokens: int, *key: int | str) -> str:
        """The passage that ``key`` chooses. Raises Unfit where paragraphs with sentences are too rare."""
        for attempt in range(_TRIES):
            index, start = self._places.draw(random_words(1, "passage", *key, attempt)[0])
            text = self._tokenizer.decode(self._documents[index][start : start + _SEARCHED + tokens].tolist())
            for paragraph in _PARAGRAPH.finditer(text):
                if first_sentence(text[paragraph.end() :]):
                    offsets = self._tokenizer.encode(text[paragraph.end() :], add_special_tokens=False).offsets
                    if len(offsets) >= tokens:
                        return text[paragraph.end() :][: offsets[tokens - 1][1]]
                    break
        raise Unfit(f"{_TRIES} passages of {tokens} tokens had no paragraph that starts with a sentence.")


def ask(text: str, kind: str, *key: int | str) -> Iterator[Question]:
    """Questions about a text, in an order that ``key`` determines."""
    found = sentences(text)
    for place in permutation(len(found), "ask", *key):
        if question := question_about(text, found[int(place)], kind):
            yield question
