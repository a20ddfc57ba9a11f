"""Causal attention of short sequences in half precision on a CPU, by matrix products over blocks of queries.

torch's flash kernel for CPUs looks at keys 512 at a time, so up to there it computes the whole square for causal attention's half, and it computes in fp32 what may be in
half precision. Here each block of queries meets only the keys up to its own end. Scores, softmax and their gradients are in fp32; products with
probabilities and with score gradients are in the precision of the inputs, as in flash kernels. Backward computes the probabilities again.

Shapes: M sequences, H query heads, G key-value heads, R = H / G, L tokens, K components a head; N = M · G; S keys up to the block's end.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

LONGEST = 512  # tokens; beyond, and in fp32, torch's kernel is as fast (docs/lab-book.md)
BLOCK = 64  # queries
ELEMENTS = 2**19  # of scores at once, so that they stay in the cache


def pays(q_MHLK: Tensor) -> bool:
    """Whether this is the faster way."""
    return q_MHLK.is_cpu and q_MHLK.shape[2] <= LONGEST and q_MHLK.dtype != torch.float32


def forward(q_MHLK: Tensor, k_MGLK: Tensor, v_MGLK: Tensor) -> Tensor:
    """Outputs [M, H, L, K]."""
    q_NRLK, k_NLK, v_NLK = merged(q_MHLK, k_MGLK, v_MGLK)
    scaled_NRLK, wide_NLK = q_NRLK.float() * q_NRLK.shape[3] ** -0.5, k_NLK.float()
    out_NRLK = torch.empty_like(q_NRLK)
    for own, start, stop in blocks(q_NRLK):
        shares_NQS = probabilities(queries(scaled_NRLK, own, start, stop), wide_NLK[own, :stop], start, q_NRLK.shape[1])
        put(out_NRLK, own, start, stop, torch.bmm(shares_NQS.to(v_NLK.dtype), v_NLK[own, :stop]))
    return out_NRLK.view(q_MHLK.shape)


def backward(gradient_MHLK: Tensor, q_MHLK: Tensor, k_MGLK: Tensor, v_MGLK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from that of the outputs."""
    q_NRLK, k_NLK, v_NLK = merged(q_MHLK, k_MGLK, v_MGLK)
    dtype, scale, repeats = q_NRLK.dtype, q_NRLK.shape[3] ** -0.5, q_NRLK.shape[1]
    scaled_NRLK = q_NRLK.float() * scale
    half_NRLK, gradient_NRLK = scaled_NRLK.to(dtype), gradient_MHLK.reshape(q_NRLK.shape)
    wide_k_NLK, wide_v_NLK, wide_gradient_NRLK = k_NLK.float(), v_NLK.float(), gradient_NRLK.float()
    q_gradient = torch.empty_like(q_NRLK)
    k_gradient, v_gradient = torch.zeros_like(wide_k_NLK), torch.zeros_like(wide_v_NLK)
    for own, start, stop in blocks(q_NRLK):
        shares_NQS = probabilities(queries(scaled_NRLK, own, start, stop), wide_k_NLK[own, :stop], start, repeats)
        v_gradient[own, :stop] += torch.bmm(shares_NQS.to(dtype).transpose(1, 2), queries(gradient_NRLK, own, start, stop))
        towards_NQS = torch.bmm(queries(wide_gradient_NRLK, own, start, stop), wide_v_NLK[own, :stop].transpose(1, 2))
        scores_NQS = torch._softmax_backward_data(towards_NQS, shares_NQS, -1, torch.float32).to(dtype)
        put(q_gradient, own, start, stop, torch.bmm(scores_NQS, k_NLK[own, :stop]))
        k_gradient[own, :stop] += torch.bmm(scores_NQS.transpose(1, 2), queries(half_NRLK, own, start, stop))
    return q_gradient.mul_(scale).view(q_MHLK.shape), k_gradient.view(k_MGLK.shape), v_gradient.view(v_MGLK.shape)


def merged(q_MHLK: Tensor, k_MGLK: Tensor, v_MGLK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences and key heads as one dimension: q [N, R, L, K], k and v [N, L, K], contiguous."""
    M, G, L, K = k_MGLK.shape
    q_NRLK = q_MHLK.contiguous().view(M * G, q_MHLK.shape[1] // G, L, K)
    return q_NRLK, k_MGLK.reshape(M * G, L, K), v_MGLK.reshape(M * G, L, K)


def blocks(q_NRLK: Tensor) -> Iterator[tuple[slice, int, int]]:
    """Which of N, and which queries: from ``start`` to ``stop``."""
    N, R, L, _ = q_NRLK.shape
    for start in range(0, L, BLOCK):
        stop = min(L, start + BLOCK)
        at_once = max(1, ELEMENTS // (R * (stop - start) * stop))
        for first in range(0, N, at_once):
            yield slice(first, first + at_once), start, stop


def queries(x_NRLK: Tensor, own: slice, start: int, stop: int) -> Tensor:
    """Rows of all heads that share keys, [N, R · queries, K]: they go through one product."""
    return x_NRLK[own, :, start:stop].flatten(1, 2)


def put(out_NRLK: Tensor, own: slice, start: int, stop: int, found_NQK: Tensor) -> None:
    out_NRLK[own, :, start:stop] = found_NQK.unflatten(1, (out_NRLK.shape[1], stop - start))


def probabilities(q_NQK: Tensor, k_NSK: Tensor, start: int, repeats: int) -> Tensor:
    """Softmax of causal scores [N, R · queries, S], of queries from ``start`` on."""
    scores_NQS = torch.bmm(q_NQK, k_NSK.transpose(1, 2))
    later = torch.full((k_NSK.shape[1] - start,) * 2, float("-inf")).triu(1)
    scores_NQS.unflatten(1, (repeats, -1))[..., start:] += later
    return torch.softmax(scores_NQS, dim=-1)
