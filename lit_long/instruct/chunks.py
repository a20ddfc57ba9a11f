"""Which chunk of which document, and which kind of question: item i is a function of (seed, i) and the documents.

Long documents are taken in turn, in a shuffled order. A chunk starts at a random place and is moved to where a paragraph, a line or at
least a word begins and ends. Places are counted in characters, which mean the same to every tokenizer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from lit_long.config import UserError
from lit_long.data.sampling import Shuffled, random_words
from lit_long.data.token_store import Store, describe_longest

KINDS = ("normal", "short")
_BREAKS = [re.compile(pattern) for pattern in (r"\n\s*\n", r"\n", r"[.!?]\s", r"\s")]


@dataclass(frozen=True)
class Item:
    """One question to be asked. ``depth``, from 0 to 1: where in the training example the chunk should lie."""

    number: int
    document_id: str
    document: str
    start: int
    end: int
    kind: str
    depth: float
    seed: int

    @property
    def chunk(self) -> str:
        return self.document[self.start : self.end]

    def cut(self, end: int) -> Item:
        """The same item with a chunk that ends earlier."""
        return replace(self, end=end)


class Items:
    """All items of a run.

    Args:
        domains: of the store, whose training documents to use.
        chunk_tokens: of a chunk, about, as the store's tokenizer counts.
        min_tokens: shorter documents are not used.
        short: share of the items that ask for a short answer.

    Raises:
        UserError: no document is long enough.
    """

    def __init__(self, store: Store, domains: list[str], seed: int, chunk_tokens: int, min_tokens: int, short: float) -> None:
        self._store, self._seed, self._chunk_tokens, self._short = store, seed, chunk_tokens, short
        self._documents: list[tuple[str, int]] = []
        for domain in domains:
            documents = store.documents(domain, "train")
            self._documents += [(domain, int(i)) for i in np.flatnonzero(np.asarray(documents.lengths) >= min_tokens)]
        if not self._documents:
            found = "; ".join(f"{domain}: {describe_longest(store.documents(domain, 'train'))}" for domain in domains)
            raise UserError(
                f"No document has {min_tokens} tokens ({found}). Lower min_tokens or chunk_tokens, or name other data or domains."
            )

    def __getitem__(self, number: int) -> Item:
        turn, place = divmod(number, len(self._documents))
        order = Shuffled(len(self._documents), "instruct", self._seed, turn)
        domain, index = self._documents[int(order.stretch(place, place + 1)[0])]
        documents = self._store.documents(domain, "train")
        tokens = documents[index][1:]
        text = self._store.tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        words = random_words(4, "instruct item", self._seed, number)
        first, kind, depth = (words[:3] / 2.0**64).tolist()
        size = max(1, min(len(text), round(self._chunk_tokens * len(text) / len(tokens))))
        start, end = _chunk(text, int(first * (len(text) - size + 1)), size)
        kind = KINDS[kind < self._short]
        return Item(
            number, f"{domain}/{documents.name(index)}", text, start, end, kind, round(depth, 4), int(words[3] >> np.uint64(20))
        )


def _chunk(text: str, start: int, size: int) -> tuple[int, int]:
    """The place of about ``size`` characters from about ``start`` on, beginning and ending at the best break within an eighth of them."""
    reach = size // 8
    end = min(len(text), start + size)
    if start > 0:
        found = (pattern.search(text, start, start + reach) for pattern in _BREAKS)
        start = next((match.end() for match in found if match), start)
    if end < len(text):
        ends = ([match.start() + 1 for match in pattern.finditer(text, end - reach, end)] for pattern in _BREAKS)
        end = next((places[-1] for places in ends if places), end)
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
