from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_long.batch import PADDING
from lit_long.config import SamplingConfig, UserError
from lit_long.data.curriculum import Phase
from lit_long.data.mixture import Recipe, Updates, count_consumed, describe_plan, make_mixtures, plan_tokens
from lit_long.data.packing import PackedDocuments
from lit_long.data.synthetic import RetrievalDocuments
from tests.data.memory import MemoryStore, numbered

WEIGHTS = {"code": 0.45, "docs": 0.4, "retrieval": 0.15}
CONTEXT = 128
NAMES = ("tokens", "targets", "document_ids", "positions")


def updates(store, weights=WEIGHTS, sequences=8, seed=5, rank=0, world=1, phases=None, context=CONTEXT, **recipe):
    phases = phases or [Phase(0, 200_000, context)]
    found = make_mixtures(store, Recipe(weights, seed, **recipe), phases, sequences * context)
    names = sorted({name for mixture in found for name in mixture.names})
    return Updates(found, phases, names, sequences * context, rank, world)


def test_ranks_share_the_rows_of_a_single_rank(store):
    whole = updates(store)
    for world in (2, 4):
        ranks = [updates(store, rank=rank, world=world) for rank in range(world)]
        for step in (0, 1, 50):
            for name in NAMES:
                joined = torch.cat([getattr(source[step], name) for source in ranks])
                assert torch.equal(joined, getattr(whole[step], name))


@pytest.mark.parametrize("weights", [{"code": 0.5, "docs": 0.5}, {"code": 1.0}, {"code": 1e-4, "docs": 1.0}])
def test_updates_of_a_single_sequence(store, weights):
    source = updates(store, weights, sequences=1)
    assert source[0].tokens.shape == source[100_000].tokens.shape == (1, CONTEXT)


def test_updates_do_not_depend_on_those_read_before(store):
    expected = [updates(store)[step].tokens for step in range(6)]
    source = updates(store)
    for step in (5, 2, 3):
        assert torch.equal(source[step].tokens, expected[step])
    assert not torch.equal(updates(store, seed=6)[0].tokens, expected[0])


def test_shares_of_tokens_follow_the_weights_and_no_sequence_is_skipped(store):
    rows = [row.numpy() for step in range(125) for row in updates(store)[step].tokens]
    sources = {
        "code": PackedDocuments(store, "code", CONTEXT, 5, True),
        "docs": PackedDocuments(store, "docs", CONTEXT, 5, True),
        "retrieval": RetrievalDocuments(store, CONTEXT, 5),
    }
    read = dict.fromkeys(sources, 0)
    for row in rows:  # whichever source is next to give exactly this row
        name = next(name for name, source in sources.items() if np.array_equal(source[read[name]]["tokens"], row))
        read[name] += 1
    assert len(rows) == 1000
    for name, weight in WEIGHTS.items():
        assert read[name] / len(rows) == pytest.approx(weight, abs=0.01)


def test_the_order_of_the_weights_and_their_scale_do_not_matter(store):
    reordered = {name: 2 * WEIGHTS[name] for name in reversed(WEIGHTS)}
    assert torch.equal(updates(store, reordered)[3].tokens, updates(store)[3].tokens)


def test_a_batch_is_what_the_model_expects(store):
    for mask_documents in (True, False):
        batch = updates(store, {"docs": 1}, 2, 0, mask_documents=mask_documents)[0]
        assert batch.mask_documents is mask_documents
        assert all(field.dtype == torch.int64 and field.shape == (2, CONTEXT) for field in batch[:4])
        assert batch.loss_tokens() == 2 * CONTEXT


@pytest.mark.parametrize(
    "weights, message",
    [
        ({}, "data.weights is empty.*code, docs, retrieval"),
        ({"books": 1.0}, r"data\.weights\.books: .*code, docs, retrieval"),
        ({"code": 0.0}, r"data\.weights\.code is 0\.0"),
        ({"code": 1.0, "docs": -1.0}, r"data\.weights\.docs is -1\.0"),
        ({"code": float("nan")}, r"data\.weights\.code is nan"),
    ],
)
def test_unusable_weights(store, weights, message):
    with pytest.raises(UserError, match=message):
        updates(store, weights)


def test_ranks_that_cannot_share_equally(store):
    with pytest.raises(UserError, match=f"8 sequences .* 3 ranks.*multiple of {3 * CONTEXT}"):
        updates(store, world=3)


