"""Schemes that stretch a trained range: slower pairs for a context ``factor`` times the ``original`` one. One class each.

d = head_dim, j = 0 … d/2 − 1, θ_j = base^(−2j/d), L = ``original`` context in tokens, s = ``factor`` = new context / L. Sources: Chen et
al. 2023 (PI); bloc97 and emozilla 2023, written up by Peng et al. 2023, 2309.00071 (NTK-aware, dynamic, by parts, YaRN); Ding et al.
2024, 2402.13753 (LongRoPE); Dubey et al. 2024, 2407.21783, with the code released (Llama 3.1). With s = 1 each is RoPE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from lit_long.config import UserError
from lit_long.config.ranges import Count, NotNegative, Positive, Range
from lit_long.positions.schemes import RoPE

Stretch = Annotated[float, Range(least=1, note="new context / old context")]


@dataclass(frozen=True)
class PositionInterpolation(RoPE):
    """Position interpolation: θ_j / s, positions squeezed into the range that the model was trained on."""

    factor: Stretch = 8.0

    def inverse_frequencies(self, length: int) -> list[float]:
        return [frequency / self.factor for frequency in super().inverse_frequencies(length)]


@dataclass(frozen=True)
class NTKAware(RoPE):
    """NTK-aware: base·s^(d/(d−2)), so that the fastest pair keeps its frequency and the slowest is divided by s."""

    factor: Stretch = 8.0

    def validate(self) -> None:
        super().validate()
        self.require(self.head_dim > 2, "head_dim", "above 2")

    def inverse_frequencies(self, length: int) -> list[float]:
        slowdown = self.scale(length) ** (-2 / (self.head_dim - 2))  # of pair j: its j-th power
        return [frequency * slowdown**j for j, frequency in enumerate(super().inverse_frequencies(length))]

    def scale(self, length: int) -> float:
        """By how much the slowest pair is slowed in a context of ``length`` tokens."""
        return self.factor


@dataclass(frozen=True)
class DynamicNTK(NTKAware):
    """Dynamic NTK: NTK-aware with s·length/L − (s − 1) in the place of s, from the live length; RoPE up to L.

    With s = 1 that is length/L, just as much as is needed. A cache must hold keys that are not yet rotated.
    """

    factor: Stretch = 1.0
    original: Count = 4096

    def scale(self, length: int) -> float:
        return self.factor * max(length, self.original) / self.original - (self.factor - 1)


@dataclass(frozen=True)
class NTKByParts(PositionInterpolation):
    """NTK-by-parts, the formula of the YaRN paper: (1 − γ)·θ_j/s + γ·θ_j, γ a ramp in r = L·θ_j/2π, the rotations within L.

    γ = 0 for r < ``alpha``, 1 for r > ``beta``, linear in r between: pairs with many rotations stay, those with less than one are
    interpolated.
    """

    original: Count = 4096
    alpha: NotNegative = 1.0
    beta: Positive = 32.0

    def validate(self) -> None:
        super().validate()
        self.require(self.beta > self.alpha, "beta", f"above alpha={self.alpha:g} (rotations)")

    def kept(self) -> list[float]:
        """γ of every pair: the share of θ_j that stays as it was."""
        rotations = [self.original * frequency / (2 * math.pi) for frequency in RoPE.inverse_frequencies(self, self.original)]
        return [min(1.0, max(0.0, (r - self.alpha) / (self.beta - self.alpha))) for r in rotations]

    def inverse_frequencies(self, length: int) -> list[float]:
        plain = RoPE.inverse_frequencies(self, length)
        return [f * (gamma + (1 - gamma) / self.factor) for f, gamma in zip(plain, self.kept(), strict=True)]


@dataclass(frozen=True)
class YaRN(NTKByParts):
    """YaRN as released: by parts, with a ramp linear in the pair's index j, and sharper attention.

    The ramp runs from ⌊j(beta)⌋ to ⌈j(alpha)⌉, where j(r) = d·ln(L/2πr) / (2·ln base) is the pair that rotates r times within L. It
    agrees with the paper's ramp at both ends only. Tables are multiplied by ``attention``, 0.1·ln s + 1 unless given, so scores
    by its square.
    """

    attention: Positive | None = None

    def validate(self) -> None:
        super().validate()
        self.require(self.alpha > 0, "alpha", "above 0 (rotations)")

    def attention_factor(self, length: int) -> float:
        return 0.1 * math.log(self.factor) + 1 if self.attention is None else self.attention

    def kept(self) -> list[float]:
        def pair(rotations: float) -> float:
            return self.head_dim * math.log(self.original / (2 * math.pi * rotations)) / (2 * math.log(self.base))

        low, high = max(math.floor(pair(self.beta)), 0), min(math.ceil(pair(self.alpha)), self.head_dim - 1)
        width = high - low or 0.001
        return [1 - min(1.0, max(0.0, (j - low) / width)) for j in range(self.head_dim // 2)]


@dataclass(frozen=True)
class LongRoPE(PositionInterpolation):
    """LongRoPE: θ_j / λ_j with factors λ found by search for one model, one set up to L tokens and one beyond.

    Tables are multiplied by √(1 + ln s/ln L), as the released models do at every length. There are no default factors.
    """

    original: Annotated[int, Range(least=2, note="tokens")] = 4096
    short_factors: list[Positive] = field(default_factory=list)
    long_factors: list[Positive] = field(default_factory=list)

    def validate(self) -> None:
        super().validate()
        half = self.head_dim // 2
        for name, factors in (("short_factors", self.short_factors), ("long_factors", self.long_factors)):
            if len(factors) != half:
                raise UserError(
                    f"position.{name}: longrope needs a list of {half} factors above 0, one for each pair of components, searched for "
                    f"this very model; it was given {len(factors)}. `python -m lit_long.theory search=longrope` finds some"
                )

    def attention_factor(self, length: int) -> float:
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original))

    def inverse_frequencies(self, length: int) -> list[float]:
        factors = self.short_factors if length <= self.original else self.long_factors
        return [f / stretch for f, stretch in zip(RoPE.inverse_frequencies(self, length), factors, strict=True)]


@dataclass(frozen=True)
class Llama3(PositionInterpolation):
    """Llama 3.1: θ_j/s for wavelengths above L/low_freq_factor, θ_j below L/high_freq_factor, blended between.

    The blend is linear in the rotations r = L·θ_j/2π: (1 − γ)·θ_j/s + γ·θ_j, γ = (r − low) / (high − low).
    """

    original: Count = 8192
    low_freq_factor: NotNegative = 1.0
    high_freq_factor: Positive = 4.0

    def validate(self) -> None:
        super().validate()
        self.require(
            self.high_freq_factor > self.low_freq_factor, "high_freq_factor", f"above low_freq_factor={self.low_freq_factor:g}"
        )

    def inverse_frequencies(self, length: int) -> list[float]:
        parts = NTKByParts(self.head_dim, self.base, self.factor, self.original, self.low_freq_factor, self.high_freq_factor)
        return parts.inverse_frequencies(length)
