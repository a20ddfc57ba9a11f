"""Queries and keys rotated by the tables of an encoder, as one differentiable operation.

It is bound by memory traffic, so on a CPU it works through blocks that fit the cache, where other precisions are rotated in fp32 and rounded
once; and it keeps no queries or keys for the backward pass: the gradient of a rotation is the inverse rotation.

Apart from encoder.py because it needs torch, which checking a plan does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 2**20  # elements at once on a CPU: 2**17 to 2**21 tried, see docs/lab-book.md


def apply_rotary(x_BHTK: Tensor, cos_BTJ: Tensor, sin_BTJ: Tensor) -> Tensor:
    """Rotate component pairs (j, j + K/2) of queries or keys [B, H, T, K] by the fp32 tables [B, T, K/2], in fp32.

    The result has the dtype and layout of x. Cosines may be widened (`Rotation.widened`).
    """
    if torch.is_grad_enabled() and x_BHTK.requires_grad:
        return ApplyRotary.apply(x_BHTK, cos_BTJ, sin_BTJ)
    return rotate_blocks(x_BHTK, cos_BTJ, sin_BTJ)


class ApplyRotary(torch.autograd.Function):
    """`rotate_blocks`, and in the backward pass its inverse; only the tables are kept."""

    @staticmethod
    def forward(context: Any, x_BHTK: Tensor, cos_BTJ: Tensor, sin_BTJ: Tensor) -> Tensor:
        context.save_for_backward(cos_BTJ, sin_BTJ)
        return rotate_blocks(x_BHTK, cos_BTJ, sin_BTJ)

    @staticmethod
    def backward(context: Any, gradient_BHTK: Tensor) -> tuple[Tensor, None, None]:
        return rotate_blocks(gradient_BHTK, *context.saved_tensors, inverse=True), None, None


def rotate_blocks(x_BHTK: Tensor, cos_BTJ: Tensor, sin_BTJ: Tensor, inverse: bool = False) -> Tensor:
    """`apply_rotary` without gradients, on a CPU block by block."""
    cos_B1TJ, sin_B1TJ = cos_BTJ.unsqueeze(1), sin_BTJ.unsqueeze(1)
    tokens = at_once = x_BHTK.shape[2]
    if x_BHTK.is_cpu and not torch.compiler.is_compiling():  # which fuses it anyway
        at_once = max(1, BLOCK * tokens // max(1, x_BHTK.numel()))
    if at_once >= tokens:
        rotated = rotate_pairs(x_BHTK.float(), cos_B1TJ, sin_B1TJ, inverse)
        # Compiled by torch 2.11, an operation that ends with a conversion to the dtype it has gets no gradient.
        return rotated if rotated.dtype == x_BHTK.dtype else rotated.to(x_BHTK.dtype)
    out_BHTK = torch.empty_like(x_BHTK)
    for x, out, cos, sin in zip(*(table.split(at_once, dim=2) for table in (x_BHTK, out_BHTK, cos_B1TJ, sin_B1TJ)), strict=True):
        if x.dtype == torch.float32:
            rotate_pairs(x, cos, sin, inverse, out)
        else:
            out.copy_(rotate_pairs(x.float(), cos, sin, inverse))
    return out_BHTK


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool, out: Tensor | None = None) -> Tensor:
    """The rotated pairs of fp32 ``x``, written to ``out`` where it is given."""
    if cos.shape[-1] < x.shape[-1]:
        cos = torch.cat((cos, cos), dim=-1)
    rotated = torch.mul(x, cos, out=out)
    first, second = x.chunk(2, -1)
    rotated_first, rotated_second = rotated.chunk(2, -1)
    rotated_first.addcmul_(second, sin, value=1 if inverse else -1)
    rotated_second.addcmul_(first, sin, value=-1 if inverse else 1)
    return rotated
