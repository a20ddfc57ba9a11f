"""The theory of positional encoders against numbers worked out elsewhere and against direct complex arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_long.config import ModelConfig, compose_layers
from lit_long.positions import build, theory
from lit_long.positions.analysis import TheoryConfig, patterns, statements, temperatures
from lit_long.positions.layers import LayerPattern, build_layers
from lit_long.positions.query_scale import ConstantScale, FloorLogScale, LogScale

DISTANCES = [0, 1, 100, 1_000, 5_000, 10_000, 30_000]
XPOS = {"gamma": 0.4, "scale_base": 512.0}
# (1/√d)·Σ 2 cos(mθ_j)·ζ_j^(m/512) for d = 128, computed apart from this code.
DECAY = {
    "rope": ({"scheme": "rope", "base": 1e4}, [11.314, 10.977, 5.399, 1.799, -0.079, -0.316, -1.058]),
    "pi 1/8": ({"scheme": "pi", "base": 1e4, "factor": 8}, [11.314, 11.308, 7.490, 4.724, 1.191, 2.373, 0.439]),
    "pi 1/4": ({"scheme": "pi", "base": 1e4, "factor": 4}, [11.314, 11.292, 6.655, 3.474, 2.373, 0.787, -0.167]),
    "abf": ({"scheme": "abf", "base": 5e5}, [11.314, 11.064, 6.913, 5.569, 3.316, 2.116, 0.370]),
    "xpos": ({"scheme": "xpos", "base": 1e4} | XPOS, [11.314, 10.966, 5.137, 1.841, 0.351, -0.060, -0.106]),
    "xpos_abf": ({"scheme": "xpos_abf", "base": 5e5} | XPOS, [11.314, 11.053, 6.554, 3.631, 1.294, 0.675, 0.186]),
}
GRANULARITY = [(1e4, 1, 0.1094), (5e5, 1, 0.0788), (1e4, 1 / 4, 0.0290), (1e4, 1 / 8, 0.01456)]


def image(x: np.ndarray, frequencies: np.ndarray, t: float) -> np.ndarray:
    """f(x, t), straight from App. B."""
    return (x[0::2] + 1j * x[1::2]) * np.exp(1j * frequencies * t)


def angle_sine(a: np.ndarray, b: np.ndarray) -> float:
    """sin∠(a, b) = Im⟨a, b⟩ / (|a|·|b|)."""
    return float(np.imag(np.sum(a * b.conj())) / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("name", DECAY)
def test_decay(name):
    position, expected = DECAY[name]
    found = theory.scores(build(position, 128), DISTANCES, 32_768)
    assert found == pytest.approx(expected, abs=2e-3)


def test_the_scale_base_of_xpos_is_what_figure_4_shows():
    """Like ABF, smooth, at 2 to 4 at long range: between context/5.5 and context/2.5 (docs/positional-encoders.md)."""
    distances = range(10_000, 20_001, 20)

    def curve(**position):
        found = theory.scores(build({"base": 5e5, **position}, 128), distances, 32_768)
        return found.mean(), found.std()

    abf = curve(scheme="abf")
    fits = {
        scale_base: 2 <= mean <= abf[0] and deviation < abf[1] / 2
        for scale_base in (512, 4096, 6144, 8192, 13_000, 16_384)
        for mean, deviation in [curve(scheme="xpos_abf", scale_base=scale_base)]
    }
    assert [scale_base for scale_base, fit in fits.items() if fit] == [6144, 8192, 13_000]
    assert 32_768 / 5.5 < 6144 < 13_000 < 32_768 / 2.5


def test_score_is_the_product_of_rotated_ones():
    """Against the encoder's own rotation tables, attention factor and xPos scales included."""
    import torch

    for position in ({"scheme": "yarn", "factor": 4.0, "original": 64}, {"scheme": "xpos_abf"} | XPOS, {"scheme": "nope"}):
        encoder = build(position, 16)
        rotation = encoder.rotation(torch.tensor([[0, 37]]), 256)
        q = torch.complex(rotation.cos_q, rotation.sin_q)[0, 1] * (1 + 1j)
        k = torch.complex(rotation.cos_k, rotation.sin_k)[0, 0] * (1 + 1j)
        assert theory.scores(encoder, [37], 256)[0] == pytest.approx(float((q * k.conj()).real.sum()) / 4, rel=1e-5)


