"""Perplexity on full held-out sequences, and the loss by position inside them.

Every number is a sum of nats over a count of tokens, divided once. Every length sees the same tokens: the longest windows, cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lit_long.batch import NO_LOSS, Batch
from lit_long.evaluation.measurement import BY_POSITION, PERPLEXITY, Measurement
from lit_long.model.llama import Llama


def position_edges(length: int) -> list[int]:
    """Upper edges of the position bins: 16, 24, 32, 48, 64, 96, … up to ``length``."""
    edges = sorted({factor * 2**power // 2 for power in range(4, 31) for factor in (2, 3)})
    return [edge for edge in edges if edge < length] + [length]


def token_losses(model: Llama, batch: Batch, rows: int, advance: Callable[[int], None]) -> tuple[Tensor, Tensor]:
    """Per-token nats [B, T] and greedy hits [B, T], ``rows`` sequences at a time; ``advance`` hears of tokens done."""
    results = []
    for start in range(0, len(batch.tokens), rows):
        piece = batch.rows(start, start + rows)
        results.append(model(piece, per_token=True))
        advance(piece.tokens.numel())
    nats, hits = zip(*results, strict=True)
    return torch.cat(nats), torch.cat(hits)


def perplexity(nats_BT: Tensor, batch: Batch, domain: str) -> Measurement:
    """exp(mean nats per token) over the whole batch."""
    length, tokens = batch.tokens.shape[1], int(batch.loss_tokens())
    mean = float(nats_BT.double().sum()) / tokens
    return Measurement(PERPLEXITY, domain, length, math.exp(mean), tokens=tokens, settings={"nats": mean})


def loss_by_position(nats_BT: Tensor, batch: Batch, domain: str) -> list[Measurement]:
    """Mean nats per token in each position bin; ``length`` is the bin's upper edge."""
    rows, start = [], 0
    for edge in position_edges(batch.tokens.shape[1]):
        tokens = int((batch.targets[:, start:edge] != NO_LOSS).sum())
        if tokens:  # of instruction data only answers are predicted
            value = float(nats_BT[:, start:edge].double().sum()) / tokens
            rows.append(Measurement(BY_POSITION, domain, edge, value, tokens=tokens))
        start = edge
    return rows
