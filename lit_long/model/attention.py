"""Attention behind one function. Which kernel runs is decided here and nowhere else.

Shapes: B sequences, H query heads, G key-value heads, T tokens, S tokens that are looked at, K components a head.
"""

from __future__ import annotations

import itertools
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_long.model.batch import Batch
from lit_long.positions import Rotation

Runs = list[tuple[int, int]]


class Past(Protocol):
    """What one layer remembers of earlier tokens in generation; see lit_long/generation/cache.py.

    mask    added to the scores of a single query, [B, 1, 1, S]; None when it sees everything
    chunk   tokens whose widest activations may exist at once
    wanted  how many of the T tokens, the last ones, have an output: after the last layer only what comes next matters
    """

    mask: Tensor | None
    chunk: int
    wanted: int

    def extend(self, k_BGTK: Tensor, v_BGTK: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Remember keys (not yet rotated) and values of T tokens; rotated keys and values [B, G, S, K] to look at."""


def document_runs(batch: Batch) -> Runs | None:
    """Documents of the batch, row after row, as (how many in succession, tokens of each); they sum to B·T tokens.

    It follows from ``document_ids`` alone. None when plain causal attention says it all: documents are not masked, or every
    sequence holds one (right padding aside: its outputs have no loss, and causality hides it from what comes before).
    """
    if not batch.mask_documents:
        return None
    ids = batch.document_ids
    if bool(((ids == ids[:, :1]) | (ids < 0)).all()):
        return None
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    borders = [*starts.flatten().nonzero()[:, 0].tolist(), ids.numel()]
    lengths = [stop - start for start, stop in itertools.pairwise(borders)]
    return [(len(list(group)), length) for length, group in itertools.groupby(lengths)]


def attention(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, runs: Runs | None, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention, causal, and within documents when there are ``runs``: [B, H, T, K].

    Heads share keys when G < H. Documents of one length in succession go through the kernel together. T = S, except in generation: one
    query, of the newest token, sees all keys, less what ``mask`` [B, 1, 1, S] (added to the scores) hides; T queries are of the last
    T of S tokens, when a prompt goes on from what is cached.
    """
    if q_BHTK.shape[2] == 1:
        return newest(q_BHTK, k_BGSK, v_BGSK, mask)
    if runs is None:
        return causal(q_BHTK, k_BGSK, v_BGSK) if q_BHTK.shape[2] == k_BGSK.shape[2] else latest(q_BHTK, k_BGSK, v_BGSK)
    sizes = [count * length for count, length in runs]
    # One split and one concatenation, because backward of a slice writes a whole tensor of zeros around it.
    pieces = zip(*(tensor.transpose(0, 1).flatten(1, 2).split(sizes, dim=1) for tensor in (q_BHTK, k_BGSK, v_BGSK)), strict=True)
    outputs = [
        causal(*(tensor.unflatten(1, (count, length)).transpose(0, 1) for tensor in piece)).transpose(0, 1).flatten(1, 2)
        for (count, length), piece in zip(runs, pieces, strict=True)
    ]
    return torch.cat(outputs, dim=1).unflatten(1, (q_BHTK.shape[0], q_BHTK.shape[2])).transpose(0, 1)


def causal(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    grouped = q_BHTK.shape[1] != k_BGTK.shape[1]
    return F.scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, is_causal=True, enable_gqa=grouped)


def latest(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor) -> Tensor:
    """Causal attention of the last T of S tokens: the mask's diagonal ends in the lower right corner."""
    tokens, seen = q_BHTK.shape[2], k_BGSK.shape[2]
    mask_TS = torch.ones(tokens, seen, dtype=torch.bool, device=q_BHTK.device).tril(seen - tokens)
    grouped = q_BHTK.shape[1] != k_BGSK.shape[1]
    return F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, attn_mask=mask_TS, enable_gqa=grouped)


def newest(q_BH1K: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Tensor | None) -> Tensor:
    """The query heads that share keys go through the kernel as queries of one head: it then reads the keys once, not H/G times."""
    q_BGRK = q_BH1K.reshape(*k_BGSK.shape[:2], -1, k_BGSK.shape[3])
    return F.scaled_dot_product_attention(q_BGRK, k_BGSK, v_BGSK, attn_mask=mask).reshape(q_BH1K.shape)
