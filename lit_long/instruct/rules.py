"""Questions made by rule (lit_long/data/questions.py) as a generator, and as a critic, of instruction data: for where no capable model is at hand."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lit_long.data import questions
from lit_long.data.sampling import permutation
from lit_long.instruct.chunks import Item
from lit_long.instruct.generators import Request

_QUOTE = re.compile(r'"(.*?)"')


class Rules:
    """Answers requests to generate, and to judge, without any model."""

    name = identity = "rules/2"

    def ask(self, requests: list[Request]) -> Iterator[dict[str, str]]:
        for request in requests:
            yield {request.key: judge(request.item, *request.checked) if request.checked else question_about(request.item)}

    def fits(self, prompt: str, tokens: int) -> bool:
        return True


def question_about(item: Item) -> str:
    """Question and answer in tags; nothing where the chunk has no sentence to ask about."""
    found = questions.sentences(item.chunk)
    for place in permutation(len(found), "rules", item.seed):
        start, stop = found[int(place)]
        made = questions.question_about(item.document, (item.start + start, item.start + stop), item.kind)
        if made:
            return f"<question>{made.asked}</question>\n<answer>{made.answer}</answer>"
    return ""


def judge(item: Item, question: str, answer: str) -> str:
    """The verdict on an answer to a question made here, in tags."""
    quoted = _QUOTE.search(question)
    right = bool(quoted) and answer.startswith(quoted[1]) and answer in item.chunk
    return f"<verdict>{'correct' if right else 'wrong'}</verdict><score>{10 * right}</score>"
