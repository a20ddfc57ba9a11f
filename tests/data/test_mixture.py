from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_long.config import UserError
from lit_long.data.curriculum import Phase
from lit_long.data.mixture import Recipe, Updates, mixtures
from lit_long.data.packing import PackedDocuments
from lit_long.data.retrieval import RetrievalDocuments

WEIGHTS = {"code": 0.45, "docs": 0.4, "retrieval": 0.15}
CONTEXT = 128


def updates(store, weights=WEIGHTS, sequences=8, seed=5, rank=0, world=1, phases=None, **recipe):
    phases = phases or [Phase(0, 200_000, CONTEXT)]
    found = mixtures(store, Recipe(weights, seed, **recipe), phases, sequences * CONTEXT)
    names = sorted({name for mixture in found for name in mixture.names})
    return Updates(found, phases, names, sequences * CONTEXT, rank, world)


def test_ranks_share_the_rows_of_a_single_rank(store):
    whole = updates(store)
    for world in (2, 4):
        ranks = [updates(store, rank=rank, world=world) for rank in range(world)]
        for step in (0, 1, 50):
            for name in ("tokens", "targets", "document_ids", "positions"):
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
        "import sys; from pathlib import Path; from lit_long.data.store import open_store\n"
        "from lit_long.data.module import LongContextDataModule\n"
        f"store = open_store(Path({str(store.folder)!r}))\n"
        "data = LongContextDataModule(store, weights={'code': 1.0}, context=128, tokens_per_update=1024, updates=2)\n"
        "next(iter(data.train_dataloader()))\n"
        "assert 'grain' in sys.modules"
    )
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert output.stderr == "" and output.stdout == ""
