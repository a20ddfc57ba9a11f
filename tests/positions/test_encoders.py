"""Every scheme against values that we did not compute, and the properties that they share; one row per scheme in cases.py."""

from __future__ import annotations

import collections
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_long.config import UserError
from lit_long.positions import SCHEMES, build, rotary
from lit_long.positions import settings as spelt_out
from lit_long.positions.bounds import smallest_base
from lit_long.positions.rotary import apply_rotary
from lit_long.positions.schemes import RoPE
from tests.positions.cases import KEEPS_NORMS, LONG, SETTINGS, SHORT, TABLE

IDS = [row[0]["scheme"] for row in TABLE]


@pytest.mark.parametrize(("position", "values", "attention", "_neutral"), TABLE, ids=IDS)
def test_frequencies(position, values, attention, _neutral):
    encoder = build(position, 128)
    frequencies = encoder.inverse_frequencies(8192)
    assert len(frequencies) == 64
    for index, value in values.items():
        assert frequencies[index] == pytest.approx(value, rel=1e-6), index
    assert encoder.attention_factor(8192) == pytest.approx(attention, rel=1e-7)


def test_table_has_a_row_for_every_scheme():
    assert set(SETTINGS) == set(SCHEMES)


@pytest.mark.parametrize(("position", "_values", "attention", "_neutral"), TABLE, ids=IDS)
def test_tables_are_cosines_of_the_phases_times_the_attention_factor(position, _values, attention, _neutral):
    encoder = build(position, 128)
    positions = torch.tensor([[0, 1, 1024, 2047]])
    rotation = encoder.rotation(positions, 8192)
    if "xpos" in position["scheme"]:  # queries and keys are scaled inversely
        rotation = rotation._replace(cos_q=(rotation.cos_q.double() * rotation.cos_k).abs().sqrt())
    for column, m in enumerate(positions[0].tolist()):
        for pair, frequency in enumerate(encoder.inverse_frequencies(8192)):
            expected = math.cos(m * frequency) * attention
            if "xpos" in position["scheme"]:
                expected = abs(expected)
            assert float(rotation.cos_q[0, column, pair]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("position", "neutral"), [(row[0], row[3]) for row in TABLE if row[3] is not None], ids=IDS[:-2])
def test_neutral_settings_are_rope(position, neutral):
    rope, encoder = build({"scheme": "rope", "base": 10_000}, 128), build(position | neutral, 128)
    positions = torch.arange(3000)[None]
    for ours, expected in zip(encoder.rotation(positions, 8192), rope.rotation(positions, 8192), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-7, rtol=0)


def test_nope_leaves_queries_as_they_are():
    x = torch.randn(1, 2, 10, 64)
    rotation = build({"scheme": "nope"}, 64).rotation(torch.arange(10)[None], 10)
    assert torch.equal(apply_rotary(x, rotation.cos_q, rotation.sin_q), x)


# ----------------------------------------------------------------------------------------------- closed forms, by scheme


def test_giraffes_counts():
    """Pal et al.'s constants at T = 2,048: 41 kept, 14 on the plateau, 9 at 0 (paper.md §2.1)."""
    frequencies = build({"scheme": "truncated", "truncate": 2048}, 128).inverse_frequencies(1)
    assert collections.Counter("zero" if f == 0 else "rho" if f < 2e-4 else "kept" for f in frequencies) == {
        "kept": 41,
        "rho": 14,
        "zero": 9,
    }
    encoder = build({"scheme": "truncated", "truncate": 2048}, 128)
    assert encoder.cuts() == pytest.approx((0.000383495, 0.00306796, 0.000191748), rel=1e-5)
    own = build({"scheme": "truncated", "a": 1e-3, "b": 1e-1, "rho": 5e-2}, 128).inverse_frequencies(1)
    assert own[16] == pytest.approx(0.1) and own[17] == own[48] == 5e-2 and own[49] == 0  # θ_16 = 0.1, θ_48 = 0.001


