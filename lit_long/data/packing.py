"""Documents into sequences of T tokens, as pure index arithmetic: sequence i of a domain is a function of (seed, i) and nothing else. The state of the stream
is one integer.

Three ways (``data.packing``), all over the same epochs of documents (sampling.py):

* ``concat``: documents end to end, cut every T tokens. No padding; many documents are cut.
* ``best_fit``: in each block of documents, the longest first, each goes where the least room is left that holds it (Ding et al. 2024,
  "Fewer Truncations Improve Language Modeling"). Documents longer than T are cut into whole sequences and a rest. A block makes as
  many sequences as its tokens fill; what then fits nowhere is cut to fill the gaps, so padding stays below a sequence a block.
* ``single``: one document per sequence, padded on the right; what exceeds T is left out.

Instruction data have ways of their own, in which no conversation is ever cut; those of more than T tokens are left out:

* ``whole``: in each block of conversations, the longest first, each goes where the least room is left that holds it.
* ``single``: one conversation per sequence, padded on the right.

Of instruction data each target counts as much as who wrote it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lit_long.config import InstructConfig, SamplingConfig, UserError
from lit_long.data.sampling import Epoch, EpochSampler, permutation
from lit_long.data.token_store import Documents, ShardedDocuments, Store

ENDLESS = 2**40  # sequences: far more than any run asks for, and mixed by any weight it still fits an index

Sequence = dict[str, np.ndarray]


class Piece(NamedTuple):
    """Tokens ``start`` to ``stop`` - 1 of a document."""

    document: int
    start: int
    stop: int


class Place(NamedTuple):
    """Where a reader of documents is: before ``document`` of an epoch's order of all documents, whichever of them a context or a sampling draws."""

    epoch: int = 0
    document: int = 0


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
        sampler = epoch.sampler
        return [bins[i] for i in permutation(count, "bins", sampler.seed, sampler.domain, epoch.number, block)]


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
        sampler = epoch.sampler
        return [bins[i] for i in permutation(len(bins), "bins", sampler.seed, sampler.domain, epoch.number, block)]


PACKINGS: dict[str, type[Packing]] = {"concat": Concat, "best_fit": BestFit, "single": Single}


INSTRUCT_PACKINGS: dict[str, type[Packing]] = {"whole": Whole, "single": Single}


class PackedDocuments:
    """Training sequences of one domain, as a random-access source.

    ``source[i]`` is a dictionary of int64 [T] arrays: ``tokens``, ``targets``, ``document_ids`` (0, 1, … within the sequence) and
    ``positions`` (from 0 at the sequence's start and, with ``mask_documents``, again at each document's start); and ``account``, which is
    int64 [4]: tokens, documents that begin here, how many of these are cut, and tokens of theirs that no sequence holds.

    The target of a document's last token is the separator that opens the next document. It has a loss whether
    documents are masked or not: it teaches where documents end.

    Attributes:
        first: the number of the sequence to begin with.
        sequences_per_epoch: of the first epoch.
    """

    def __init__(
        self,
        store: Store,
        domain: str,
        context: int,
        seed: int,
        mask_documents: bool,
        packing: str = "concat",
        sampling: SamplingConfig | None = None,
        instruct: InstructConfig | None = None,
    ) -> None:
        """``instruct``: of a source of instruction data, its packing and its weights, instead of ``packing``."""
        self._documents = store.documents(domain, "train")
        self._instruct, sampling = instruct, sampling or SamplingConfig()
        if instruct:
            lengths = self._documents.lengths
            if len(lengths) and (shortest := int(lengths.min())) > context:
                raise UserError(
                    f"no conversation of '{domain}' fits context={context}: the shortest has {shortest} tokens. Raise the context, or lower "
                    f"data.sources.{domain}.instruct.max_tokens for questions about documents, which are then cut around their chunk."
                )
            sampling = replace(sampling, max_tokens=min(sampling.max_tokens or context, context))
        self._separator = store.separator
        self._mask_documents = mask_documents
        self.packing = INSTRUCT_PACKINGS[instruct.packing](context) if instruct else PACKINGS[packing](context)
        limit = context if isinstance(self.packing, Single) else 0
        self.sampler = EpochSampler(self._documents, domain, seed, sampling, limit)
        self.first = 0
        self.sequences_per_epoch = self.packing.count(self.sampler.epoch(0))
        if self.sequences_per_epoch == 0:
            raise UserError(
                f"context is {context}, but domain '{domain}' has only {self.sampler.epoch(0).tokens} training tokens. "
                f"Lower the context, or give it more documents (data.corpus.packages, or the source's path)."
            )
        self._ends = [self.sequences_per_epoch]  # of the epochs, as far as they were asked for

    def __len__(self) -> int:
        return ENDLESS

    @property
    def no_room(self) -> int:
        """Conversations that are never drawn, for they are longer than a sequence. Other documents are cut."""
        return int((self._documents.lengths > self.packing.context).sum()) if self._instruct else 0

    def __getitem__(self, index: int) -> Sequence:
        epoch, within = self.place(int(index) + self.first)
        pieces = self.packing.pieces(epoch, within)
        sequence = _sequence(self._documents, pieces, self.packing.context, self._separator, self._mask_documents)
        if self._instruct:
            sequence = weigh_targets(sequence, pieces, self._documents, self._instruct)
        dropped = isinstance(self.packing, Single)
        return sequence | {"account": _account(self._documents, pieces, dropped)}

    def place(self, index: int) -> tuple[Epoch, int]:
        """The epoch that sequence ``index`` of the stream lies in, and its number there."""
        if self.sampler.steady and not isinstance(self.packing, (BestFit, Whole)):
            number, within = divmod(index, self.sequences_per_epoch)
            return self.sampler.epoch(number), within
        while index >= self._ends[-1]:  # epochs differ in length
            self._count_epoch()
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.sampler.epoch(number), index - (self._ends[number - 1] if number else 0)

    def place_after(self, sequences: int) -> Place:
        """The place after the stream's first ``sequences`` sequences, where each is one document."""
        if not sequences:
            return Place()
        epoch, within = self.place(sequences - 1)
        return Place(epoch.number, epoch.place(within) + 1)

    def sequences_before(self, place: Place) -> int:
        """How many of the stream's sequences lie before a place, where each is one document."""
        while place.epoch > len(self._ends):
            self._count_epoch()
        earlier = self._ends[place.epoch - 1] if place.epoch else 0
        return earlier + self.sampler.epoch(place.epoch).documents_before(place.document)

    def _count_epoch(self) -> None:
        self._ends.append(self._ends[-1] + self.packing.count(self.sampler.epoch(len(self._ends))))