def test_nothing_is_said_about_jax(store):
    script = (
        "import sys; from pathlib import Path; from lit_long.data.token_store import open_store\n"
        "from lit_long.surroundings import hide_from_torchmetrics; hide_from_torchmetrics()\n"
        "from lit_long.data.datamodule import LongContextDataModule\n"
        f"store = open_store(Path({str(store.folder)!r}))\n"
        "data = LongContextDataModule(store, weights={'code': 1.0}, context=128, tokens_per_update=1024, updates=2)\n"
        "next(iter(data.train_dataloader()))\n"
        "assert 'grain' in sys.modules"
    )
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert output.stderr == "" and output.stdout == ""


# ------------------------------------------------------------------------------------- documents in memory

FIRST = {"a": 1, "b": 1_000_000, "c": 2_000_000}  # tokens of the domains


def memory(**lengths):
    return MemoryStore(**{name: numbered(of_domain, FIRST[name]) for name, of_domain in lengths.items()})


def tokens_by_domain(source, steps):
    """Tokens of each domain in updates, told by the tokens themselves."""
    found = dict.fromkeys(FIRST, 0)
    for step in steps:
        batch = source[step]
        tokens = batch.tokens[batch.document_ids != PADDING]
        for name, first in FIRST.items():
            found[name] += int((tokens // 1_000_000 == first // 1_000_000).sum())
    return found


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.tuples(*[st.integers(1, 100)] * 3),
    weights=st.tuples(*[st.floats(0.05, 1)] * 3),
    packing=st.sampled_from(["single", "best_fit", "concat"]),
    seed=st.integers(0, 99),
)
@example(lengths=(1, 1, 65), weights=(1.0, 1.0, 0.05), packing="concat", seed=17)  # epochs of a single sequence
def test_shares_of_tokens_follow_the_weights_after_packing(lengths, weights, packing, seed):
    """Within 1 % of the smallest weight and a sequence, although a sequence of one domain may hold a hundred times another's tokens."""
    store = memory(**{name: [length] * 65 for name, length in zip(FIRST, lengths, strict=True)})
    source = updates(store, dict(zip(FIRST, weights, strict=True)), 50, seed, context=64, packing=packing)
    found = tokens_by_domain(source, range(20))
    total = sum(found.values())
    if packing == "best_fit":  # whose sequences do not all hold the same: an epoch may be under way
        slack = {name: 64 * source.mixtures[0].sources[name].sequences_per_epoch for name in FIRST}
        slack = {name: min(64 * 64, tokens) * (1 - source.mixtures[0].utilisation[name]) + 64 for name, tokens in slack.items()}
    else:
        slack = dict.fromkeys(FIRST, 64)
    for name, weight in zip(FIRST, weights, strict=True):
        share = weight / sum(weights)
        bound = 0.01 * min(weights) / sum(weights) + (max(slack.values()) + 64) / total
        assert found[name] / total == pytest.approx(share, abs=bound)


def test_shares_with_lengths_of_every_kind():
    """Utilisations of 0.09, 0.6 and 1, documents of all lengths; after ten and more epochs within 1 %."""
    random = np.random.default_rng(0)
    store = memory(a=random.integers(2, 10, 40), b=random.integers(1, 77, 40), c=random.integers(64, 500, 40))
    weights = {"a": 0.2, "b": 0.3, "c": 0.5}
    source = updates(store, weights, 64, context=64, packing="single")
    found = tokens_by_domain(source, range(40))
    for name, weight in weights.items():
        assert found[name] / sum(found.values()) == pytest.approx(weight, abs=0.01)
    raw = {name: weight * source.mixtures[0].utilisation[name] for name, weight in weights.items()}
    assert abs(raw["a"] / sum(raw.values()) - 0.2) > 0.1, "the test must tell corrected shares from shares of sequences"


def test_utilisation_is_what_an_epoch_holds():
    mixture = updates(memory(a=[5] * 10, b=[100, 20, 8]), {"a": 1, "b": 1}, context=64, packing="single").mixtures[0]
    assert mixture.utilisation == {"a": 5 / 64, "b": (64 + 20 + 8) / 3 / 64}
    assert [mixture.tokens_per_epoch(name) for name in "ab"] == [50, 92]
    planned = mixture.tokens(640)
    assert planned["a"] == pytest.approx(planned["b"])
    assert planned["a"] / (5 / 64) + planned["b"] / mixture.utilisation["b"] == pytest.approx(640)


@pytest.mark.parametrize("packing", ["single", "best_fit", "concat"])
def test_repeats(packing):
    """Passes over a, b and c are as 1 to 3 to 0.5, whatever their sizes."""
    store = memory(a=[50] * 64, b=[9] * 128, c=[100] * 32)
    repeats = {"a": 1.0, "b": 3.0, "c": 0.5}
    source = updates(store, {"a": 1.0}, 32, context=64, packing=packing, repeats=repeats)
    mixture = source.mixtures[0]
    found = tokens_by_domain(source, range(40))
    passes = {name: found[name] / mixture.tokens_per_epoch(name) for name in repeats}
    for name, wanted in repeats.items():
        assert passes[name] / passes["a"] == pytest.approx(wanted, rel=0.03)


def test_repeats_have_no_retrieval(store):
    with pytest.raises(UserError, match=r"data\.repeats\.retrieval: there is no pass over"):
        updates(store, {"docs": 1.0}, repeats={"docs": 1.0, "retrieval": 2.0})
    with pytest.raises(UserError, match=r"data\.repeats\.docs is -1"):
        updates(store, {"docs": 1.0}, repeats={"docs": -1.0})


SMALL = {"a": [3, 9, 30, 70, 12] * 3, "b": [1, 5, 8] * 5}


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 999),
    world=st.sampled_from([2, 4]),
    packing=st.sampled_from(["concat", "best_fit", "single"]),
    long_share=st.sampled_from([0.0, 0.4]),
    steps=st.permutations(range(12)),
)
def test_any_ranks_any_order_across_epochs_and_phases(seed, world, packing, long_share, steps):
    """Update s is the same rows whatever was read before and however many ranks share them."""
    store = memory(**SMALL)
    sampling = {"a": SamplingConfig(long_tokens=20, long_share=long_share)} if long_share else {}
    phases = [Phase(0, 4, 16), Phase(4, 8, 32, {"b": 1.0}), Phase(8, 12, 32)]

    def made(rank=0, world=1):
        weights = {"a": 0.6, "b": 0.4}
        return updates(store, weights, 8, seed, rank, world, phases, context=32, packing=packing, sampling=sampling)

    whole = made()
    expected = [whole[step] for step in range(12)]
    ranks = [made(rank, world) for rank in range(world)]
    for step in steps:
        shares = [rank[step] for rank in ranks]
        for name in (*NAMES, "account"):
            assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(expected[step], name))
    read = tokens_by_domain(whole, range(12))
    assert all(read[name] > whole.mixtures[0].tokens_per_epoch(name) for name in "ab"), "no epoch's border was crossed"


