"""Phases are right where numbers are large: at position 131,071, after casts, in low precision, and in xPos's powers."""

from __future__ import annotations

import math
import re

import lightning
import pytest
import torch

from lit_long.batch import Batch
from lit_long.config import ModelConfig, OptimConfig, UserError
from lit_long.model.attention import AttentionMask, attention
from lit_long.positions import build
from lit_long.positions import settings as spelt_out
from lit_long.positions.layers import as_pattern
from lit_long.positions.rotary import apply_rotary
from lit_long.training.module import LongContextModule
from tests.positions.cases import SETTINGS
from tests.positions.test_encoders import small

LAST = 131_071
# a centre and a scale base at which xPos holds that position
FAR = {"xpos": {"centre": LAST, "scale_base": 4096}, "xpos_abf": {"centre": LAST, "scale_base": 4096}}


def check_position(encoder, rotation, column, position=LAST):
    factor = encoder.attention_factor(LAST + 1)
    for index, frequency in enumerate(encoder.inverse_frequencies(LAST + 1)):
        phase = position * frequency
        assert float(rotation.cos_q[0, column, index]) == pytest.approx(factor * math.cos(phase), abs=1e-6)
        assert float(rotation.sin_k[0, column, index]) == pytest.approx(factor * math.sin(phase), abs=1e-6)
    assert {table.dtype for table in rotation} == {torch.float32}


@pytest.mark.parametrize("scheme", SETTINGS)
@pytest.mark.parametrize("position", [LAST, LAST - 1 / 3], ids=["whole", "real"])
def test_phases_at_the_last_position_survive_casts(scheme, position):
    """Closed form in fp64, for an encoder inside a model that was cast to bf16."""
    holder = torch.nn.Linear(2, 2)
    holder.encoder = build(small(scheme) | FAR.get(scheme, {}) | ({"centre": position} if "xpos" in scheme else {}), 64)
    holder.to(torch.bfloat16)
    positions = torch.tensor([[position]], dtype=torch.int64 if position == LAST else torch.float64)
    check_position(holder.encoder, holder.encoder.rotation(positions, LAST + 1), 0, position)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("scheme", ["rope", "abf", "yarn", "xpos_abf"])
def test_phases_survive_lightnings_low_precision(scheme, precision):
    """The tables of a forward inside `Trainer.fit`, at the far end of the positions."""
    position = dict(SETTINGS[scheme]) | FAR.get(scheme, {})
    model = ModelConfig(
        vocab_size=17, d_model=16, n_layers=2, n_heads=1, n_kv_heads=1, head_dim=16, d_ffn=16, tie_embeddings=True, context=8
    )
    tokens = torch.arange(8)[None]
    batch = Batch(tokens, tokens, torch.zeros_like(tokens), tokens + LAST - 7)
    module = LongContextModule(model, position, OptimConfig(), updates=1)
    seen = []
    encoder = module.pattern.groups[0].encoder
    plain = type(encoder).rotation

    class Watched(type(encoder)):
        def rotation(self, positions, length):
            seen.append(plain(self, positions, LAST + 1))
            return seen[-1]

    module.pattern = as_pattern(Watched(**vars(encoder)))
    trainer = lightning.Trainer(
        accelerator="cpu",
        precision=precision,
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader([batch], batch_size=None))
    assert len(seen) == 1  # one rotation for all layers
    assert next(module.model.parameters()).dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
    check_position(encoder, seen[0], -1)


# --------------------------------------------------------------------------------------------------------- xPos's range


CENTRED = {"scheme": "xpos", "scale_base": 512, "centre": 32_800}


def test_xpos_holds_65k_positions_centred_at_scale_base_512():
    """|ln ζ_0| = ln 3.5 = 1.2528; fp32's normal numbers end at 2^±126, of which 2^10 is for queries and keys: e^±80.41, so 80.41 · 512 / 1.2528 = 32,861
    positions each way."""
    for length in (1000, 65_601, 65_662):
        tables = build(CENTRED, 64).rotation(torch.tensor([[0, length // 2, length - 1]]), length)
        assert all(bool(table.isfinite().all()) for table in tables)
        assert all(float(table.abs().max()) > 0 for table in tables)
        # what was scaled up comes down again: cos_q · cos_k + sin_q · sin_k = 1
        unit = tables.cos_q.double() * tables.cos_k.double() + tables.sin_q.double() * tables.sin_k.double()
        torch.testing.assert_close(unit, torch.ones_like(unit), atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="holds up to 65,662 tokens, not 65,663: its powers .* range of fp32 and bf16"):
        build(CENTRED, 64).rotation(torch.arange(4)[None], 65_663)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_xpos_has_room_for_queries_and_keys(dtype):
    """Of 100 a component, at both ends of the longest context: within either, and of the last query to all."""
    with pytest.raises(UserError) as refused:
        build(CENTRED, 64).require_length(10**9)
    longest = int(re.search(r"holds up to ([\d,]+)", str(refused.value))[1].replace(",", ""))
    ends = torch.cat([torch.arange(32), torch.arange(longest - 32, longest)])[None]
    rotation = build(CENTRED, 64).rotation(ends, longest)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (100 * torch.randn(1, 2, 64, 64, generator=generator).sign().to(dtype) for _ in range(3))
    q, k = apply_rotary(q, rotation.cos_q, rotation.sin_q), apply_rotary(k, rotation.cos_k, rotation.sin_k)
    assert bool(q.isfinite().all() and k.isfinite().all())
    for queries, keys in ((slice(32), slice(32)), (slice(32, 64), slice(32, 64)), (slice(63, 64), slice(64))):
        out = attention(q[:, :, queries], k[:, :, keys], v[:, :, keys], AttentionMask())
        assert bool(out.isfinite().all())


@pytest.mark.parametrize(
    ("changed", "length", "largest"),
    [
        ({}, 40_000, "32,862"),
        ({"centre": 100_000}, 131_072, "0"),
        ({"scale_base": 256}, 20_000, "16,431"),
        ({"gamma": 0.1}, 20_000, "17,169"),
    ],
)
def test_xpos_out_of_range_is_refused_before_anything_runs(changed, length, largest):
    position = {"scheme": "xpos_abf"} | changed
    with pytest.raises(UserError, match=f"holds up to {largest} tokens, not {length:,}"):
        spelt_out(position, 64, length=length)
    spelt_out(position | {"scale_base": 4096, "centre": length / 2}, 64, length=length)
