"""Causal attention within a window on a CPU: torch's flash kernel, for a block of queries at a time and the keys that they can see.

A block of C queries meets W + C − 1 keys, of which a mask hides two triangles. The smaller the block, the less is computed for nothing, and the more often the
kernel is called. Heads that share keys go through it as more queries of one head.

Shapes: M sequences, H query heads, G key-value heads, R = H / G, L queries, which are the last of S keys' tokens, K components a head; W tokens
a query sees, its own included.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 128  # queries

forward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
backward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def forward(q_MHLK: Tensor, k_MGSK: Tensor, v_MGSK: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Outputs [M, H, L, K], and the logarithms of the softmax's sums [M, H, L] in fp32."""
    out_MHLK, sums_MHL = torch.empty_like(q_MHLK), q_MHLK.new_empty(q_MHLK.shape[:3], dtype=torch.float32)
    for queries, keys, mask in blocks(q_MHLK, k_MGSK, window):
        q = together(q_MHLK[:, :, queries], k_MGSK)
        found, sums = forward_kernel(q, k_MGSK[:, :, keys], v_MGSK[:, :, keys], 0.0, False, attn_mask=mask)
        out_MHLK[:, :, queries], sums_MHL[:, :, queries] = apart(found, q_MHLK), apart(sums, q_MHLK)
    return out_MHLK, sums_MHL


def backward(
    gradient_MHLK: Tensor, q_MHLK: Tensor, k_MGSK: Tensor, v_MGSK: Tensor, out_MHLK: Tensor, sums_MHL: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, and of k and v in fp32, from that of the outputs. Computed in fp32: in bf16 the kernel takes twice as long for such blocks."""
    q_gradient = torch.empty_like(q_MHLK)
    gradient_MHLK, q_MHLK, k_MGSK, v_MGSK, out_MHLK = (x.float() for x in (gradient_MHLK, q_MHLK, k_MGSK, v_MGSK, out_MHLK))
    k_gradient, v_gradient = (torch.zeros_like(x) for x in (k_MGSK, v_MGSK))
    for queries, keys, mask in blocks(q_MHLK, k_MGSK, window):
        gradient, q, out, sums = (together(x[:, :, queries], k_MGSK) for x in (gradient_MHLK, q_MHLK, out_MHLK, sums_MHL))
        k, v = k_MGSK[:, :, keys], v_MGSK[:, :, keys]
        q_found, k_found, v_found = backward_kernel(gradient, q, k, v, out, sums, 0.0, False, attn_mask=mask)
        q_gradient[:, :, queries] = apart(q_found, q_MHLK)
        k_gradient[:, :, keys] += k_found
        v_gradient[:, :, keys] += v_found
    return q_gradient, k_gradient, v_gradient


def blocks(q_MHLK: Tensor, k_MGSK: Tensor, window: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Which queries, which keys, and the mask that is added to their scores, [R · queries, keys]."""
    repeats, length, seen = q_MHLK.shape[1] // k_MGSK.shape[1], q_MHLK.shape[2], k_MGSK.shape[2]
    masks: dict[tuple[int, int], Tensor] = {}
    for start in range(0, length, BLOCK):
        stop = min(length, start + BLOCK)
        last = seen - length + stop  # of the keys, after the last query's own
        first = max(0, last - (stop - start) - window + 1)
        shape = stop - start, last - first
        if shape not in masks:
            hidden = ~window_mask(*shape, window, q_MHLK.device)
            masks[shape] = torch.zeros(shape, dtype=q_MHLK.dtype).masked_fill_(hidden, -torch.inf).repeat(repeats, 1)
        yield slice(start, stop), slice(first, last), masks[shape]


def window_mask(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """What the last ``queries`` of ``keys`` tokens see, bool [queries, keys]: the diagonal ends in the lower right corner."""
    ones = torch.ones(queries, keys, dtype=torch.bool, device=device)
    return ones.tril(keys - queries).triu(keys - queries - window + 1)


def together(x_MHL: Tensor, k_MGSK: Tensor) -> Tensor:
    """[M, H, L, …] → [M, G, R · L, …]."""
    return x_MHL if x_MHL.shape[1] == k_MGSK.shape[1] else x_MHL.unflatten(1, (k_MGSK.shape[1], -1)).flatten(2, 3)


def apart(x_MGN: Tensor, q_MHLK: Tensor) -> Tensor:
    """[M, G, R · L, …] → [M, H, L, …]."""
    each = q_MHLK.shape[1] // x_MGN.shape[1]
    return x_MGN if each == 1 else x_MGN.unflatten(2, (each, -1)).flatten(1, 2)
