"""Which documents an epoch draws, and in which order."""

from __future__ import annotations

import itertools
from collections import Counter
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lit_long.config import SamplingConfig, UserError
from lit_long.data import sampling as sampling_file
from lit_long.data.packing import PackedDocuments
from lit_long.data.sampling import EpochSampler, Shuffled
from tests.data.memory import MemoryDocuments, MemoryStore, numbered


def drawn(made, number=0):
    """Numbers of an epoch's documents in order, read block by block, every sum compared with a recount."""
    epoch, found = made.epoch(number), []
    lengths = made.documents.lengths
    for block in range(len(epoch.token_starts) - 1):
        numbers, ends = epoch.block(block)
        assert epoch.document_starts[block] == len(found)
        assert epoch.token_starts[block] == lengths[found].sum()
        assert ends.tolist() == np.cumsum(lengths[numbers]).tolist()
        found += numbers.tolist()
    assert epoch.documents == len(found) and epoch.tokens == lengths[found].sum()
    assert epoch.tokens_within(5) == np.minimum(lengths[found], 5).sum()
    return found


def draws_of(lengths, seed=0, domain="d", **sampling):
    return EpochSampler(MemoryDocuments(numbered(lengths)), domain, seed, SamplingConfig(**sampling))


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 3000), cuts=st.lists(st.integers(0, 3000), max_size=5), seed=st.integers(0, 99), sort=st.booleans())
def test_shuffled_is_a_permutation_whose_stretches_agree(count, cuts, seed, sort):
    with patch.object(sampling_file, "SORTED", 4000 if sort else 0):
        order = Shuffled(count, seed, "x")
        other = Shuffled(count, seed + 1, "x")
    whole = order.stretch(0, count)
    assert whole.dtype == np.int64 and sorted(whole.tolist()) == list(range(count))
    edges = [0, *sorted(cut for cut in cuts if cut <= count), count]
    assert np.concatenate([order.stretch(a, b) for a, b in itertools.pairwise(edges)]).tolist() == whole.tolist()
    if count > 50:
        assert whole.tolist() != other.stretch(0, count).tolist()


@pytest.mark.parametrize("count", [2000, 2**11, 2**11 + 1])
def test_the_feistel_order_is_as_good_as_random(count):
    """Where a number lands says nothing of where it, or its neighbour, was: means and correlations of 64 orders stay within 5 sigma."""
    places = np.arange(count)
    with patch.object(sampling_file, "SORTED", 0):
        orders = np.array([Shuffled(count, "key", i).stretch(0, count) for i in range(64)])
    sigma = 1 / np.sqrt(count * 64)
    assert abs(np.mean([np.corrcoef(places, order)[0, 1] for order in orders])) < 5 * sigma
    assert abs(np.mean([np.corrcoef(order[1:], order[:-1])[0, 1] for order in orders])) < 5 * sigma
    assert abs(np.mean(np.diff(orders, axis=1) == 1) - 1 / count) < 5 * np.sqrt(1 / count / count / 64)
    assert abs(np.mean(orders[:, 0]) / count - 0.5) < 5 / np.sqrt(12 * 64)


@pytest.mark.parametrize("same_in", ["low", "high"])
@pytest.mark.parametrize("same_out", ["low", "high"])
def test_the_feistel_order_has_all_its_rounds(same_in, same_out):
    """Of two places with one half in common that go to numbers with one half in common, the other halves must be unrelated: with three
    half-rounds they differ by as much after as before, always; with four in up to twice as many pairs as by chance (Patarin 1991)."""
    count, mask = 2**16, 255
    places = np.arange(count)
    with patch.object(sampling_file, "SORTED", 0):
        numbers = Shuffled(count, "rounds").stretch(0, count)
    halves = {"low": lambda values: values & mask, "high": lambda values: values >> 8}
    (kept_in, free_in), (kept_out, free_out) = (
        (halves[h], halves["low" if h == "high" else "high"]) for h in (same_in, same_out)
    )
    pairs = related = 0
    for value in range(256):
        group = np.flatnonzero(kept_in(places) == value)
        before, after, meet = free_in(group), free_out(numbers[group]), kept_out(numbers[group])
        together = np.triu(meet[:, None] == meet, 1)
        pairs += together.sum()
        related += ((before[:, None] ^ before) == (after[:, None] ^ after))[together].sum()
    assert pairs == pytest.approx(256 * 255 / 2, rel=0.05)
    assert related < 3 * pairs / 255


