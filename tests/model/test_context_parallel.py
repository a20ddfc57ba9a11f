"""Attention of a rank's part of every sequence: what it sees against an obvious mask, its values and gradients against a plain softmax."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_long.batch import PADDING
from lit_long.config import UserError
from lit_long.model import flash
from lit_long.model.attention import KERNELS, choose, document_starts, use
from lit_long.model.context_parallel import (
    PACKED,
    attend_segments,
    attend_shard,
    context_shard,
    natural_order,
    own_tokens,
    scores,
    segment_by_segment,
)

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 6))  # ranks, tokens of a chunk


@st.composite
def documents(draw):
    """(ids [B, S], ranks): documents of every length, padding right of the last in some rows."""
    (ranks, chunk), rows = draw(SHAPES), draw(st.integers(1, 3))
    length = 2 * ranks * chunk
    ids = torch.full((rows, length), PADDING)
    for row in range(rows):
        used = draw(st.integers(1, length))
        cuts = draw(st.sets(st.integers(1, length), max_size=5))
        ids[row, :used] = torch.tensor([sum(cut <= place for cut in cuts) for place in range(used)])
    return ids, ranks


def allowed(ids, window=None):
    """Which keys each query sees, [B, S, S]: those before it, of its document, and ``window`` of them at most."""
    same = ids[:, :, None] == ids[:, None, :]
    places = torch.arange(ids.shape[1], device=ids.device)
    back = places[:, None] - places
    return same & (back >= 0) & (back < (window or ids.shape[1]))


def starts_of(ids):
    starts = document_starts(ids, True)
    return torch.arange(ids.shape[1], device=ids.device).expand_as(ids) == 0 if starts is None else starts


@given(SHAPES)
def test_every_token_has_one_rank_and_finds_its_place_again(shape):
    ranks, chunk = shape
    length = 2 * ranks * chunk
    parts = [own_tokens(rank, ranks, length) for rank in range(ranks)]
    assert {len(part) for part in parts} == {2 * chunk}
    assert sorted(torch.cat(parts).tolist()) == list(range(length))
    chunks = torch.cat(parts).unflatten(0, (2 * ranks, chunk))
    assert chunks[natural_order(ranks)].flatten().tolist() == list(range(length))


@given(SHAPES)
def test_without_boundaries_all_ranks_compute_the_same_number_of_scores(shape):
    ranks, c = shape
    whole = torch.zeros(1, 2 * ranks * c, dtype=torch.bool)
    whole[:, 0] = True
    found = {scores(context_shard(whole, rank, ranks, False)) for rank in range(ranks)}
    assert found == {(2 * ranks - 1) * c**2 + c * (c + 1)}


@given(documents())
def test_boundaries_only_take_scores_away(drawn):
    """Each rank has exactly the scores that the mask has for its tokens, and never more than without boundaries."""
    ids, ranks = drawn
    B, S = ids.shape
    c = S // (2 * ranks)
    for rank in range(ranks):
        found = scores(context_shard(starts_of(ids), rank, ranks, False))
        mask = allowed(ids) if document_starts(ids, True) is not None else allowed(torch.zeros_like(ids))
        assert found == mask[:, own_tokens(rank, ranks, S)].sum() <= B * ((2 * ranks - 1) * c**2 + c * (c + 1))


@settings(max_examples=200)
@given(documents(), st.one_of(st.none(), st.integers(1, 30)))
def test_spans_are_what_an_obvious_mask_says(drawn, window):
    """From the table, and from cu_seqlens and keys as a GPU's kernels read them: the lower right corner is the last query's last key."""
    ids, ranks = drawn
    B, S = ids.shape
    truth = allowed(ids if document_starts(ids, True) is not None else torch.zeros_like(ids), window)
    for rank in range(ranks):
        shard, T = context_shard(starts_of(ids), rank, ranks, True, window), S // ranks
        from_table, from_packed = torch.zeros(B, T, S, dtype=torch.int), torch.zeros(B * T, B * S, dtype=torch.int)
        for row, query, key, earlier, tokens in shard.table.tolist():
            for n in range(tokens):
                from_table[row, query + n, key + max(0, earlier + n + 1 - (window or S)) : key + earlier + n + 1] += 1
            assert window is None or earlier < window
        for (start, stop), (first, last) in zip(pairs(shard.cu_seqlens_q), pairs(shard.cu_seqlens_k), strict=True):
            for query in range(start, stop):
                after = last - (stop - 1 - query)
                from_packed[query, shard.keys[max(first, after - (window or S)) : after]] += 1
        expected = truth[:, own_tokens(rank, ranks, S)].int()
        across = from_packed.view(B, T, B, S)
        assert torch.equal(from_table, expected)
        assert torch.equal(torch.stack([across[row, :, row] for row in range(B)]), expected)
        assert from_packed.sum() == expected.sum()  # no row sees another


def pairs(cu_seqlens):
    return list(zip(cu_seqlens.tolist()[:-1], cu_seqlens.tolist()[1:], strict=True))


# ------------------------------------------------------------------------------------------------------- values

IDS = torch.tensor(
    [
        [0] * 48,  # one document
        [0] * 12 + [1] * 12 + [2] * 24,  # boundaries at the cuts of two and of four ranks
        [0] * 5 + [1] * 20 + [2] * 16 + [PADDING] * 7,
        [0] * 30 + [1] + [2] * 17,
    ]
)


def by_hand(q, k, v, mask):
    """Softmax of masked scores, heads sharing keys."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5
    return scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1) @ v


