"""Copying: spans of training documents one after another, then the same spans again in another order.

    <|endoftext|>SPAN SPAN SPAN … SPAN SPAN SPAN …

Whoever has seen a span's first tokens can predict its others by looking back for them, at a distance that nothing else gives away. That is
what induction heads do (Olsson et al. 2022, "In-context Learning and Induction Heads"), and a small model grows them on half of such a sequence's
tokens instead of the few in a hundred that text repeats: what it takes to train, in minutes, a base model that retrieves. The spans of a
sequence are of 6 to 40 tokens, anywhere in the documents of ``docs``. No paper has this task; it is ours, for base models only.
"""

from __future__ import annotations

import numpy as np

from lit_long.config import UserError
from lit_long.data.documents import longest
from lit_long.data.packing import ENDLESS, Sequence, whole_documents
from lit_long.data.shuffle import permutation, random_words
from lit_long.data.store import Store

DOMAIN = "docs"
SPAN = range(6, 41)  # tokens


class CopyDocuments:
    """Training sequences of the task, as a random-access source: ``source[i]`` as in `PackedDocuments`, a loss on every token.

    Raises UserError if no training document is long enough for a span.
    """

    def __init__(self, store: Store, context: int, seed: int) -> None:
        self._documents = store.documents(DOMAIN, "train")
        self._separator, self._length, self._seed = store.separator, context + 1, seed
        self.first = 0  # the number of the sequence to begin with
        # How many places there are where a span may start, up to the end of each document.
        self._places = np.cumsum(np.maximum(self._documents.lengths - max(SPAN) + 1, 0))
        if not len(self._places) or self._places[-1] == 0:
            raise UserError(
                f"No training document of domain '{DOMAIN}' has {max(SPAN)} tokens, as copying needs ({longest(self._documents)}). "
                f"Take 'copying' out of data.weights."
            )

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Sequence:
        key = ("copying", self._seed, int(index) + self.first)
        half, spans, tokens = self._length // 2, [], 0
        words = iter(random_words(2 * (half // min(SPAN) + 1), *key))
        while tokens < half:
            place, size = next(words) % np.uint64(self._places[-1]), SPAN[int(next(words) % np.uint64(len(SPAN)))]
            spans.append(self._span(int(place), size))
            tokens += size
        again = [spans[i] for i in permutation(len(spans), *key, "again")]
        return whole_documents([np.concatenate([[self._separator], *spans, *again])[: self._length]])

    def _span(self, place: int, size: int) -> np.ndarray:
        index = int(np.searchsorted(self._places, place, side="right"))
        start = place - int(self._places[index - 1] if index else 0)
        return np.asarray(self._documents[index][start : start + size])