@pytest.mark.parametrize(("base", "alpha", "expected"), GRANULARITY)
def test_granularity(base, alpha, expected):
    assert theory.granularity(theory.thetas(128, base, alpha)) == pytest.approx(expected, abs=5e-5)


def test_granularity_limits():
    assert theory.granularity_limit(5e5) == pytest.approx(0.0721, abs=5e-5)
    assert theory.granularity_limit(1e4, 1 / 4) == pytest.approx(0.02705, abs=5e-6)


def test_theorem_1_on_gaussian_draws():
    """The corrected bounds hold around the angle computed from the complex images, at any position."""
    random = np.random.default_rng(1)
    for base, alpha in [(1e4, 1), (5e5, 1), (1e4, 1 / 4), (1e4, 1 / 8)]:
        frequencies = theory.thetas(128, base, alpha)
        for x in random.normal(size=(1000, 128)):
            n = int(random.integers(4096))
            sine = angle_sine(image(x, frequencies, n + 1), image(x, frequencies, n))
            low, high = theory.theorem_1(x, frequencies)
            assert low <= sine <= high
            assert theory.sine_similarity(x, frequencies) == pytest.approx(sine, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=8, max_size=8).filter(lambda x: max(map(abs, x)) > 1e-3), st.floats(2, 1e7))
def test_theorem_1_on_any_vector(x, base):
    low, high = theory.theorem_1(np.array(x), frequencies := theory.thetas(8, base))
    sine = theory.sine_similarity(np.array(x), frequencies)
    assert low - 1e-12 <= sine <= high + 1e-12


def test_printed_theorem_1_fails_for_ones():
    frequencies = theory.thetas(128, 5e5)
    upper = theory.printed_bounds(np.ones(128), frequencies)[1]
    assert upper == pytest.approx(0.0394, abs=5e-5)
    assert theory.sine_similarity(np.ones(128), frequencies) == pytest.approx(0.0788, abs=5e-5)
    assert theory.theorem_1(np.ones(128), frequencies) == pytest.approx((0.0788, 0.0788), abs=5e-5)  # tight there


def test_base_bound():
    assert theory.bound_curve([1e4, 5e5, 1e6, 3.1e5, 6.4e5], 128) == [
        (1e4, 1_707),
        (5e5, 18_438),
        (1e6, 27_115),
        (3.1e5, 12_223),
        (6.4e5, 27_685),
    ]


def test_theta_1_and_critical_dimension():
    assert theory.thetas(128, 5e5)[1] / theory.thetas(128, 1e4)[1] == pytest.approx(0.94071, abs=1e-5)
    assert theory.critical_dimension(128, 1e4, 4096) == 92


def test_adaptation_distance_against_all_pairs():
    """Brute force over complex images of a small case."""
    trained = theory.thetas(8, 100.0)
    encoder = build({"scheme": "yarn", "base": 100.0, "factor": 4.0, "original": 32}, 8)
    x = np.ones(8) / np.sqrt(8)
    factor = encoder.attention_factor(128)
    pairs = [
        [np.linalg.norm(image(x, trained, k) - factor * image(x, theory.spectrum(encoder, 128), j)) for k in range(32)]
        for j in range(128)
    ]
    expected = np.min(pairs, axis=1)
    found = theory.adaptation_distances(trained, encoder, 32, 128, samples=2000)
    assert len(found) == 128 and found == pytest.approx(expected, abs=1e-7)