def check(ids, ranks, heads, shared, attend, dtype, limit, packed=False, device="cpu", window=None):
    """Every rank's outputs, and the gradients that all of them give together, against the whole sequence's."""
    (B, S), K, ids = ids.shape, 16, ids.to(device)
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(B, S, h, K, generator=generator) for h in (heads, shared, shared, heads)]
    whole = [x.to(device, dtype).transpose(1, 2) for x in whole]
    exact = [x.double().requires_grad_() for x in whole[:3]]
    expected = by_hand(*exact, allowed(ids, window))
    truth = torch.autograd.grad((expected * whole[3].double()).sum(), exact)
    inputs = [x.detach().requires_grad_() for x in whole[:3]]
    sums = [torch.zeros_like(x) for x in truth]
    for rank in range(ranks):
        own = own_tokens(rank, ranks, S).to(device)
        shard = context_shard(starts_of(ids), rank, ranks, packed, window)
        out = attend(inputs[0][:, :, own], inputs[1], inputs[2], shard)
        assert out.dtype == dtype and (out.double() - expected[:, :, own]).norm() <= limit * expected.norm()
        for total, part in zip(sums, torch.autograd.grad((out * whole[3][:, :, own]).sum(), inputs), strict=True):
            total += part
    for ours, right in zip(sums, truth, strict=True):
        assert (ours - right).norm() <= limit * right.norm()


def on_a_cpu(q, k, v, shard, window=None):
    return attend_shard(q, k, v, shard, "sdpa", window)


@pytest.mark.parametrize("attend", [on_a_cpu, segment_by_segment])
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("ids", [IDS, torch.zeros_like(IDS)], ids=["documents", "whole"])
def test_attention_of_all_parts_is_that_of_the_whole(ids, ranks, heads, shared, attend):
    check(ids, ranks, heads, shared, attend, torch.float32, 2e-6)


@pytest.mark.parametrize("attend", [on_a_cpu, segment_by_segment])
@pytest.mark.parametrize("window", [2, 7, 20, 47])
@pytest.mark.parametrize("ids", [IDS, torch.zeros_like(IDS)], ids=["documents", "whole"])
def test_within_a_window(ids, window, attend):
    """That ends within a chunk of 8 or 12 tokens, and beyond it."""
    for ranks in (2, 3):
        check(ids, ranks, 6, 2, lambda *x: attend(*x, window), torch.float32, 3e-6, window=window)


def written_out(q_NHK, k_MGK, v_MGK, cu_seqlens_q, cu_seqlens_k, longest_q, longest_k, left):
    """What flash_attn_varlen_func and varlen_attn promise, as FlashAttention says it since 2.1: the diagonal ends in the lower right corner."""
    outputs = []
    for (start, stop), (first, last) in zip(pairs(cu_seqlens_q), pairs(cu_seqlens_k), strict=True):
        assert stop - start <= longest_q and last - first <= longest_k
        q, k, v = (x.transpose(0, 1)[None] for x in (q_NHK[start:stop], k_MGK[first:last], v_MGK[first:last]))
        mask = torch.ones(1, stop - start, last - first, dtype=torch.bool).tril(last - first - (stop - start))
        if left >= 0:  # so many keys before the query's own
            mask = mask.triu(last - first - (stop - start) - left)
        outputs.append(by_hand(q, k, v, mask)[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("kernel", PACKED)
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("window", [None, 2, 9, 30])
def test_kernels_of_a_gpu_are_given_the_right_pieces(kernel, heads, shared, window, monkeypatch):
    """No GPU here: what the kernels are called with, by what they promise to do with it."""

    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):
        assert window_size[1] == 0 and enable_gqa == (heads != shared)
        return written_out(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size[0])

    def flash_attn(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=False, window_size=(-1, -1)):
        assert causal
        return written_out(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size[0]), None

    module = SimpleNamespace(flash_attn_func=None, flash_attn_varlen_func=flash_attn)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(flash, "varlen_function", lambda: varlen_attn)
    monkeypatch.setattr(flash, "_kernels", {"flash": flash.flash_2(), "varlen": flash.torchs_own("")})
    check(IDS, 2, heads, shared, lambda *x: attend_shard(*x, kernel, window), torch.float32, 3e-6, True, window=window)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_on_a_gpu(kernel, heads, shared, dtype):
    gpu = torch.device("cuda", 0)
    with use(kernel):
        try:
            choose(gpu, dtype, 16, True)
        except UserError as error:
            pytest.skip(str(error))
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    check(IDS, 2, heads, shared, lambda *x: attend_shard(*x, kernel), dtype, limit, kernel in PACKED, gpu)


@pytest.mark.parametrize("lengths", [[2400], [100, 1300, 1000], [513, 87, 600, 1200]], ids=str)
def test_half_precision_with_short_and_long_spans(lengths):
    """Where the kernel for short documents takes turns with torch's: chunks of 600."""
    ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
    check(ids, 2, 2, 1, on_a_cpu, torch.bfloat16, 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operation_keeps_torchs_rules(dtype):
    """torch's own check of custom operations: schema, shapes without data, gradients under tracing, changing sizes."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 24, 4, 16), (4, 48, 2, 16), (4, 48, 2, 16))
    q, k, v = (torch.randn(s, generator=generator).to(dtype).transpose(1, 2).requires_grad_() for s in shapes)
    table = context_shard(starts_of(IDS), 1, 2, False).table
    torch.library.opcheck(attend_segments, (q, k, v, table))
    torch.library.opcheck(attend_segments, (q, k, v, context_shard(starts_of(IDS), 1, 2, False, 7).table, 7))
