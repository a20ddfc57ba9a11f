"""The turning of component pairs as one differentiable operation. It is bound by memory traffic, so on a CPU it works through blocks that
fit the cache, where other precisions are turned in fp32 and rounded once; and it keeps no queries or keys for the backward pass: the
gradient of a turn is the turn back.

Apart from encoder.py because it needs torch, which checking a plan does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 2**20  # elements at once on a CPU: 2**17 to 2**21 tried, see docs/lab-book.md


class Turn(torch.autograd.Function):
    """Pairs (j, j + K/2) of x [B, H, T, K] turned by fp32 tables [B, T, K/2], in fp32; the result has the dtype and layout of x."""

    @staticmethod
    def forward(context: Any, x_BHTK: Tensor, cos_BTJ: Tensor, sin_BTJ: Tensor) -> Tensor:
        context.save_for_backward(cos_BTJ, sin_BTJ)
        return turned(x_BHTK, cos_BTJ[:, None], sin_BTJ[:, None])

    @staticmethod
    def backward(context: Any, gradient_BHTK: Tensor) -> tuple[Tensor, None, None]:
        cos_BTJ, sin_BTJ = context.saved_tensors
        return turned(gradient_BHTK, cos_BTJ[:, None], -sin_BTJ[:, None]), None, None


def turned(x_BHTK: Tensor, cos_B1TJ: Tensor, sin_B1TJ: Tensor) -> Tensor:
    out_BHTK = torch.empty_like(x_BHTK)
    tokens = at_once = x_BHTK.shape[2]
    if x_BHTK.device.type == "cpu":
        at_once = max(1, min(tokens, BLOCK * tokens // max(1, x_BHTK.numel())))
    exact = x_BHTK.dtype == torch.float32
    rooms = [] if exact else [torch.empty_like(x_BHTK[:, :, :at_once], dtype=torch.float32) for _ in range(2)]
    for start in range(0, tokens, at_once):
        x, out, cos, sin = (table[:, :, start : start + at_once] for table in (x_BHTK, out_BHTK, cos_B1TJ, sin_B1TJ))
        if exact:
            turn(x, cos, sin, out)
        else:
            x_32, out_32 = (room[:, :, : x.shape[2]] for room in rooms)
            turn(x_32.copy_(x), cos, sin, out_32)
            out.copy_(out_32)
    return out_BHTK


def turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Write the turned pairs of fp32 ``x`` to ``out``."""
    pairs, turned_pairs = x.unflatten(-1, (2, -1)), out.unflatten(-1, (2, -1))
    torch.mul(pairs, cos[..., None, :], out=turned_pairs)
    turned_pairs[..., 0, :].addcmul_(pairs[..., 1, :], sin, value=-1)
    turned_pairs[..., 1, :].addcmul_(pairs[..., 0, :], sin)
