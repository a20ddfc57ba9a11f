"""What a run will take of each domain, and what its updates say they are."""

from __future__ import annotations

import pytest
import torch

from lit_long.batch import PADDING
from lit_long.config import UserError
from lit_long.data.curriculum import Phase
from lit_long.data.mixture import Recipe, Updates, count_consumed, describe_plan, make_mixtures, plan_tokens
from tests.data.memory import MemoryStore, numbered

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
