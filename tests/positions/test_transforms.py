"""Randomised positions and PoSE: what they may and may not change, and that they are functions of their arguments alone."""

from __future__ import annotations

import lightning
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_long.batch import Batch
from lit_long.config import OptimConfig
from lit_long.model.attention import document_cu_seqlens
from lit_long.model.documents import document_runs
from lit_long.model.llama import Llama
from lit_long.positions import build_transform
from lit_long.positions import settings as spelt_out
from lit_long.positions.layers import as_pattern
from lit_long.positions.schemes import RoPE
from lit_long.training.module import LongContextModule
from tests.model.test_llama import SMALL

RANDOMISED = {"transform": "randomised", "length": 64}
POSE = {"transform": "pose", "window": 16, "target": 100, "chunks": 2}


def transform(**training):
    return build_transform(training)


def batch_of(rows=4, length=64, masked=True):
    """Rows of three documents, 10, length − 15 and 5 tokens; without masking positions run through."""
    ids = torch.tensor([0] * 10 + [1] * (length - 15) + [2] * 5).expand(rows, length)
    inside = torch.cat([torch.arange(10), torch.arange(length - 15), torch.arange(5)]).expand(rows, length)
    tokens = torch.arange(rows * length).view(rows, length)
    return Batch(tokens, tokens + 1, ids, inside if masked else torch.arange(length).expand(rows, length), masked)


@pytest.mark.parametrize("training", [RANDOMISED, POSE], ids=["randomised", "pose"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_pure_function_the_same_on_any_number_of_ranks(training, masked):
    apply, batch = transform(**training), batch_of(masked=masked)
    before = [field.clone() for field in batch[:4]]
    whole = apply(batch, 3, 7)
    torch.manual_seed(1)
    again = apply(batch, 3, 7)
    for ours, other in zip(whole[:4], again[:4], strict=True):
        assert torch.equal(ours, other)
    assert all(torch.equal(field, old) for field, old in zip(batch[:4], before, strict=True))
    assert torch.equal(whole.tokens, batch.tokens) and torch.equal(whole.targets, batch.targets)
    halves = [apply(batch.rows(start, start + 2), 3, 7, first_row=start) for start in (0, 2)]
    assert torch.equal(torch.cat([half.positions for half in halves]), whole.positions)
    assert torch.equal(torch.cat([half.document_ids for half in halves]), whole.document_ids)
    for other in (apply(batch, 4, 7), apply(batch, 3, 8), apply(batch, 3, 7, first_row=4)):
        assert not torch.equal(other.positions, whole.positions)
    assert len({tuple(row.tolist()) for row in whole.positions}) == len(whole.positions)


# ---------------------------------------------------------------------------------------------------------- randomised


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 200), st.integers(1, 100))
def test_randomised_positions_rise_and_never_pass_the_length(step, length, limit):
    batch = Batch(*(torch.zeros(2, length, dtype=torch.int64) for _ in range(4)), mask_documents=False)
    positions = transform(transform="randomised", length=limit)(batch, 0, step).positions
    assert positions.dtype == torch.float64 and positions.shape == (2, length)
    assert bool((positions[:, 1:] >= positions[:, :-1]).all()) and float(positions.min()) >= 0
    assert float(positions.max()) <= limit


def test_randomised_steps_are_uniform_between_0_and_2():
    batch = Batch(*(torch.zeros(8, 4096, dtype=torch.int64) for _ in range(4)), mask_documents=False)
    positions = transform(transform="randomised", length=10**6)(batch, 0, 0).positions
    steps = torch.cat([positions[:, :1], positions.diff()], dim=1)
    assert float(steps.mean()) == pytest.approx(1, abs=0.01)
    assert 0 <= float(steps.min()) < 0.01 and 1.99 < float(steps.max()) <= 2
    assert float(steps.var()) == pytest.approx(1 / 3, abs=0.01)
    # scaled down so as to end at the length, not cut off
    scaled = transform(transform="randomised", length=1024)(batch, 0, 0).positions
    torch.testing.assert_close(scaled, positions * 1024 / positions[:, -1:])


def test_randomised_walks_are_per_document():
    masked = transform(**RANDOMISED)(batch_of(), 0, 0)
    ids, positions = masked.document_ids[0], masked.positions[0]
    assert all(0 <= float(positions[ids == document][0]) <= 2 for document in (0, 1, 2))
    assert torch.equal(masked.document_ids, batch_of().document_ids) and masked.mask_documents
    through = transform(**RANDOMISED)(batch_of(masked=False), 0, 0)
    assert float(through.positions.diff().min()) >= 0 and not through.mask_documents


# ---------------------------------------------------------------------------------------------------------------- PoSE


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(0, 200), st.integers(1, 4), st.booleans())
def test_pose_windows(step, window, more, chunks, masked):
    chunks = min(chunks, window)
    apply = transform(transform="pose", window=window, target=window + more, chunks=chunks)
    out = apply(batch_of(rows=2, masked=masked), 0, step)
    assert out.mask_documents and out.positions.dtype == torch.int64
    originals = batch_of(rows=2).document_ids
    for ids, positions, documents in zip(out.document_ids, out.positions, originals, strict=True):
        for window_id in ids.unique_consecutive():
            inside = positions[ids == window_id]
            assert 1 <= len(inside) <= window
            assert bool((ids == window_id).nonzero()[:, 0].diff().eq(1).all())  # in one piece
            if masked:
                assert len(documents[ids == window_id].unique()) == 1
            assert int(inside[0]) == 0  # u_0 = 0
            jumps = inside.diff() - 1
            assert bool((jumps >= 0).all()) and int((jumps > 0).sum()) <= chunks - 1
            assert int(inside[-1]) < window + more


