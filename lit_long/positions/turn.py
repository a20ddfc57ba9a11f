"""The turning of component pairs as one differentiable operation. It is bound by memory traffic, so it writes each half of the result
once, and keeps no queries or keys for the backward pass: the gradient of a turn is the turn back.

Apart from encoder.py because it needs torch, which checking a plan does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    exact = x.float()
    out = torch.empty_like(exact)
    (first, second), (out_first, out_second) = exact.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first)
    out_first.addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_second)
    out_second.addcmul_(first, sin)
    return out.to(x.dtype)
