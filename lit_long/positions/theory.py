"""What can be said of a positional encoder before any training: the theory of LLaMA 2 Long (Xiong et al. 2023, §4.1 and App. B).

An encoder is seen as the map f(x, t)_j = (x_2j + i·x_2j+1)·exp(i·φ_j·t) from a vector x of d components at position t to d/2 complex
numbers; φ_j are its inverse frequencies in radians per position. Two things are wanted of it when a context is stretched:

* images of neighbouring positions that can be told apart: `granularity`, and Theorem 1 for an arbitrary x, as corrected here;
* images close to those that the model was trained on: `adaptation_distances`;

and besides, scores that do not fade with distance (`scores`, Figure 4). The paper's Theorem 1 misses a normalisation: its
C_d = Σ_j sin φ_j grows with d, and the limits that it states are those of the mean c_d = (2/d)·Σ_j sin φ_j. `printed_bounds` keeps the
printed form, so that it can be shown to fail. Everything is fp64 numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from lit_long.positions.bounds import context_bound
from lit_long.positions.encoder import PositionalEncoder
from lit_long.positions.schemes import XPos

MANY = 2**17  # pairs that stand for d → ∞
BLOCK = 4096  # distances or positions computed at once
GOLDEN = (5**0.5 - 1) / 2
LARGEST_BOUND = 2**18  # tokens: the base-bound curve is cut there


def thetas(head_dim: int, base: float, alpha: float = 1.0) -> np.ndarray:
    """α·base^(−2j/d) for all d/2 pairs, radians per position: RoPE, PI with α < 1, ABF with a higher base."""
    return alpha * base ** (-2 * np.arange(head_dim // 2) / head_dim)


def spectrum(encoder: PositionalEncoder, length: int) -> np.ndarray:
    """φ_j of ``encoder`` in a context of ``length`` tokens, radians per position, fp64 [d/2]."""
    return np.asarray(encoder.inverse_frequencies(length), dtype=np.float64)


def granularity(frequencies: np.ndarray) -> float:
    """c_d = (2/d)·Σ_j sin φ_j: sin∠ between the images of an all-ones x at neighbouring positions (App. B, normalised)."""
    return float(np.sin(frequencies).mean())


def granularity_limit(base: float, alpha: float = 1.0) -> float:
    """c_d for d → ∞, that is ∫ sin(α·base^−u) du over [0, 1]. The paper's α/ln base takes sin φ for φ."""
    return float(np.sin(alpha * base ** (-(np.arange(MANY) + 0.5) / MANY)).mean())


def sine_similarity(x: np.ndarray, frequencies: np.ndarray) -> float:
    """sin∠(f(x, n+1), f(x, n)) = Σ_j (x_2j² + x_2j+1²)·sin φ_j / |x|², for x [d]; it is the same for every n (App. B)."""
    squares = x**2
    return float((squares[0::2] + squares[1::2]) @ np.sin(frequencies) / squares.sum())


def theorem_1(x: np.ndarray, frequencies: np.ndarray) -> tuple[float, float]:
    """Theorem 1 as it holds: min(x²)/mean(x²)·c_d ≤ sin∠ ≤ max(x²)/mean(x²)·c_d, for 0 ≤ φ_j ≤ π. Returns the two bounds."""
    squares, c_d = x**2, granularity(frequencies)
    return float(squares.min() / squares.mean() * c_d), float(squares.max() / squares.mean() * c_d)


def printed_bounds(x: np.ndarray, frequencies: np.ndarray) -> tuple[float, float]:
    """The bounds as printed, min and max of x_k²/|x|²·C_d with C_d = Σ_j sin φ_j: half of what holds. The upper one is wrong."""
    squares, sum_d = x**2, float(np.sin(frequencies).sum())
    return float(squares.min() / squares.sum() * sum_d), float(squares.max() / squares.sum() * sum_d)


