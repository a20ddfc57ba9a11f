"""Questions made by rule, where no capable model is at hand: about sentences of the chunk, with answers that can be checked.

    short     Which words follow "The first words of a sentence"?      the next three
    normal    How does the sentence that begins "…" go on?             to its end

The quoted words stand once in the whole document, so there is one right answer, and finding it means finding the place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lit_long.data.sampling import permutation
from lit_long.instruct.chunks import Item
from lit_long.instruct.generators import Request

QUOTED, FOLLOWING = 5, 3  # words
_MOST = 30  # words of a sentence
_ASKED = {"short": 'Which words follow "{}"?', "normal": 'How does the sentence that begins with "{}" go on?'}
_SENTENCE = re.compile(r"(?:(?<=^)|(?<=[.!?]\s))[A-Z][^\n.!?]*[.!?](?=\s|$)", re.MULTILINE)
_QUOTE = re.compile(r'"(.*)"')


class Rules:
    """Answers requests to generate, and to judge, without any model."""

    name = identity = "rules/1"

    def ask(self, requests: list[Request]) -> Iterator[dict[str, str]]:
        for request in requests:
            yield {request.key: judge(request.item, *request.checked) if request.checked else question_about(request.item)}

    def fits(self, prompt: str, tokens: int) -> bool:
        return True


def question_about(item: Item) -> str:
    """Question and answer in tags; nothing where the chunk has no sentence to ask about."""
    sentences = _SENTENCE.findall(item.chunk)
    for place in permutation(len(sentences), "rules", item.seed):
        sentence = sentences[int(place)]
        words = sentence.split(" ")
        quoted = " ".join(words[:QUOTED])
        if not QUOTED + FOLLOWING < len(words) <= _MOST or "" in words or '"' in sentence or item.document.count(quoted) != 1:
            continue
        rest = words[QUOTED:] if item.kind == "normal" else words[QUOTED : QUOTED + FOLLOWING]
        return f"<question>{_ASKED[item.kind].format(quoted)}</question>\n<answer>{' '.join(rest)}</answer>"
    return ""


def judge(item: Item, question: str, answer: str) -> str:
    """The verdict on an answer to a question made here, in tags."""
    quoted = _QUOTE.search(question)
    right = bool(quoted) and f"{quoted[1]} {answer}" in item.chunk
    return f"<verdict>{'correct' if right else 'wrong'}</verdict><score>{10 * right}</score>"
