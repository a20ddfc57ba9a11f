"""Causal attention within documents on a CPU: torch's flash kernel, for short ones short.py's, within a window local.py's, document by document, as
one operation.

One operation, because torch.compile then has nothing to unroll (batches differ in their documents, and each would be compiled anew),
and because each document's output is written where it belongs, without slices and concatenations for backward to undo.

Shapes as in attention.py.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from lit_long.model import local, short

forward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
backward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def document_runs(cu_seqlens: Tensor) -> list[tuple[int, int]]:
    """Documents as (how many in succession, tokens of each); they sum to B·T tokens."""
    lengths = cu_seqlens.diff().tolist()
    return [(len(list(group)), length) for length, group in itertools.groupby(lengths)]


def pieces(x_BHTK: Tensor, cu_seqlens: Tensor) -> list[Tensor]:
    """Views [documents, H, tokens, K], each of successive documents of one length."""
    runs = document_runs(cu_seqlens)
    split = x_BHTK.transpose(0, 1).flatten(1, 2).split([count * length for count, length in runs], dim=1)
    return [piece.unflatten(1, run).transpose(0, 1) for piece, run in zip(split, runs, strict=True)]


@torch.library.custom_op("lit_long::attend_documents", mutates_args=(), device_types="cpu")
def attend_documents(
    q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, cu_seqlens: Tensor, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs [B, H, T, K], laid out by tokens, and the logarithms of the softmax's sums [H, B·T], which backward needs of
    long documents. ``window``: tokens that a query sees, its own included; None: all before it."""
    out_BHTK, sums_HN = empty(q_BHTK)
    done = 0
    for q, k, v, out in zip(*(pieces(x, cu_seqlens) for x in (q_BHTK, k_BGTK, v_BGTK, out_BHTK)), strict=True):
        tokens = q.shape[0] * q.shape[2]
        if hides(window, q):
            found, sums = local.forward(q, k, v, window)
            out.copy_(found)
            sums_HN[:, done : done + tokens] = sums.transpose(0, 1).flatten(1)
        elif short.pays(q):
            out.copy_(short.forward(q, k, v))
        else:
            found, sums = forward_kernel(q, shared(k, q), shared(v, q), 0.0, True)
            out.copy_(found)
            sums_HN[:, done : done + tokens] = sums.transpose(0, 1).flatten(1)
        done += tokens
    return out_BHTK, sums_HN


@attend_documents.register_fake
def _(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, cu_seqlens: Tensor, window: int | None = None) -> tuple[Tensor, Tensor]:
    return empty(q_BHTK)


@torch.library.custom_op("lit_long::attend_documents_backward", mutates_args=(), device_types="cpu")
def attend_documents_backward(
    gradient_BHTK: Tensor,
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTK: Tensor,
    out_BHTK: Tensor,
    sums_HN: Tensor,
    cu_seqlens: Tensor,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    gradients = [empty(x)[0] for x in (q_BHTK, k_BGTK, v_BGTK)]
    inputs = zip(*(pieces(x, cu_seqlens) for x in (gradient_BHTK, q_BHTK, k_BGTK, v_BGTK, out_BHTK, *gradients)), strict=True)
    done = 0
    for gradient, q, k, v, out, *into in inputs:
        tokens = q.shape[0] * q.shape[2]
        sums = sums_HN[:, done : done + tokens].unflatten(1, (q.shape[0], q.shape[2])).transpose(0, 1)
        if hides(window, q):
            found = local.backward(gradient, q, k, v, out, sums, window)
        elif short.pays(q):
            found = short.backward(gradient, q, k, v)
        else:
            found = backward_kernel(gradient, q, shared(k, q), shared(v, q), out, sums, 0.0, True)
            found = found[0], *(gathered(x, k.shape[1]) for x in found[1:])
        for target, gradient in zip(into, found, strict=True):
            target.copy_(gradient)
        done += tokens
    return tuple(gradients)


@attend_documents_backward.register_fake
def _(
    gradient_BHTK: Tensor,
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTK: Tensor,
    out_BHTK: Tensor,
    sums_HN: Tensor,
    cu_seqlens: Tensor,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return empty(q_BHTK)[0], empty(k_BGTK)[0], empty(v_BGTK)[0]


def keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, cu_seqlens, ctx.window = inputs
    ctx.save_for_backward(*tensors, *output, cu_seqlens)


def back(ctx: Any, gradient_BHTK: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    return *attend_documents_backward(gradient_BHTK, *ctx.saved_tensors, ctx.window), None, None


attend_documents.register_autograd(back, setup_context=keep)


def hides(window: int | None, x_MHLK: Tensor) -> bool:
    """Whether some of the tokens cannot see all before them."""
    return window is not None and window < x_MHLK.shape[2]


def empty(x_BHTK: Tensor) -> tuple[Tensor, Tensor]:
    """Room for outputs or gradients of x, laid out by tokens as the projections are, and for one number per head and token."""
    B, H, T, K = x_BHTK.shape
    return x_BHTK.new_empty(B, T, H, K).transpose(1, 2), x_BHTK.new_zeros(H, B * T, dtype=torch.float32)


def shared(x_BGTK: Tensor, q_BHTK: Tensor) -> Tensor:
    """Keys or values [B, H, T, K], each head's own view of those that it shares."""
    each = q_BHTK.shape[1] // x_BGTK.shape[1]
    return x_BGTK if each == 1 else x_BGTK.repeat_interleave(each, dim=1)


def gathered(gradient_BHTK: Tensor, heads: int) -> Tensor:
    """Gradients of keys or values [B, G, T, K], summed in fp32 over the heads that shared them."""
    return gradient_BHTK if gradient_BHTK.shape[1] == heads else gradient_BHTK.unflatten(1, (heads, -1)).float().sum(2)