def damping(encoder: PositionalEncoder) -> np.ndarray:
    """What scores are multiplied by per token of distance, [d/2]: ζ_j^(1/scale_base) of an xPos encoder's settings, else 1."""
    pairs = 2 * np.arange(encoder.head_dim // 2) / encoder.head_dim
    if not isinstance(encoder, XPos):
        return np.ones_like(pairs)
    return ((pairs + encoder.gamma) / (1 + encoder.gamma)) ** (1 / encoder.scale_base)


def scores(encoder: PositionalEncoder, distances: Iterable[int], length: int) -> np.ndarray:
    """Attention score before the softmax of all-ones query and key at each of ``distances`` (tokens), fp64 [N] (Figure 4).

    a²·(1/√d)·Σ_j 2·cos(m·φ_j)·ζ_j^(m/scale_base): √d at distance 0, times the squared attention factor a of YaRN and LongRoPE.
    """
    frequencies, fading, wanted = spectrum(encoder, length), damping(encoder), np.asarray(list(distances), dtype=np.float64)
    factor = 2 * encoder.attention_factor(length) ** 2 / np.sqrt(encoder.head_dim)
    blocks = (wanted[start : start + BLOCK, None] for start in range(0, len(wanted), BLOCK))
    return np.concatenate([factor * (np.cos(block * frequencies) * fading**block).sum(-1) for block in blocks])


def adaptation_distances(
    trained: np.ndarray, encoder: PositionalEncoder, original: int, length: int, samples: int = 384
) -> np.ndarray:
    """How far images of the stretched map f̂ lie from the nearest image that the model was trained on. fp64 [samples].

    For a unit-length x with all components equal: min over trained positions k < ``original`` of |f(x, k) − f̂(x, j)| at
    ``samples`` positions j spread over 0 … ``length`` − 1. 0 is an image seen in training; √2 is one at right angles to all of them.
    Their maximum is the distance of f̂ from f.

    The paper's d(f, f̂) = max_x min_k,j |f(x, k) − f̂(x, j)| is another matter: for a map without attention factor it is 0, as
    f(x, 0) = x = f̂(x, 0). Hence the maximum over j here, in place of the minimum. xPos, whose queries and keys are scaled
    inversely, counts by its rotation alone.

    Args:
        trained: φ_j of the map f that the model was trained with, [d/2].
        encoder: f̂.
    """
    places = np.unique(
        (np.arange(samples) * GOLDEN % 1 * length).astype(np.int64)
    )  # no stride: multiples of it would be favoured
    new = places[:, None] * spectrum(encoder, length)
    cosine = np.full(len(places), -1.0)
    for start in range(0, original, BLOCK):
        seen = np.arange(start, min(start + BLOCK, original))[:, None] * trained
        pairs = np.cos(new) @ np.cos(seen).T + np.sin(new) @ np.sin(seen).T
        cosine = np.maximum(cosine, pairs.max(axis=1) / len(trained))
    factor = encoder.attention_factor(length)
    return np.sqrt(np.maximum(1 + factor**2 - 2 * factor * cosine, 0))


def critical_dimension(head_dim: int, base: float, original: int) -> int:
    """Components that rotate at least once in ``original`` tokens: 2·⌈(d/2)·log_base(original/2π)⌉ (2310.05209); 92 for Llama 2."""
    return int(2 * np.ceil(head_dim / 2 * np.log(original / (2 * np.pi)) / np.log(base)))


def bound_curve(bases: Iterable[float], head_dim: int) -> list[tuple[float, int]]:
    """(base, L(base)): the longest context by the base-bound criterion (2405.14591), tokens, cut at `LARGEST_BOUND`."""
    return [(base, context_bound(base, head_dim, LARGEST_BOUND)) for base in bases]


class Helix(NamedTuple):
    """A panel of Figure 8: points [N, 3] of the curve (cos t, sin t, sin at), and its images of 11 neighbouring positions."""

    curve: np.ndarray
    dots: np.ndarray


def helix(a: float, alpha: float = 1.0, positions: int = 11) -> Helix:
    """Figure 8: position n = −5 … 5 lies at t = α·n, so that interpolation (α < 1) moves the dots together."""

    def points(t: np.ndarray) -> np.ndarray:
        return np.stack([np.cos(t), np.sin(t), np.sin(a * t)], axis=-1)

    reach = positions // 2
    return Helix(points(np.linspace(-reach, reach, 400)), points(alpha * np.arange(-reach, reach + 1)))