def test_more_than_a_million_numbers_in_chunks():
    count = 2**20 + 12_345
    order = Shuffled(count, 7, "code", 0)
    seen = np.zeros(count, dtype=np.int64)
    for start in range(0, count, 300_000):
        seen[order.stretch(start, min(count, start + 300_000))] += 1
    assert (seen == 1).all()


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    block=st.sampled_from([1, 3, 7]),
    number=st.integers(0, 3),
    feistel=st.booleans(),
    share=st.sampled_from([0, 0.2, 0.8]),
    limits=st.sampled_from([(0, 0), (5, 0), (0, 30), (3, 33)]),
)
def test_blocks_change_nothing(lengths, block, number, feistel, share, limits):
    """An epoch in small blocks is the same documents in the same order as in one."""
    low, high = limits
    allowed = [low <= n <= (high or 99) for n in lengths]
    long, short = (any(a and (n > 10) == wanted for n, a in zip(lengths, allowed, strict=True)) for wanted in (True, False))
    assume(long and short if share else any(allowed))
    sampling = {"min_tokens": low, "max_tokens": high} | ({"long_tokens": 10, "long_share": share} if share else {})
    with patch.object(sampling_file, "SORTED", 0 if feistel else 2**20):
        expected = drawn(draws_of(lengths, **sampling), number)
        with patch.object(sampling_file, "BLOCK", block):
            assert drawn(draws_of(lengths, **sampling), number) == expected
    assert len(set(expected)) == len(expected)
    assert all(allowed[i] for i in expected)
    if not share:
        assert sorted(expected) == [i for i, keep in enumerate(allowed) if keep]


def test_epochs_seeds_and_domains_have_orders_of_their_own():
    lengths = [3] * 50
    made = draws_of(lengths)
    orders = [drawn(made), drawn(made, 1), drawn(draws_of(lengths, seed=1)), drawn(draws_of(lengths, domain="e"))]
    assert len({tuple(order) for order in orders}) == 4
    assert drawn(draws_of(lengths), 1) == orders[1]


@settings(max_examples=60, deadline=None)
@given(
    shorts=st.lists(st.integers(1, 10), min_size=1, max_size=300),
    longs=st.lists(st.integers(11, 80), min_size=1, max_size=100),
    share=st.floats(0.02, 0.98),
    number=st.integers(0, 5),
    block=st.sampled_from([13, 4096]),
)
def test_long_share(shorts, longs, share, number, block):
    """Of long and short documents, those that must be fewer are as many as makes the wanted share of tokens, give or take one.
    Of the others, all are there."""
    lengths = np.array(shorts + longs)
    with patch.object(sampling_file, "BLOCK", block):
        found = drawn(draws_of(lengths, long_tokens=10, long_share=share), number)
    long = sum(lengths[i] > 10 for i in found)
    short = len(found) - long
    mean_short, mean_long = np.mean(shorts), np.mean(longs)
    if sum(longs) / lengths.sum() > share:  # it has to be lowered
        assert short == len(shorts)
        assert long == pytest.approx(share / (1 - share) * sum(shorts) / mean_long, abs=1)
    else:
        assert long == len(longs)
        assert short == pytest.approx((1 - share) / share * sum(longs) / mean_short, abs=1)


