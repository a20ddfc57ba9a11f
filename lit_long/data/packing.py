"""A domain's training sequences: sequence i is a function of (seed, i) and nothing else. The state of the stream is one integer.

How documents become sequences is in packings.py. Of instruction data each target counts as much as who wrote it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lit_long.config import InstructConfig, SamplingConfig, UserError
from lit_long.data.documents import Documents, ShardedDocuments
from lit_long.data.draws import Draws, Epoch
from lit_long.data.packings import INSTRUCT_PACKINGS, PACKINGS, BestFit, Piece, Single, Whole
from lit_long.data.store import Store

__all__ = ["ENDLESS", "PACKINGS", "PackedDocuments", "Piece", "Sequence", "whole_documents"]

ENDLESS = 2**40  # sequences: far more than any run asks for, and mixed by any weight it still fits an index

Sequence = dict[str, np.ndarray]


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
            sampling = replace(sampling, max_tokens=min(sampling.max_tokens or context, context))
        self._separator = store.separator
        self._mask_documents = mask_documents
        self.draws = Draws(self._documents, domain, seed, sampling)
        self.packing = INSTRUCT_PACKINGS[instruct.packing](context) if instruct else PACKINGS[packing](context)
        self.first = 0
        self.sequences_per_epoch = self.packing.count(self.draws.epoch(0))
        if self.sequences_per_epoch == 0:
            raise UserError(
                f"context is {context}, but domain '{domain}' has only {self.draws.epoch(0).tokens} training tokens. "
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
            sequence = weighted(sequence, pieces, self._documents, self._instruct)
        dropped = isinstance(self.packing, Single)
        return sequence | {"account": _account(self._documents, pieces, dropped)}

    def place(self, index: int) -> tuple[Epoch, int]:
        """The epoch that sequence ``index`` of the stream lies in, and its number there."""
        if self.draws.steady and not isinstance(self.packing, (BestFit, Whole)):
            number, within = divmod(index, self.sequences_per_epoch)
            return self.draws.epoch(number), within
        while index >= self._ends[-1]:  # epochs differ in length
            self._ends.append(self._ends[-1] + self.packing.count(self.draws.epoch(len(self._ends))))
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.draws.epoch(number), index - (self._ends[number - 1] if number else 0)


def _sequence(
    documents: Documents | ShardedDocuments, pieces: list[Piece], context: int, separator: int, mask_documents: bool
) -> Sequence:
    """The arrays of a sequence of ``context`` tokens, padded on the right."""
    from lit_long.model.batch import NO_LOSS, PADDING  # which needs torch, and planning a sweep must not

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


def weighted(sequence: Sequence, pieces: list[Piece], documents: ShardedDocuments, instruct: InstructConfig) -> Sequence:
    """The sequence with no target where a token has weight 0; and where the others do not all have weight 1, their ``weights``, fp32 [T]."""
    from lit_long.model.batch import NO_LOSS

    weights, at = np.zeros(len(sequence["targets"]), dtype=np.float32), 0
    for index, start, stop in pieces:
        own = np.full(stop + 1, instruct.prompt_weight)  # by token; the one after the last opens the next document
        for first, end in documents.answers(index):
            own[first:end] = instruct.answer_weight
        own[stop] = own[stop - 1]  # whoever speaks last learns to end
        weights[at : at + stop - start] = own[start + 1 : stop + 1]
        at += stop - start
    targets = np.where(weights > 0, sequence["targets"], NO_LOSS)
    plain = {instruct.prompt_weight, instruct.answer_weight} <= {0.0, 1.0}
    return sequence | {"targets": targets} | ({} if plain else {"weights": weights})


def _account(documents: Documents | ShardedDocuments, pieces: list[Piece], dropped: bool) -> np.ndarray:
    """int64 [4], see `PackedDocuments`. ``dropped``: what a sequence does not hold of a document is nowhere else."""
    missing = [len(documents[piece.document]) - piece.stop for piece in pieces if piece.start == 0]
    cut = sum(count > 0 for count in missing)
    return np.array([sum(piece.stop - piece.start for piece in pieces), len(missing), cut, sum(missing) if dropped else 0])


def whole_documents(documents: list[np.ndarray], mask_documents: bool = True) -> Sequence:
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