def test_llama3s_counts():
    plain = build({"scheme": "rope", "base": 500_000}, 128).inverse_frequencies(1)
    ours = build(SETTINGS["llama3"], 128).inverse_frequencies(1)
    ratios = [round(a / b, 9) for a, b in zip(plain, ours, strict=True)]
    assert (ratios.count(1), ratios.count(8), len(ratios) - ratios.count(1) - ratios.count(8)) == (29, 29, 6)


@pytest.mark.parametrize(("original", "low", "high"), [(4096, 20, 46), (2048, 16, 41)])
def test_yarns_ramp_ends(original, low, high):
    plain = build({"scheme": "rope"}, 128).inverse_frequencies(1)
    ours = build({"scheme": "yarn", "factor": 8, "original": original}, 128).inverse_frequencies(1)
    ratios = [round(a / b, 9) for a, b in zip(plain, ours, strict=True)]
    assert ratios.count(1) == low + 1 and ratios.count(8) == 64 - high


@pytest.mark.parametrize(("factor", "expected"), [(2, 1.0693), (4, 1.1386), (8, 1.2079), (16, 1.2773), (32, 1.3466)])
def test_yarns_attention_factor(factor, expected):
    assert build({"scheme": "yarn", "factor": factor}, 128).attention_factor(1) == pytest.approx(expected, abs=5e-5)
    assert build({"scheme": "yarn", "factor": factor, "attention": 1.5}, 128).attention_factor(1) == 1.5


@pytest.mark.parametrize(("factor", "base"), [(2, 20_221), (4, 40_890), (8, 82_685)])
def test_ntk_is_rope_with_another_base(factor, base):
    expected = build({"scheme": "rope", "base": base}, 128).inverse_frequencies(1)
    assert build({"scheme": "ntk", "factor": factor}, 128).inverse_frequencies(1) == pytest.approx(expected, rel=1e-4)


def test_live_lengths():
    dynamic = build({"scheme": "dynamic_ntk", "original": 4096}, 128)
    assert dynamic.inverse_frequencies(100) == dynamic.inverse_frequencies(4096) == RoPE(128).inverse_frequencies(1)
    assert dynamic.inverse_frequencies(32_768) == build({"scheme": "ntk", "factor": 8}, 128).inverse_frequencies(1)
    longrope = build(SETTINGS["longrope"], 128)
    for length, factors in ((4096, SHORT), (4097, LONG)):
        expected = [f / stretch for f, stretch in zip(RoPE(128).inverse_frequencies(1), factors, strict=True)]
        assert longrope.inverse_frequencies(length) == pytest.approx(expected, rel=1e-12)


# --------------------------------------------------------------------------------------------------- shared properties


def small(scheme):
    """The scheme's settings for heads of 64 components."""
    position = dict(SETTINGS[scheme])
    return position | {name: factors[:32] for name, factors in position.items() if isinstance(factors, list)}


def scores(encoder, q, k, positions):
    """Attention scores [T, T] of one query and one key vector placed at every position."""
    rotation = encoder.rotation(positions[None], 2048)
    count = len(positions)
    q_rotated = apply_rotary(q.expand(1, 1, count, -1), rotation.cos_q, rotation.sin_q)[0, 0]
    k_rotated = apply_rotary(k.expand(1, 1, count, -1), rotation.cos_k, rotation.sin_k)[0, 0]
    return q_rotated.double() @ k_rotated.double().T


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 1500), st.sampled_from(sorted(SETTINGS)))
def test_scores_depend_on_distance_alone(seed, offset, scheme):
    generator = torch.Generator().manual_seed(seed)
    encoder = build(small(scheme), 64)
    q, k = torch.randn(2, 64, generator=generator)
    near = scores(encoder, q, k, torch.arange(0, 32))
    far = scores(encoder, q, k, torch.arange(0, 32) + offset)
    causal = torch.ones(32, 32).tril().bool()
    torch.testing.assert_close(near[causal], far[causal], atol=3e-4, rtol=3e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(KEEPS_NORMS))
