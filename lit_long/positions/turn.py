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
    """``turned`` forth in the forward pass and back in the backward pass; of both only the tables are kept."""

    @staticmethod
    def forward(context: Any, x_BHTK: Tensor, cos_BTJ: Tensor, sin_BTJ: Tensor) -> Tensor:
        context.save_for_backward(cos_BTJ, sin_BTJ)
        return turned(x_BHTK, cos_BTJ, sin_BTJ)

    @staticmethod
    def backward(context: Any, gradient_BHTK: Tensor) -> tuple[Tensor, None, None]:
        return turned(gradient_BHTK, *context.saved_tensors, back=True), None, None


def turned(x_BHTK: Tensor, cos_BTJ: Tensor, sin_BTJ: Tensor, back: bool = False) -> Tensor:
    """Pairs (j, j + K/2) of x [B, H, T, K] turned by fp32 tables [B, T, K/2], in fp32; the result has the dtype and layout of x."""
    cos_B1TJ, sin_B1TJ = cos_BTJ.unsqueeze(1), sin_BTJ.unsqueeze(1)
    tokens = at_once = x_BHTK.shape[2]
    if x_BHTK.is_cpu and not torch.compiler.is_compiling():  # which fuses it anyway
        at_once = max(1, BLOCK * tokens // max(1, x_BHTK.numel()))
    if at_once >= tokens:
        return turn(x_BHTK.float(), cos_B1TJ, sin_B1TJ, back).to(x_BHTK.dtype)
    out_BHTK = torch.empty_like(x_BHTK)
    for x, out, cos, sin in zip(*(table.split(at_once, dim=2) for table in (x_BHTK, out_BHTK, cos_B1TJ, sin_B1TJ)), strict=True):
        if x.dtype == torch.float32:
            turn(x, cos, sin, back, out)
        else:
            out.copy_(turn(x.float(), cos, sin, back))
    return out_BHTK


def turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool, out: Tensor | None = None) -> Tensor:
    """The turned pairs of fp32 ``x``, written to ``out`` where it is given."""
    if cos.shape[-1] < x.shape[-1]:
        cos = torch.cat((cos, cos), dim=-1)
    turned_x = torch.mul(x, cos, out=out)
    first, second = x.chunk(2, -1)
    turned_first, turned_second = turned_x.chunk(2, -1)
    turned_first.addcmul_(second, sin, value=1 if back else -1)
    turned_second.addcmul_(first, sin, value=-1 if back else 1)
    return turned_x
