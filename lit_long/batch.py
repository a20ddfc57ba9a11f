"""The batch: the one thing that data, model and evaluation agree on.

Shapes: B sequences, T tokens each. Document boundaries are carried by ``document_ids`` alone; nothing looks at token values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

NO_LOSS = -100
PADDING = -1
ALIGNED = 16  # bytes: what kernels want of addresses


class Part(NamedTuple):
    """Which tokens of its sequences a batch holds, when ranks share them: two chunks of each (model/context_parallel.py).

    rank, ranks   this one, of how many
    document_ids  int64 [B, S] of the whole sequences
    gather        keys and values [B, G, S, K] of the whole sequences, in their order, from this rank's [B, G, T, K]; all ranks call it together
    """

    rank: int
    ranks: int
    document_ids: Tensor
    gather: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Batch(NamedTuple):
    """Token sequences with their targets, document boundaries and logical positions.

    tokens        int64 [B, T]
    targets       int64 [B, T]  the next token, or ``NO_LOSS`` where nothing is to be predicted
    document_ids  int64 [B, T]  equal within a document, different in neighbouring documents; ``PADDING`` right of the last. They stay in
                                the host's memory: what follows from them is worked out there
    positions     int64 [B, T]  0, 1, 2 …; restart with every document when documents are masked, else run through
    mask_documents              whether attention stops at document boundaries
    account       int64 [B, 5]  of training batches, what each sequence holds of which domain (data/mixture.py)
    weights       fp32 [B, T]   how much each target counts in the loss; None: all of them alike
    part                        of longer sequences, which ranks share; None: the T tokens are whole sequences
    divisor       fp32 [B, T]   what each target adds to the number that the sum of nats is divided by; None: as much as it weighs
    reach                       tokens that all positions lie within, where training changed them (positions/transforms.py)
    """

    tokens: Tensor
    targets: Tensor
    document_ids: Tensor
    positions: Tensor
    mask_documents: bool = True
    account: Tensor | None = None
    weights: Tensor | None = None
    part: Part | None = None
    divisor: Tensor | None = None
    reach: int | None = None

    @property
    def length(self) -> int:
        """Tokens of the context that positions are in: of a whole sequence, or those that they reach into."""
        if self.reach is not None:
            return self.reach
        return self.tokens.shape[1] if self.part is None else self.part.document_ids.shape[1]

    def rows(self, start: int, stop: int) -> Batch:
        """Sequences ``start`` to ``stop`` as a batch of their own."""
        weights, divisor = (None if field is None else field[start:stop] for field in (self.weights, self.divisor))
        part = None if self.part is None else self.part._replace(document_ids=self.part.document_ids[start:stop])
        own = (field[start:stop] for field in self[:4])
        return Batch(*own, mask_documents=self.mask_documents, weights=weights, part=part, divisor=divisor, reach=self.reach)

    def loss_tokens(self) -> Tensor:
        """What the sum of nats is divided by: the number of tokens with a loss, int64 []; where they have weights or a divisor, its sum, fp32 []."""
        return counted(self.targets, self.weights if self.divisor is None else self.divisor)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device, but for its document ids."""
        names = [name for name in MOVED if getattr(self, name) is not None]
        return self._replace(**dict(zip(names, to_device([getattr(self, name) for name in names], device), strict=True)))


MOVED = ("tokens", "targets", "positions", "account", "weights", "divisor")


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors on another device. From the host's memory to a GPU's they go in one copy, which nobody waits for."""
    if device.type == "cpu" or not all(x.is_cpu for x in tensors):
        return [x.to(device) for x in tensors]
    at_once = device.type == "cuda"
    return unpack(pack(tensors, at_once).to(device, non_blocking=at_once), tensors)


def pack(tensors: Sequence[Tensor], pinned: bool = False) -> Tensor:
    """The bytes of all tensors, one after the other, uint8 [N]."""
    *starts, end = places(tensors)
    packed = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)
    for x, start in zip(tensors, starts, strict=True):
        packed[start : start + x.nbytes].view(x.dtype).copy_(x.flatten())
    return packed


def unpack(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of what was packed, with the shapes and types of ``like``."""
    return [packed[start : start + x.nbytes].view(x.dtype).view(x.shape) for x, start in zip(like, places(like), strict=False)]


def places(tensors: Sequence[Tensor]) -> list[int]:
    """Where each begins, and the end."""
    return [0, *accumulate(-(-x.nbytes // ALIGNED) * ALIGNED for x in tensors)]


def right_padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Tokens of rows of unequal length, int64 [B, T], with zeros on their right, which causality hides."""
    tokens_BT = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for place, row in enumerate(rows):
        tokens_BT[place, : len(row)] = torch.tensor(row)
    return tokens_BT


def counted(targets_BT: Tensor, weights_BT: Tensor | None = None) -> Tensor:
    """What a sum of nats is divided by: the number of targets, or the sum of their weights, so that a loss is a mean either way."""
    with_loss_BT = targets_BT != NO_LOSS
    return with_loss_BT.sum() if weights_BT is None else weights_BT[with_loss_BT].sum()