def test_rotation_keeps_norms(seed, scheme):
    x = torch.randn(2, 3, 40, 64, generator=torch.Generator().manual_seed(seed))
    rotation = build(small(scheme), 64).rotation(torch.arange(40).expand(2, 40), 40)
    torch.testing.assert_close(apply_rotary(x, rotation.cos_q, rotation.sin_q).norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("block", [rotary.BLOCK, 7 * 2 * 3 * 64], ids=["one block", "blocks of 7 tokens"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotate_is_a_complex_product_and_so_is_its_gradient(dtype, block, monkeypatch):
    monkeypatch.setattr(rotary, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 20, 3, 64, generator=generator).to(dtype).transpose(1, 2).requires_grad_()
    upstream = torch.randn(2, 3, 20, 64, generator=generator).to(dtype)
    rotation = build({"scheme": "rope"}, 64).rotation(torch.arange(20).expand(2, 20), 20)
    factor = torch.complex(rotation.cos_q.double(), rotation.sin_q.double())[:, None]

    def product(values, factor):
        rotated = torch.complex(*values.detach().double().chunk(2, -1)) * factor
        return torch.cat((rotated.real, rotated.imag), -1)

    out = apply_rotary(x, rotation.cos_q, rotation.sin_q)
    out.backward(upstream)
    assert out.dtype == x.grad.dtype == dtype
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 1e-2}
    torch.testing.assert_close(out.double(), product(x, factor), **tolerance)
    torch.testing.assert_close(x.grad.double(), product(upstream, factor.conj()), **tolerance)


def published_xpos(x, positions, base, gamma, scale_base, downscale):
    """xPos as published, in complex numbers on interleaved pairs (2j, 2j+1); fp64."""
    half = x.shape[-1] // 2
    pairs = torch.view_as_complex(x.double().unflatten(-1, (half, 2)).contiguous())
    j = torch.arange(half, dtype=torch.float64)
    zeta = (2 * j + gamma * 2 * half) / ((1 + gamma) * 2 * half)
    power = positions.double()[:, None] / scale_base * (-1 if downscale else 1)
    phase = positions.double()[:, None] * base ** (-2 * j / (2 * half))
    return pairs * zeta**power * torch.polar(torch.ones_like(phase), phase)


@pytest.mark.parametrize(("scheme", "base"), [("xpos", 10_000), ("xpos_abf", 500_000)])
def test_xpos_is_the_published_one_on_permuted_components(scheme, base):
    """With its defaults: γ 0.4, scale base 512, centre 0."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 200, 64, generator=generator)
    positions = torch.arange(200)
    rotation = build({"scheme": scheme}, 64).rotation(positions[None], 200)
    half_split = torch.cat((torch.arange(0, 64, 2), torch.arange(1, 64, 2)))  # interleaved → our layout
    for x, cos, sin, downscale in ((q, rotation.cos_q, rotation.sin_q, False), (k, rotation.cos_k, rotation.sin_k, True)):
        expected = torch.view_as_real(published_xpos(x, positions, base, 0.4, 512, downscale)).flatten(-2)
        ours = apply_rotary(x[None, None, :, half_split], cos, sin)[0, 0]
        torch.testing.assert_close(ours.double(), expected[:, half_split], atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ settings

STRETCH = {"base": 10_000, "factor": 8}
DEFAULTS = {  # as published
    "rope": {"base": 10_000},
    "pi": STRETCH,
    "abf": {"base": 500_000},
    "xpos": {"base": 10_000, "gamma": 0.4, "scale_base": 512, "centre": 0},
    "xpos_abf": {"base": 500_000, "gamma": 0.4, "scale_base": 512, "centre": 0},
    "ntk": STRETCH,
    "dynamic_ntk": {"base": 10_000, "factor": 1, "original": 4096},
    "ntk_by_parts": STRETCH | {"original": 4096, "alpha": 1, "beta": 32},
    "yarn": STRETCH | {"original": 4096, "alpha": 1, "beta": 32, "attention": None},
    "llama3": STRETCH | {"original": 8192, "low_freq_factor": 1, "high_freq_factor": 4},
    "p_rope": {"base": 10_000, "fraction": 0.75},
    "power": {"base": 10_000, "k": 0.5},
    "truncated": {"base": 10_000, "truncate": 2048, "a": None, "b": None, "rho": None},
    "nope": {},
    "alibi": {},
}


@pytest.mark.parametrize("scheme", DEFAULTS)
def test_defaults(scheme):
    assert spelt_out({"scheme": scheme}, 128) == {"scheme": scheme} | DEFAULTS[scheme]


def test_base_auto_is_settled_for_the_length():
    position = {"scheme": "yarn", "base": "auto", "factor": 4}
    settled = spelt_out(position, 64, length=2048)
    assert settled["base"] == smallest_base(2048, 64) and settled["factor"] == 4
    build(settled, 64)
    with pytest.raises(UserError, match="base=auto needs a context"):
        build(position, 64)
    with pytest.raises(UserError, match="unknown key 'position.base'"):
        spelt_out({"scheme": "nope", "base": "auto"}, 64, length=2048)


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ({"scheme": "yarrn"}, "unknown position.scheme 'yarrn'; did you mean 'yarn'"),
        ({"base": 10}, "position.scheme is missing"),
        ({"scheme": "pi", "factr": 8}, "unknown key 'position.factr'; did you mean 'position.factor'"),
        ({"scheme": "pi", "factor": 0.5}, "position.factor must be at least 1"),
        ({"scheme": "ntk", "factor": 0.5}, "position.factor must be at least 1"),
        ({"scheme": "rope", "base": 1}, "position.base must be above 1"),
        ({"scheme": "rope", "base": "big"}, "position.base must be a number"),
        ({"scheme": "p_rope", "fraction": 1.5}, "position.fraction must be at least 0 and at most 1"),
        ({"scheme": "power", "k": -1}, "position.k must be at least 0"),
        ({"scheme": "truncated", "a": 1.0, "b": 0.5}, "needs 0 ≤ a ≤ b"),
        ({"scheme": "ntk_by_parts", "alpha": 32}, "position.beta must be above alpha=32"),
        ({"scheme": "llama3", "high_freq_factor": 1}, "position.high_freq_factor must be above"),
        ({"scheme": "dynamic_ntk", "original": 0}, "position.original must be at least 1"),
        (
            {"scheme": "longrope", "factor": 4, "original": 512},
            "position.short_factors.*32 factors.*python -m lit_long.theory search=longrope stage=FOLDER length=2048 out=DIR.*position=DIR/",
        ),
        ({"scheme": "longrope", "short_factors": "???"}, "python -m lit_long.theory search=longrope"),
        ({"scheme": "longrope", "short_factors": [1.0] * 32, "long_factors": [1.0] * 31}, "position.long_factors.*given 31"),
        ({"scheme": "no_such_module:Encoder"}, "cannot be imported"),
        ({"scheme": "math:sqrt"}, "must be a dataclass derived from PositionalEncoder"),
        ({"scheme": "rope", "head_dim": 3}, "unknown key 'position.head_dim'"),
        ({"scheme": "rope", "training": "pose"}, "position.training must be a group"),
        ({"scheme": "rope", "training": {"window": 8}}, "position.training.transform is missing"),
        (
            {"scheme": "rope", "training": {"transform": "posse"}},
            "unknown position.training.transform 'posse'; did you mean 'pose'",
        ),
        ({"scheme": "rope", "training": {"transform": "pose", "windw": 8}}, "did you mean 'position.training.window'"),
        (
            {"scheme": "rope", "training": {"transform": "pose", "window": 8, "target": 4}},
            "training.target must be at least window=8",
        ),
        ({"scheme": "rope", "training": {"transform": "pose", "chunks": 0}}, "training.chunks must be at least 1"),
        ({"scheme": "rope", "training": {"transform": "randomised", "length": "long"}}, "training.length must be a whole number"),
        ({"scheme": "xpos", "training": {"transform": "pose", "target": 100_000}}, "xPos .* not 100,000"),
    ],
)
def test_bad_settings_are_named(position, message):
    with pytest.raises(UserError, match=message):
        build(position, 64)


def test_odd_heads_are_refused():
    with pytest.raises(UserError, match="head_dim must be even"):
        build({"scheme": "rope"}, 63)
    with pytest.raises(UserError, match="head_dim must be above 2"):
        build({"scheme": "ntk"}, 2)
