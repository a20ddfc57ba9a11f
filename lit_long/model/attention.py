"""Attention behind one function. Which kernel runs is decided here and nowhere else.

Shapes: B sequences, H query heads, G key-value heads, T tokens, K components a head.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_long.model.batch import Batch

Runs = list[tuple[int, int]]


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


def attention(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, runs: Runs | None) -> Tensor:
    """Scaled dot-product attention, causal, and within documents when there are ``runs``: [B, H, T, K].

    Heads share keys when G < H. Documents of one length in succession go through the kernel together.
    """
    if runs is None:
        return causal(q_BHTK, k_BGTK, v_BGTK)
    sizes = [count * length for count, length in runs]
    # One split and one concatenation, because backward of a slice writes a whole tensor of zeros around it.
    pieces = zip(*(tensor.transpose(0, 1).flatten(1, 2).split(sizes, dim=1) for tensor in (q_BHTK, k_BGTK, v_BGTK)), strict=True)
    outputs = [
        causal(*(tensor.unflatten(1, (count, length)).transpose(0, 1) for tensor in piece)).transpose(0, 1).flatten(1, 2)
        for (count, length), piece in zip(runs, pieces, strict=True)
    ]
    return torch.cat(outputs, dim=1).unflatten(1, (q_BHTK.shape[0], q_BHTK.shape[2])).transpose(0, 1)


def causal(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    grouped = q_BHTK.shape[1] != k_BGTK.shape[1]
    return F.scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, is_causal=True, enable_gqa=grouped)