def test_pose_covers_its_range():
    """Two chunks: the shift is uniform in 0 … target − window, and the place of the cut in 1 … window − 1."""
    ids = torch.zeros(500, 16, dtype=torch.int64)
    positions = transform(**POSE)(Batch(ids, ids, ids, ids, False), 0, 0).positions
    shifts = positions[:, -1] - 15
    assert int(shifts.min()) == 0 and int(shifts.max()) == 84 and float(shifts.double().mean()) == pytest.approx(42, abs=4)
    cuts = (positions.diff() > 1).double().argmax(1)[shifts > 0] + 1
    assert set(cuts.tolist()) == set(range(1, 16))


def test_pose_whole_windows_and_padding():
    ids = torch.tensor([[0] * 40 + [-1] * 24])
    out = transform(**POSE)(Batch(ids, ids, ids, ids, True), 0, 0)
    assert document_runs(document_cu_seqlens(out)) == [(2, 16), (1, 8), (1, 24)]
    assert bool((out.document_ids[0, 40:] == -1).all()) and bool((out.document_ids[0, :40] >= 0).all())
    unmasked = transform(**POSE)(batch_of(rows=1, masked=False), 0, 0)
    assert document_runs(document_cu_seqlens(unmasked)) == [(4, 16)]


def test_pose_windows_do_not_attend_to_each_other():
    """The loss of a window is that of the same tokens on their own."""
    module = LongContextModule(SMALL, {"scheme": "rope"}, OptimConfig(), updates=1)
    model = Llama(SMALL, module.pattern)
    model.init_weights(0)
    tokens = torch.randint(97, (1, 64))
    out = transform(**POSE)(Batch(tokens, tokens, torch.zeros_like(tokens), torch.arange(64)[None], False), 0, 0)
    together = model(out, per_token=True)[0]
    for start in range(0, 64, 16):
        alone = Batch(*(field[:, start : start + 16] for field in out[:4]), mask_documents=True)
        torch.testing.assert_close(model(alone, per_token=True)[0], together[:, start : start + 16], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("training", "reach"), [(RANDOMISED | {"length": 200}, 201), (POSE, 100)], ids=["randomised", "pose"])
def test_tables_are_those_of_the_context_that_positions_reach_into(training, reach):
    """LongRoPE's factors and dynamic NTK's base go by its length: they must be those of evaluation there, not of the row's 64 tokens."""
    lengths = []

    class Watched(RoPE):
        def inverse_frequencies(self, length):
            lengths.append(length)
            return super().inverse_frequencies(length)

    model, batch = Llama(SMALL, Watched(SMALL.head_dim)), batch_of(rows=2)._replace(tokens=torch.zeros(2, 64, dtype=torch.int64))
    out = transform(**training)(batch, 0, 0)._replace(reach=transform(**training).reach)
    for each in (batch, out, out.rows(0, 1)):
        model.hidden_states(each)
    assert lengths == [64, reach, reach]


# ------------------------------------------------------------------------------------------------------------- in a run


class Batches(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        tokens = torch.randint(97, (2, 64), generator=torch.Generator().manual_seed(index))
        return Batch(tokens, tokens, torch.zeros_like(tokens), torch.arange(64).expand(2, 64))


@pytest.mark.parametrize("training", [RANDOMISED, POSE], ids=["randomised", "pose"])
def test_training_alone_is_transformed(training):
    """Every update gets its own positions, whole or in micro-batches; validation has the plain ones."""
    seen = {}
    for micro_batch_tokens in (64, 10_000):
        module = LongContextModule(
            SMALL,
            {"scheme": "abf", "training": training},
            OptimConfig(),
            updates=2,
            seed=5,
            micro_batch_tokens=micro_batch_tokens,
        )
        calls = []
        encoder = module.pattern.groups[0].encoder
        plain = type(encoder).rotation

        class Watched(type(encoder)):
            def rotation(self, positions, length, calls=calls, plain=plain, module=module):
                assert length == (build_transform(training).reach if module.trainer.training else 64)
                calls.append((module.trainer.training, positions.clone()))
                return plain(self, positions, length)

        module.pattern = as_pattern(Watched(**vars(encoder)))
        data = torch.utils.data.DataLoader(Batches(), batch_size=None)
        lightning.Trainer(
            accelerator="cpu",
            max_steps=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            val_check_interval=1,
        ).fit(module, data, data)
        seen[micro_batch_tokens] = torch.cat([positions for trained, positions in calls if trained])
        validated = torch.cat([positions for trained, positions in calls if not trained])
        assert bool((validated == torch.arange(64)).all()) and len(validated) == 8
    expected = [build_transform(training)(Batches()[step], 5, step).positions for step in (0, 1)]
    assert torch.equal(seen[64], seen[10_000]) and torch.equal(seen[64], torch.cat(expected))


def test_identity_holds_the_transform():
    plain = {"scheme": "rope", "base": 10_000.0}
    assert spelt_out(plain, 64) == plain and spelt_out(plain | {"training": None}, 64) == plain
    settled = spelt_out(plain | {"training": {"transform": "pose", "window": "2k", "target": "32k"}}, 64)
    assert settled == plain | {"training": {"transform": "pose", "window": 2048, "target": 32_768, "chunks": 2}}