def test_accounts_number_the_domains_of_all_phases():
    """A phase of b alone still calls it number 1."""
    phases = [Phase(0, 2, 16), Phase(2, 4, 32, {"b": 1.0})]
    source = updates(memory(**SMALL), {"a": 0.5, "b": 0.5}, 8, phases=phases, context=32)
    for step in range(4):
        batch = source[step]
        assert batch.account[:, 0].tolist() == [int(row[0] >= FIRST["b"]) for row in batch.tokens]
        assert batch.account[:, 1].tolist() == (batch.document_ids != PADDING).sum(1).tolist()
    assert source[3].account[:, 0].tolist() == [1] * 8 and len(source) == 4


PER_UPDATE = 64 * 8
PHASES = [Phase(0, 20, 16), Phase(20, 40, 64, {"a": 1.0, "b": 3.0})]


def mixed(packing, phases=PHASES):
    store = MemoryStore(a=numbered([40] * 50), b=numbered([9] * 100, first=10_000))
    return make_mixtures(store, Recipe({"a": 0.6, "b": 0.4}, 3, packing=packing), phases, PER_UPDATE)


@pytest.mark.parametrize("packing", ["concat", "best_fit", "single"])
def test_the_plan_is_what_is_consumed(packing):
    """Within a sequence a domain and a phase; for best_fit, whose sequences differ in what they hold, within 2 %."""
    found = mixed(packing)
    planned = plan_tokens(found, PHASES, PER_UPDATE, 0.0)
    source = Updates(found, PHASES, ["a", "b"], PER_UPDATE)
    sums, seen, documents = torch.zeros(2, 4, dtype=torch.int64), {"a": 0, "b": 0}, set()
    for step in range(40):
        batch = source[step]
        sums += count_consumed(batch.account, 2)
        held = batch.tokens[batch.document_ids != PADDING]
        documents |= set(held.tolist())
        seen["a"] += int((held < 10_000).sum())
        seen["b"] += int((held >= 10_000).sum())
    assert sums[:, 0].tolist() == [seen["a"], seen["b"]]
    for name in "ab":
        bound = 0.02 * seen[name] if packing == "best_fit" else 0
        assert planned[name]["tokens"] == pytest.approx(seen[name], abs=16 + 64 + bound)
        assert planned[name]["share"] == pytest.approx(seen[name] / sum(seen.values()), abs=0.02)
    if packing != "single":  # of which it takes no whole pass, with 16 tokens of each document
        by_hand = {"a": seen["a"] / 2000, "b": seen["b"] / 900}
        assert all(planned[name]["epochs"] == pytest.approx(by_hand[name], rel=0.03) for name in "ab")
    else:
        assert planned["b"]["epochs"] == pytest.approx(seen["b"] / 900, rel=0.03)
        assert planned["b"]["utilisation"] == 9 / 64  # the last phase's
        (first,), (second,) = ([m.tokens(20 * PER_UPDATE)["a"]] for m in found)
        assert planned["a"]["epochs"] == pytest.approx(first / (50 * 16) + second / (50 * 40))


