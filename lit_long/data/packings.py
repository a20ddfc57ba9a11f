"""Documents into sequences of T tokens, as pure index arithmetic: sequence i is a function of (seed, i) and nothing else.

Three ways (``data.packing``), all over the same epochs of documents (draws.py):

* ``concat``: documents end to end, cut every T tokens. No padding; many documents are cut.
* ``best_fit``: in each block of documents, the longest first, each goes where the least room is left that holds it (Ding et al. 2024,
  "Fewer Truncations Improve Language Modeling"). Documents longer than T are cut into whole sequences and a rest. A block makes as
  many sequences as its tokens fill; what then fits nowhere is cut to fill the gaps, so padding stays below a sequence a block.
* ``single``: one document per sequence, padded on the right; what exceeds T is left out.

Instruction data have ways of their own, in which no conversation is ever cut; those of more than T tokens are left out:

* ``whole``: in each block of conversations, the longest first, each goes where the least room is left that holds it.
* ``single``: one conversation per sequence, padded on the right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lit_long.data.draws import Epoch
from lit_long.data.shuffle import permutation


class Piece(NamedTuple):
    """Tokens ``start`` to ``stop`` - 1 of a document."""

    document: int
    start: int
    stop: int


class Packing(ABC):
    """How the documents of an epoch become sequences of at most ``context`` tokens."""

    def __init__(self, context: int) -> None:
        self.context = context

    @abstractmethod
    def count(self, epoch: Epoch) -> int:
        """Sequences of the epoch."""

    @abstractmethod
    def pieces(self, epoch: Epoch, index: int) -> list[Piece]:
        """What sequence ``index`` of the epoch is made of."""

    def tokens(self, epoch: Epoch) -> int:
        """Tokens that the epoch's sequences hold, padding left out."""
        return epoch.tokens

    def utilisation(self, epoch: Epoch) -> float:
        """Share of the sequences' places that hold a token."""
        return self.tokens(epoch) / (self.count(epoch) * self.context)


class Concat(Packing):
    def count(self, epoch: Epoch) -> int:
        return max(0, epoch.tokens - 1) // self.context  # of a last token no successor is known

    def tokens(self, epoch: Epoch) -> int:
        return self.count(epoch) * self.context

    def pieces(self, epoch: Epoch, index: int) -> list[Piece]:
        at, stop = index * self.context, (index + 1) * self.context
        block = int(np.searchsorted(epoch.token_starts, at, side="right")) - 1
        found: list[Piece] = []
        while at < stop:
            base = int(epoch.token_starts[block])
            numbers, ends = epoch.block(block)
            place = int(np.searchsorted(ends, at - base, side="right"))
            while place < len(numbers) and at < stop:
                begin, end = base + (int(ends[place - 1]) if place else 0), base + int(ends[place])
                found.append(Piece(int(numbers[place]), at - begin, min(stop, end) - begin))
                at, place = min(stop, end), place + 1
            block += 1
        return found