@pytest.mark.parametrize("packing", ["concat", "best_fit", "single"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 0.9])
def test_long_share_of_tokens(share, packing):
    """Within 2 % of what was wanted, of the tokens that sequences hold: single ones have 100 of each longer document."""
    lengths = np.random.default_rng(1).lognormal(3.0, 1.0, 8000).astype(int) + 1
    natural = lengths[lengths > 64].sum() / lengths.sum()
    assert 0.3 < natural < 0.6 and lengths[lengths > 64].mean() > 100
    sampling = SamplingConfig(long_tokens=64, long_share=share)
    made = PackedDocuments(MemoryStore(d=numbered(lengths)), "d", 100, 0, True, packing, sampling)
    for number in range(3):
        epoch, held = made.sampler.epoch(number), np.zeros(len(lengths))
        for index in range(made.packing.count(epoch)):
            for document, start, stop in made.packing.pieces(epoch, index):
                held[document] += stop - start
        assert held[lengths > 64].sum() / held.sum() == pytest.approx(share, abs=0.02)


def test_every_document_is_drawn_in_time_and_not_the_same_ones_each_epoch():
    lengths = [5] * 40 + [100] * 10
    made = draws_of(lengths, long_tokens=10, long_share=0.95)
    epochs = [set(drawn(made, number)) for number in range(100)]
    assert epochs[0] != epochs[1]
    counts = Counter(i for epoch in epochs for i in epoch)
    share = 1000 / 0.95 * 0.05 / 200  # of short documents
    assert all(counts[i] == 100 for i in range(40, 50))
    assert all(abs(counts[i] / 100 - share) < 5 * np.sqrt(share * (1 - share) / 100) for i in range(40))


@pytest.mark.parametrize("lengths, rare", [([5] + [100] * 4, 0), ([100] + [5] * 4, 0)])
def test_half_a_document_an_epoch_is_one_every_other_epoch(lengths, rare):
    """Counting begins at a random place. From the same place on, what an epoch has room for half of would never be drawn."""
    others = sum(lengths) - lengths[rare]
    share = lengths[rare] / 2 / (lengths[rare] / 2 + others)  # of tokens, of the only document of its kind
    made = draws_of(lengths, long_tokens=10, long_share=share if lengths[rare] > 10 else 1 - share)
    times = sum(rare in drawn(made, number) for number in range(200))
    assert abs(times - 100) < 5 * np.sqrt(200 / 4)


def test_steady_epochs_hold_the_same_documents():
    assert draws_of([3, 30], min_tokens=5).steady
    assert not draws_of([3, 30], long_tokens=10, long_share=0.5).steady


@pytest.mark.parametrize(
    "sampling, message",
    [
        ({"min_tokens": 90}, r"data\.sampling\.d: none of the 3 documents has between 90 and any number of tokens.*min_tokens"),
        ({"max_tokens": 2}, r"data\.sampling\.d: none of the 3 documents has between 0 and 2 tokens"),
        (
            {"long_tokens": 80, "long_share": 0.5},
            r"data\.sampling\.d\.long_share=0\.5 cannot be met: no document of 'd' has more",
        ),
        ({"long_tokens": 2, "long_share": 0.5}, r"data\.sampling\.d\.long_share=0\.5 cannot be met: every document of 'd' has"),
        ({"long_tokens": 20, "long_share": 0.5, "max_tokens": 20}, r"long_share=0\.5 cannot be met: no document"),
        ({"long_tokens": 20, "long_share": 0.5, "min_tokens": 21}, r"long_share=0\.5 cannot be met: every document"),
    ],
)
def test_samplings_that_cannot_be(sampling, message):
    with pytest.raises(UserError, match=message):
        draws_of([5, 20, 80], **sampling)


@pytest.mark.parametrize("sort", [True, False])
def test_a_limit_on_different_documents(sort):
    with patch.object(sampling_file, "SORTED", 20_000 if sort else 0):
        lengths = [10 + i % 90 for i in range(10_000)]
        made = draws_of(lengths, documents=700, min_tokens=50)
        first, second = drawn(made, 0), drawn(made, 1)
        assert len(first) == len(set(first)) == 700 and sorted(first) == sorted(second) and first != second
        assert min(lengths[i] for i in first) >= 50
        assert set(first) != set(drawn(draws_of(lengths, seed=1, documents=700, min_tokens=50)))
        with pytest.raises(UserError, match=r"data.sampling.d.documents=9,000: 'd' has 5,\d+ documents that may be drawn"):
            draws_of(lengths, documents=9000, min_tokens=50)