@pytest.mark.parametrize("packing", ["concat", "best_fit", "single"])
@pytest.mark.parametrize("contexts", [(64, 64), (16, 64), (16, 32, 64)])
def test_the_plan_says_what_is_packed_anew(packing, contexts):
    """The others go on where the phase before was."""
    phases = [Phase(i, i + 1, context) for i, context in enumerate(contexts)]
    planned = plan_tokens(mixed(packing, phases), phases, PER_UPDATE, 0.0)
    said = "is packed anew for each of {} contexts: documents of the block in progress may come twice, and others not"
    anew = packing == "best_fit" and len(set(contexts)) > 1
    for name in "ab":
        assert (f"; {name} {said.format(len(set(contexts)))}" in describe_plan(planned)) == anew
    assert ("packed anew" in describe_plan(planned)) == anew


def test_sums_by_domain_by_hand():
    account = torch.tensor([[2, 40_000, 300, 1, 0], [0, 7, 1, 0, 2**31], [2, 4, 1, 1, 2]])
    assert count_consumed(account, 4).tolist() == [[7, 1, 0, 2**31], [0] * 4, [40_004, 301, 2, 2], [0] * 4]


def test_a_share_that_cannot_be_met():
    found = mixed("concat")
    passes = plan_tokens(found, PHASES, PER_UPDATE, 0.0)["b"]["epochs"]
    assert passes > 10
    assert plan_tokens(found, PHASES, PER_UPDATE, passes + 0.01)
    message = (
        rf"data\.weights: a share of .*% for 'b' is .* {passes:.1f} passes over its documents, and data\.max_epochs=10\. Lower"
    )
    with pytest.raises(UserError, match=message):
        plan_tokens(found, PHASES, PER_UPDATE, 10.0)


def test_retrieval_has_no_end(store):
    found = make_mixtures(store, Recipe({"docs": 0.75, "retrieval": 0.25}), [Phase(0, 4, 128)], 1024)
    planned = plan_tokens(found, [Phase(0, 4, 128)], 1024, 1e-9 + 1)
    assert planned["retrieval"] == {"tokens": 1024.0, "epochs": None, "utilisation": 1.0, "share": 0.25}
    assert describe_plan(planned).startswith("docs 75.0% (") and describe_plan(planned).endswith(" epochs), retrieval 25.0%")


def test_a_mixture_caps_made_examples(store):
    """data.sampling.retrieval.max_tokens reaches what the mixture draws."""

    def longest(**sampling):
        recipe = Recipe({"retrieval": 1.0}, sampling={"retrieval": SamplingConfig(**sampling)} if sampling else {})
        (found,) = make_mixtures(store, recipe, [Phase(0, 4, 512)], 2048)
        ids = [found.sources["retrieval"][number]["document_ids"] for number in range(20)]
        return max(int(np.unique(row, return_counts=True)[1].max()) for row in ids)

    assert longest(max_tokens=150) <= 150 < longest()
