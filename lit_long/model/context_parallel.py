"""Attention when C ranks share every sequence (context parallelism): a rank's queries are a part of a sequence, the keys are all of it.

A sequence of S tokens is cut into 2C chunks of c = S / 2C. Rank r holds two of them: the r-th from the front, whose queries see little, and the r-th from
the end, whose queries see much. Without document boundaries every rank then computes the same number of scores,

    r·c² + c(c+1)/2  +  (2C−1−r)·c² + c(c+1)/2  =  (2C−1)·c² + c(c+1).

Document boundaries take some of these scores away, not from all ranks alike (`scores` counts them): none computes more, and all wait for the one that computes
most.

Within a window they see fewer of them: the keys before a segment that none of its queries sees are left out of its table, and not of what is gathered.

What a rank's queries see is a table of segments. A segment is the part of a document that lies in one of the chunks: its queries see all of the document's keys
before them, and their own causally. Only the first segment of a chunk has keys before its own chunk.

Shapes as in attention.py, with T = S / C tokens of each sequence here; N segments, M keys that they see, one after the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_long.model import flash, local, short
from lit_long.model.documents import backward_kernel, empty, forward_kernel, gathered, hides, keep, shared

PACKED = ("flash", "varlen")  # kernels that take the keys of all segments one after the other


class ContextShard(NamedTuple):
    """This rank's queries and the keys that they see.

    table         int64 [N, 5]: the row, its first query (of T) and first key (of S), the number of keys before the queries' own, and of queries
    cu_seqlens_q  int32 [N + 1]: where the queries of each segment begin in the B·T, and B·T   (these three for `PACKED` kernels only)
    cu_seqlens_k  int32 [N + 1]: where the keys of each segment begin in the M, and M
    keys          int64 [M]: the keys of each segment, of the B·S
    """

    table: Tensor
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    keys: Tensor | None = None


def own_chunks(rank: int, ranks: int) -> tuple[int, int]:
    """The two of a sequence's 2C chunks that a rank holds."""
    return rank, 2 * ranks - 1 - rank


def own_tokens(rank: int, ranks: int, length: int) -> Tensor:
    """Which tokens of a sequence a rank holds, in its order: int64 [length / ranks]."""
    chunk = length // (2 * ranks)
    return torch.cat([torch.arange(first * chunk, (first + 1) * chunk) for first in own_chunks(rank, ranks)])


def natural_order(ranks: int) -> list[int]:
    """Where each of the 2C chunks stands when the ranks' parts are put one after the other."""
    return [2 * chunk if chunk < ranks else 2 * (2 * ranks - 1 - chunk) + 1 for chunk in range(2 * ranks)]