def _sequence(
    documents: Documents | ShardedDocuments, pieces: list[Piece], context: int, separator: int, mask_documents: bool
) -> Sequence:
    """The arrays of a sequence of ``context`` tokens, padded on the right."""
    from lit_long.batch import NO_LOSS, PADDING  # which needs torch, and planning a sweep must not

    tokens, targets = np.full(context, separator), np.full(context, NO_LOSS)
    ids, positions = np.full(context, PADDING), np.arange(context)
    at = 0
    for number, (index, start, stop) in enumerate(pieces):
        document = documents[index]
        after = at + stop - start
        tokens[at:after] = document[start:stop]
        targets[at : after - 1] = document[start + 1 : stop]
        targets[after - 1] = document[stop] if stop < len(document) else separator
        ids[at:after] = number
        if mask_documents:
            positions[at:after] -= at
        at = after
    return {"tokens": tokens, "targets": targets, "document_ids": ids, "positions": positions}


def weigh_targets(sequence: Sequence, pieces: list[Piece], documents: ShardedDocuments, instruct: InstructConfig) -> Sequence:
    """The sequence with no target where a token has weight 0; where the others do not all have weight 1, their ``weights``, fp32 [T]; and where
    not they, but the answers' tokens are to be the loss's divisor, ``divisor``, fp32 [T]."""
    from lit_long.batch import NO_LOSS

    answered, at = np.zeros(len(sequence["targets"]), dtype=bool), 0
    for index, start, stop in pieces:
        own = np.zeros(stop + 1, dtype=bool)  # by token; the one after the last opens the next document
        for first, end in documents.answers(index):
            own[first:end] = True
        own[stop] = own[stop - 1]  # whoever speaks last learns to end
        answered[at : at + stop - start] = own[start + 1 : stop + 1]
        at += stop - start
    inside = np.arange(len(answered)) < at
    weights = np.where(answered, instruct.answer_weight, instruct.prompt_weight * inside).astype(np.float32)
    found = {"targets": np.where(weights > 0, sequence["targets"], NO_LOSS)}
    if instruct.weighs:
        found["weights"] = weights
    if instruct.divides:
        found["divisor"] = answered.astype(np.float32)
    return sequence | found


def _account(documents: Documents | ShardedDocuments, pieces: list[Piece], dropped: bool) -> np.ndarray:
    """int64 [4], see `PackedDocuments`. ``dropped``: what a sequence does not hold of a document is nowhere else."""
    missing = [len(documents[piece.document]) - piece.stop for piece in pieces if piece.start == 0]
    cut = sum(count > 0 for count in missing)
    return np.array([sum(piece.stop - piece.start for piece in pieces), len(missing), cut, sum(missing) if dropped else 0])


def join_documents(documents: list[np.ndarray], mask_documents: bool = True) -> Sequence:
    """The sequence that ``documents``, T + 1 tokens in all, make one after the other, each from its separator on; a loss on every token."""
    tokens = np.concatenate(documents).astype(np.int64)
    sizes = [len(document) for document in documents]
    ids = np.repeat(np.arange(len(sizes)), sizes)
    positions = np.concatenate([np.arange(size) for size in sizes]) if mask_documents else np.arange(len(tokens))
    return {
        "tokens": tokens[:-1],
        "targets": tokens[1:],
        "document_ids": ids[:-1],
        "positions": positions[:-1],
        "account": np.array([len(tokens) - 1, len(np.unique(ids[:-1])), 0, 0]),
    }