def test_adaptation_is_nil_for_what_was_trained_and_small_for_interpolation():
    trained = theory.thetas(128, 1e4)
    distance = {
        name: theory.adaptation_distances(trained, build({"scheme": name, "base": 1e4} | more, 128), 4096, length, 64).max()
        for name, more, length in [("rope", {}, 4096), ("pi", {"factor": 8.0}, 32_768)]
    }
    beyond = theory.adaptation_distances(trained, build({"scheme": "rope", "base": 1e4}, 128), 4096, 32_768, 64).max()
    assert distance["rope"] == pytest.approx(0, abs=1e-6)
    assert 0 < distance["pi"] < beyond < 2**0.5


def test_helix():
    plain, interpolated, slower = theory.helix(0.2), theory.helix(0.2, alpha=0.25), theory.helix(0.1)
    assert plain.dots.shape == (11, 3)
    assert plain.dots[8] == pytest.approx([np.cos(3), np.sin(3), np.sin(0.6)])  # n = 3
    assert interpolated.dots[9] == pytest.approx(plain.dots[6])
    assert slower.dots[:, :2] == pytest.approx(plain.dots[:, :2]) and slower.dots[9, 2] == pytest.approx(plain.dots[7, 2])


def test_statements_and_their_verdicts():
    found = {row["statement"]: row for row in statements()}
    verdicts = [row["verdict"].split(":")[0] for row in found.values()]
    assert verdicts.count("misprint") == 2 and "fails" not in verdicts
    assert any("18,438" in row["ours"] for row in found.values())
    assert any("1000 of 1,000" in row["ours"] for row in found.values())


def seen(pattern: LayerPattern, layers: int, context: int, positioned: bool) -> list[int]:
    """Tokens on which the last token's output depends after each layer, by following every mask."""
    back = np.arange(context)[:, None] - np.arange(context)
    depends, found = np.eye(context, dtype=bool), []
    for layer in range(layers):
        group = pattern.groups[pattern.place(layer)]
        if any(group.encoder.inverse_frequencies(context)) or not positioned:
            depends = ((back >= 0) & (back < (group.window or context))) @ depends
        found.append(int(depends[-1].sum()))
    return found


@pytest.mark.parametrize("option", ["swan", "rnope_swa", "gemma3", "smollm3"])
def test_reach_is_what_the_masks_let_through(option):
    config = TheoryConfig(length=64, factor=2, head_dim=8, layers=[option], n_layers=7)
    rows, _ = patterns(config)
    model = ModelConfig(head_dim=8, context=64, n_layers=7)
    pattern = build_layers(compose_layers(option, model, 128), {"scheme": "rope", "base": 1e4}, 8, length=128)
    assert [row["reach"] for row in rows] == seen(pattern, 7, 128, False)
    assert [row["positioned"] for row in rows] == seen(pattern, 7, 128, True)
    for row in rows:
        window = row["window"] or 128
        assert row["pairs"] == pytest.approx(sum(min(query, window) for query in range(1, 129)) / sum(range(1, 129)))


def test_query_scales_are_those_of_the_model():
    rows = temperatures(TheoryConfig(length=4096, factor=8))
    contexts = torch.tensor([row["context"] for row in rows if row["form"] == "DroPE, c = 0.412"])
    assert contexts[0] == 1024 and contexts[-1] == 65536
    forms = {"SWAN, a = 256": LogScale(256.0), "SWAN, a = 4,096": LogScale(4096.0), "Llama 4, c = 0.1": FloorLogScale()}
    for form, scale in forms.items():
        ours = [row["beta"] for row in rows if row["form"] == form]
        torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), scale.factors((contexts - 1).double()))
    for c in (0.412, 0.103):
        ours = {row["context"]: row["beta"] for row in rows if row["form"] == f"DroPE, c = {c}"}
        assert ours[1024] == ours[4096] == 1
        for context in (8192, 65536):
            assert ours[context] == pytest.approx(
                ConstantScale(c, context / 4096).factors(torch.zeros(1, dtype=torch.float64)).item()
            )