def context_shard(starts_BS: Tensor, rank: int, ranks: int, packed: bool, window: int | None = None) -> ContextShard:
    """The segments of a rank, row after row, from the tokens (bool) that begin a document; every row's first does.

    Args:
        packed: whether the kernel is one of `PACKED`.
        window: tokens that a query sees, its own included; None: all before it.
    """
    B, S = starts_BS.shape
    own_T = own_tokens(rank, ranks, S).to(starts_BS.device)
    T = len(own_T)
    first_BS = torch.where(starts_BS, torch.arange(S, device=own_T.device), 0).cummax(1).values
    begins_BT = starts_BS[:, own_T]
    begins_BT[:, :: T // 2] = True
    at_N = begins_BT.flatten().nonzero()[:, 0]
    tokens_N = torch.diff(at_N, append=at_N.new_tensor([B * T]))
    row_N, query_N = at_N // T, at_N % T
    key_N = first_BS[:, own_T].flatten()[at_N]
    earlier_N = own_T[query_N] - key_N
    if window is not None:
        key_N = key_N + (earlier_N - window + 1).clamp(min=0)
        earlier_N = earlier_N.clamp(max=window - 1)
    table_N5 = torch.stack((row_N, query_N, key_N, earlier_N, tokens_N), dim=1)
    if not packed:
        return ContextShard(table_N5)
    cu_seqlens_q = F.pad(at_N, (0, 1), value=B * T)
    cu_seqlens_k = F.pad((earlier_N + tokens_N).cumsum(0), (1, 0))
    shift_M = torch.repeat_interleave(row_N * S + key_N - cu_seqlens_k[:-1], earlier_N + tokens_N)
    keys_M = torch.arange(len(shift_M), device=shift_M.device) + shift_M
    return ContextShard(table_N5, cu_seqlens_q.to(torch.int32), cu_seqlens_k.to(torch.int32), keys_M)


def scores(shard: ContextShard) -> int:
    """Scores that a rank computes in one head: pairs of a query and a key that it sees, without a window."""
    *_, earlier_N, tokens_N = shard.table.unbind(1)
    return int((earlier_N * tokens_N + tokens_N * (tokens_N + 1) // 2).sum())


def attend_shard(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, shard: ContextShard, kernel: str, window: int | None = None
) -> Tensor:
    """Causal attention within documents, and a window if there is one, of this rank's queries to the whole sequences' keys: [B, H, T, K]."""
    if kernel in PACKED:
        B, _, T, _ = q_BHTK.shape
        k_MGK, v_MGK = (flash.rowless(x).index_select(0, shard.keys) for x in (k_BGSK, v_BGSK))
        longest = T // 2, k_BGSK.shape[2]
        out = flash.packed(kernel, flash.rowless(q_BHTK), k_MGK, v_MGK, (shard.cu_seqlens_q, shard.cu_seqlens_k), longest, window)
        return out.unflatten(0, (B, T)).transpose(1, 2)
    if q_BHTK.is_cpu:
        return attend_segments(q_BHTK, k_BGSK, v_BGSK, shard.table, window)[0]
    return segment_by_segment(q_BHTK, k_BGSK, v_BGSK, shard, window)


def segment_by_segment(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, shard: ContextShard, window: int | None = None) -> Tensor:
    """Where no kernel knows segments (fp32 on a GPU): one after the other, by SDPA with a diagonal that ends in the lower right corner."""
    # It imports torch._dynamo: a second, which stages on one device need not wait for.
    from torch.nn.attention.bias import causal_lower_right

    outputs = []
    for row, query, key, earlier, tokens in shard.table.tolist():
        q = q_BHTK[row : row + 1, :, query : query + tokens]
        k, v = (shared(x[row : row + 1, :, key : key + earlier + tokens], q) for x in (k_BGSK, v_BGSK))
        bias = causal_lower_right(tokens, earlier + tokens)
        if hides(window, k):
            bias = local.window_mask(tokens, earlier + tokens, window, q.device)
        outputs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)[0].transpose(0, 1))
    return torch.cat(outputs).unflatten(0, (q_BHTK.shape[0], q_BHTK.shape[2])).transpose(1, 2)


@torch.library.custom_op("lit_long::attend_segments", mutates_args=(), device_types="cpu")
def attend_segments(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, table_N5: Tensor, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """The same on a CPU as one operation (documents.py says why one): outputs [B, H, T, K], and the logarithms of the softmax's sums [H, B·T].

    No mask is made: torch's flash kernel computes a segment's own keys causally and those before them in full, and the two are joined by their sums.
    """
    out_BHTK, sums_HN = empty(q_BHTK)
    sums_BHT = by_rows(sums_HN, q_BHTK)
    for row, query, key, earlier, tokens in table_N5.tolist():
        at = (slice(row, row + 1), slice(None), slice(query, query + tokens))
        own, before, seen = key_places(row, key, earlier, tokens)
        q, k, v = q_BHTK[at], k_BGSK[own], v_BGSK[own]
        if hides(window, k_BGSK[seen]):
            out_BHTK[at], sums_BHT[at] = local.forward(q, k_BGSK[seen], v_BGSK[seen], window)
            continue
        if not earlier and short.pays(q):
            out_BHTK[at] = short.forward(q, k, v)
            continue
        found, sums = forward_kernel(q, shared(k, q), shared(v, q), 0.0, True)
        if earlier:
            found, sums = joined(found, sums, *full(q, k_BGSK[before], v_BGSK[before]))
        out_BHTK[at], sums_BHT[at] = found, sums
    return out_BHTK, sums_HN


@attend_segments.register_fake
def _(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, table_N5: Tensor, window: int | None = None) -> tuple[Tensor, Tensor]:
    return empty(q_BHTK)


@torch.library.custom_op("lit_long::attend_segments_backward", mutates_args=(), device_types="cpu")
def attend_segments_backward(
    gradient_BHTK: Tensor,
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    out_BHTK: Tensor,
    sums_HN: Tensor,
    table_N5: Tensor,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; those of k and v are summed over segments in fp32."""
    q_gradient, sums_BHT, heads = empty(q_BHTK)[0], by_rows(sums_HN, q_BHTK), k_BGSK.shape[1]
    k_gradient, v_gradient = (empty(x)[0].zero_().float() for x in (k_BGSK, v_BGSK))
    for row, query, key, earlier, tokens in table_N5.tolist():
        at = (slice(row, row + 1), slice(None), slice(query, query + tokens))
        own, before, seen = key_places(row, key, earlier, tokens)
        gradient, q, k, v, out, sums = gradient_BHTK[at], q_BHTK[at], k_BGSK[own], v_BGSK[own], out_BHTK[at], sums_BHT[at]
        if hides(window, k_BGSK[seen]):
            found = local.backward(gradient, q, k_BGSK[seen], v_BGSK[seen], out, sums, window)
            q_gradient[at], k_found, v_found = found
            k_gradient[seen] += k_found
            v_gradient[seen] += v_found
            continue
        if not earlier and short.pays(q):
            q_found, k_found, v_found = short.backward(gradient, q, k, v)
        else:
            q_found, *others = backward_kernel(gradient, q, shared(k, q), shared(v, q), out, sums, 0.0, True)
            k_found, v_found = (gathered(x, heads) for x in others)
        k_gradient[own] += k_found
        v_gradient[own] += v_found
        if earlier:
            together = (by_shared_keys(x, heads) for x in (gradient, q, out, sums))
            gradient_G, q_G, out_G, sums_G = together
            more, k_found, v_found = backward_kernel(gradient_G, q_G, k_BGSK[before], v_BGSK[before], out_G, sums_G, 0.0, False)
            q_found = q_found.float() + more.reshape(q.shape)
            k_gradient[before] += k_found
            v_gradient[before] += v_found
        q_gradient[at] = q_found
    return q_gradient, k_gradient.to(k_BGSK.dtype), v_gradient.to(v_BGSK.dtype)


@attend_segments_backward.register_fake
def _(
    gradient_BHTK: Tensor,
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    out_BHTK: Tensor,
    sums_HN: Tensor,
    table_N5: Tensor,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return empty(q_BHTK)[0], empty(k_BGSK)[0], empty(v_BGSK)[0]


def back(ctx: Any, gradient_BHTK: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    return *attend_segments_backward(gradient_BHTK, *ctx.saved_tensors, ctx.window), None, None


attend_segments.register_autograd(back, setup_context=keep)


def key_places(row: int, key: int, earlier: int, tokens: int) -> list[tuple[slice, ...]]:
    """Where in [B, G, S, K] a segment's own keys are, those before them, and both."""
    own = key + earlier
    return [(slice(row, row + 1), slice(None), slice(*part)) for part in ((own, own + tokens), (key, own), (key, own + tokens))]


def by_rows(sums_HN: Tensor, q_BHTK: Tensor) -> Tensor:
    """A view [B, H, T] of numbers [H, B·T]."""
    return sums_HN.unflatten(1, (q_BHTK.shape[0], q_BHTK.shape[2])).transpose(0, 1)


def by_shared_keys(x_1HT: Tensor, heads: int) -> Tensor:
    """[1, H, T, …] → [1, G, H/G·T, …]: where all keys are seen, heads that share them are more queries of one."""
    return x_1HT.unflatten(1, (heads, -1)).flatten(2, 3)


def full(q_1HTK: Tensor, k_1GEK: Tensor, v_1GEK: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to all of the keys, without a mask: outputs [1, H, T, K], and the logarithms of the softmax's sums [1, H, T]."""
    found, sums = forward_kernel(by_shared_keys(q_1HTK, k_1GEK.shape[1]), k_1GEK, v_1GEK, 0.0, False)
    return found.reshape(q_1HTK.shape), sums.reshape(q_1HTK.shape[:3])


def joined(one: Tensor, one_sums: Tensor, other: Tensor, other_sums: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to two sets of keys from attention to each of them."""
    sums = torch.logaddexp(one_sums, other_sums)
    share, rest = (torch.exp(part - sums)[..., None] for part in (one_sums, other_sums))
    return one * share + other * rest, sums