class BestFit(Packing):
    def __init__(self, context: int) -> None:
        super().__init__(context)
        self._packed = lru_cache(maxsize=4)(self._pack)

    def count(self, epoch: Epoch) -> int:
        return int(self._starts(epoch)[-1])

    def pieces(self, epoch: Epoch, index: int) -> list[Piece]:
        starts = self._starts(epoch)
        block = int(np.searchsorted(starts, index, side="right")) - 1
        return self._packed(epoch, block)[index - int(starts[block])]

    def _starts(self, epoch: Epoch) -> np.ndarray:
        """int64 [blocks + 1]: sequences before each block."""
        return np.concatenate([[0], np.cumsum(-(-np.diff(epoch.token_starts) // self.context))])

    def _pack(self, epoch: Epoch, block: int) -> list[list[Piece]]:
        numbers, ends = epoch.block(block)
        lengths = np.diff(ends, prepend=0)
        count = -(-int(lengths.sum()) // self.context)
        bins: list[list[Piece]] = []
        rests: list[Piece] = []
        for number, length in zip(numbers.tolist(), lengths.tolist(), strict=True):
            whole = length // self.context * self.context
            bins += [[Piece(number, at, at + self.context)] for at in range(0, whole, self.context)]
            if whole < length:
                rests.append(Piece(number, whole, length))
        rests.sort(key=lambda piece: piece.start - piece.stop)
        rooms: list[tuple[int, int]] = []  # (room left, bin), the least room first
        unplaced = []
        for piece in rests:
            size = piece.stop - piece.start
            at = bisect_left(rooms, (size, 0))
            if at < len(rooms):
                room, chosen = rooms.pop(at)
                bins[chosen].append(piece)
            elif len(bins) < count:
                room, chosen = self.context, len(bins)
                bins.append([piece])
            else:
                unplaced.append(piece)
                continue
            if room > size:
                insort(rooms, (room - size, chosen))
        for piece in unplaced:
            while piece.start < piece.stop:
                room, chosen = rooms.pop()
                cut = min(piece.stop, piece.start + room)
                bins[chosen].append(piece._replace(stop=cut))
                if room > cut - piece.start:
                    insort(rooms, (room - cut + piece.start, chosen))
                piece = piece._replace(start=cut)
        draws = epoch.draws
        return [bins[i] for i in permutation(count, "bins", draws.seed, draws.domain, epoch.number, block)]


class Single(Packing):
    def count(self, epoch: Epoch) -> int:
        return epoch.documents

    def tokens(self, epoch: Epoch) -> int:
        return epoch.tokens_within(self.context)

    def pieces(self, epoch: Epoch, index: int) -> list[Piece]:
        block = int(np.searchsorted(epoch.document_starts, index, side="right")) - 1
        numbers, ends = epoch.block(block)
        place = index - int(epoch.document_starts[block])
        length = int(ends[place] - (ends[place - 1] if place else 0))
        return [Piece(int(numbers[place]), 0, min(length, self.context))]


class Whole(Packing):
    """Best fit without cuts. How many sequences a block makes is only known once it is packed."""

    def __init__(self, context: int) -> None:
        super().__init__(context)
        self._packed = lru_cache(maxsize=4)(self._pack)
        self._starts = lru_cache(maxsize=4)(self._count)

    def count(self, epoch: Epoch) -> int:
        return int(self._starts(epoch)[-1])

    def pieces(self, epoch: Epoch, index: int) -> list[Piece]:
        starts = self._starts(epoch)
        block = int(np.searchsorted(starts, index, side="right")) - 1
        return self._packed(epoch, block)[index - int(starts[block])]

    def _count(self, epoch: Epoch) -> np.ndarray:
        """int64 [blocks + 1]: sequences before each block."""
        counts = [len(self._packed(epoch, block)) for block in range(len(epoch.token_starts) - 1)]
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def _pack(self, epoch: Epoch, block: int) -> list[list[Piece]]:
        numbers, ends = epoch.block(block)
        lengths = np.diff(ends, prepend=0)
        bins: list[list[Piece]] = []
        rooms: list[tuple[int, int]] = []  # (room left, bin), the least room first
        for place in np.argsort(-lengths, kind="stable").tolist():
            size = int(lengths[place])
            at = bisect_left(rooms, (size, 0))
            room, chosen = rooms.pop(at) if at < len(rooms) else (self.context, len(bins))
            if chosen == len(bins):
                bins.append([])
            bins[chosen].append(Piece(int(numbers[place]), 0, size))
            if room > size:
                insort(rooms, (room - size, chosen))
        draws = epoch.draws
        return [bins[i] for i in permutation(len(bins), "bins", draws.seed, draws.domain, epoch.number, block)]


PACKINGS: dict[str, type[Packing]] = {"concat": Concat, "best_fit": BestFit, "single": Single}


INSTRUCT_PACKINGS: dict[str, type[Packing]] = {"whole": Whole, "single": Single}
