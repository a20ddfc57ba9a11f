"""Every scheme against an oracle that we did not write; one row per scheme in the tables below."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lit_long.config import UserError
from lit_long.positions import SCHEMES, build, rotate

LAST = 131_071

# scheme settings, head_dim, {index: inverse frequency}: values computed by hand from the papers' formulas (or printed by
# transformers 5.23), to 7 digits.
TABLE = [
    ({"scheme": "rope", "base": 10_000}, 128, {0: 1.0, 1: 0.8659643, 16: 0.1, 32: 1e-2, 63: 1.154782e-4}),
    ({"scheme": "pi", "base": 10_000, "factor": 8}, 128, {0: 0.125, 1: 0.1082455, 32: 1.25e-3, 63: 1.443477e-5}),
    ({"scheme": "abf", "base": 500_000}, 128, {0: 1.0, 1: 0.8146172, 16: 3.760603e-2, 32: 1.414214e-3, 63: 2.455141e-6}),
    ({"scheme": "xpos_abf", "base": 500_000}, 128, {0: 1.0, 1: 0.8146172, 16: 3.760603e-2, 63: 2.455141e-6}),
]
SETTINGS = {row[0]["scheme"]: row[0] for row in TABLE}


@pytest.mark.parametrize(("position", "head_dim", "values"), TABLE, ids=[row[0]["scheme"] for row in TABLE])
def test_frequencies(position, head_dim, values):
    frequencies = build(position, head_dim).inverse_frequencies(4096)
    assert len(frequencies) == head_dim // 2
    for index, value in values.items():
        assert frequencies[index] == pytest.approx(value, rel=1e-6)


def test_table_has_a_row_for_every_scheme():
    assert set(SETTINGS) == set(SCHEMES)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("base", [625.0, 10_000.0, 500_000.0])
@pytest.mark.parametrize("factor", [2.0, 8.0])
def test_pi_is_transformers_linear_scaling(head_dim, base, factor):
    config = LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        head_dim=head_dim,
        rope_parameters={"rope_type": "linear", "rope_theta": base, "factor": factor},
    )
    expected, attention_factor = ROPE_INIT_FUNCTIONS["linear"](config, torch.device("cpu"))
    ours = build({"scheme": "pi", "base": base, "factor": factor}, head_dim).inverse_frequencies(4096)
    assert attention_factor == 1.0
    np.testing.assert_allclose(ours, expected.double().numpy(), rtol=1e-6)


@pytest.mark.parametrize("scheme", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_phases_at_the_last_position_survive_casts(scheme, dtype):
    """Closed form at position 131,071 in fp64, also for an encoder inside a model that was cast to bf16."""
    encoder = build(SETTINGS[scheme] | ({"centre": LAST, "scale_base": 4096} if scheme == "xpos_abf" else {}), 64)
    holder = torch.nn.Linear(2, 2)
    holder.encoder = encoder
    holder.to(dtype)
    rotation = holder.encoder.rotation(torch.tensor([[LAST]]), LAST + 1)
    for index, frequency in enumerate(encoder.inverse_frequencies(LAST + 1)):
        assert float(rotation.cos_q[0, 0, index]) == pytest.approx(math.cos(LAST * frequency), abs=1e-6)
        assert float(rotation.sin_k[0, 0, index]) == pytest.approx(math.sin(LAST * frequency), abs=1e-6)
    assert rotation.cos_q.dtype == torch.float32


def scores(encoder, q, k, positions):
    """Attention scores [T, T] of one query and one key vector placed at every position."""
    rotation = encoder.rotation(positions[None], 2048)
    count = len(positions)
    q_rotated = rotate(q.expand(1, 1, count, -1), rotation.cos_q, rotation.sin_q)[0, 0]
    k_rotated = rotate(k.expand(1, 1, count, -1), rotation.cos_k, rotation.sin_k)[0, 0]
    return q_rotated.double() @ k_rotated.double().T


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 1500), st.sampled_from(sorted(SETTINGS)))
def test_scores_depend_on_distance_alone(seed, offset, scheme):
    generator = torch.Generator().manual_seed(seed)
    encoder = build(SETTINGS[scheme] | ({"centre": 1024} if scheme == "xpos_abf" else {}), 64)
    q, k = torch.randn(2, 64, generator=generator)
    near = scores(encoder, q, k, torch.arange(0, 32))
    far = scores(encoder, q, k, torch.arange(0, 32) + offset)
    causal = torch.ones(32, 32).tril().bool()
    torch.testing.assert_close(near[causal], far[causal], atol=2e-4, rtol=2e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["rope", "pi", "abf"]))
def test_rotation_keeps_norms(seed, scheme):
    x = torch.randn(2, 3, 40, 64, generator=torch.Generator().manual_seed(seed))
    rotation = build(SETTINGS[scheme], 64).rotation(torch.arange(40).expand(2, 40), 40)
    torch.testing.assert_close(rotate(x, rotation.cos_q, rotation.sin_q).norm(dim=-1), x.norm(dim=-1))


def test_neutral_settings_are_rope():
    rope = build({"scheme": "rope", "base": 10_000}, 64)
    positions = torch.arange(100)[None]
    for position in ({"scheme": "pi", "base": 10_000, "factor": 1}, {"scheme": "abf", "base": 10_000}):
        for ours, expected in zip(build(position, 64).rotation(positions, 100), rope.rotation(positions, 100), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    # xPos's scale tends to 1 as its base grows
    flat = build({"scheme": "xpos_abf", "base": 10_000, "scale_base": 1e12}, 64)
    for ours, expected in zip(flat.rotation(positions, 100), rope.rotation(positions, 100), strict=True):
        torch.testing.assert_close(ours, expected)


def published_xpos(x, positions, base, gamma, scale_base, downscale):
    """xPos as published, in complex numbers on interleaved pairs (2j, 2j+1); fp64."""
    half = x.shape[-1] // 2
    pairs = torch.view_as_complex(x.double().unflatten(-1, (half, 2)).contiguous())
    j = torch.arange(half, dtype=torch.float64)
    zeta = (2 * j + gamma * 2 * half) / ((1 + gamma) * 2 * half)
    power = positions.double()[:, None] / scale_base * (-1 if downscale else 1)
    phase = positions.double()[:, None] * base ** (-2 * j / (2 * half))
    return pairs * zeta**power * torch.polar(torch.ones_like(phase), phase)


def test_xpos_is_the_published_one_on_permuted_components():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 200, 64, generator=generator)
    positions = torch.arange(200)
    encoder = build({"scheme": "xpos_abf", "base": 500_000, "gamma": 0.4, "scale_base": 512, "centre": 0}, 64)
    rotation = encoder.rotation(positions[None], 200)
    half_split = torch.cat((torch.arange(0, 64, 2), torch.arange(1, 64, 2)))  # interleaved → our layout
    for x, cos, sin, downscale in ((q, rotation.cos_q, rotation.sin_q, False), (k, rotation.cos_k, rotation.sin_k, True)):
        expected = torch.view_as_real(published_xpos(x, positions, 500_000, 0.4, 512, downscale)).flatten(-2)
        ours = rotate(x[None, None, :, half_split], cos, sin)[0, 0]
        torch.testing.assert_close(ours.double(), expected[:, half_split], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ({"scheme": "yarrn"}, "unknown position.scheme 'yarrn'"),
        ({"base": 10}, "position.scheme is missing"),
        ({"scheme": "pi", "factr": 8}, "unknown key 'position.factr'; did you mean 'position.factor'"),
        ({"scheme": "pi", "factor": 0.5}, "position.factor must be at least 1"),
        ({"scheme": "rope", "base": 1}, "position.base must be above 1"),
        ({"scheme": "rope", "base": "big"}, "position.base must be a number"),
        ({"scheme": "no_such_module:Encoder"}, "cannot be imported"),
        ({"scheme": "math:sqrt"}, "must be a dataclass derived from PositionalEncoder"),
        ({"scheme": "rope", "head_dim": 3}, "unknown key 'position.head_dim'"),
    ],
)
def test_bad_settings_are_named(position, message):
    with pytest.raises(UserError, match=message):
        build(position, 64)


def test_odd_heads_are_refused():
    with pytest.raises(UserError, match="head_dim must be even"):
        build({"scheme": "rope"}, 63)
