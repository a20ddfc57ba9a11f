"""All schemes, one class each: RoPE itself, no positions at all, other bases and frequencies, xPos; then those that stretch a trained range.

d = head_dim, j = 0 … d/2 − 1, θ_j = base^(−2j/d). Sources: Su et al. 2021 (RoPE); Xiong et al. 2023, §4.1 and App. B (ABF);
Sun et al. 2022 (xPos); Kazemnejad et al. 2023 (NoPE); Barbero et al. 2024, 2410.06205 (p-RoPE); Pal et al. 2023 and the code released
with it (Giraffe: power and truncated basis).

Schemes that stretch a range, L = ``original`` context in tokens, s = ``factor`` = new context / L, so that with s = 1 each is RoPE: Chen et
al. 2023 (PI); bloc97 and emozilla 2023, written up by Peng et al. 2023, 2309.00071 (NTK-aware, dynamic, by parts, YaRN); Ding et al.
2024, 2402.13753 (LongRoPE); Dubey et al. 2024, 2407.21783, with the code released (Llama 3.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from lit_long.config import UserError
from lit_long.config.ranges import Base, Count, Finite, NotNegative, Positive, Range, Share
from lit_long.positions.encoder import PositionalEncoder, Rotation

if TYPE_CHECKING:
    from torch import Tensor

Stretch = Annotated[float, Range(least=1, note="new context / old context")]
LARGEST_EXPONENT = 116 * math.log(2)  # e^±this are normal numbers in fp32 and bf16 alike, also times 2^10: queries and keys


@dataclass(frozen=True)
class RoPE(PositionalEncoder):
    """Rotary position embedding: θ_j = base^(−2j/d)."""

    base: Base = 10_000.0

    def inverse_frequencies(self, length: int) -> list[float]:
        return [self.base ** (-2 * j / self.head_dim) for j in range(self.head_dim // 2)]


@dataclass(frozen=True)
class NoPE(PositionalEncoder):
    """No positions: every θ_j = 0. Order reaches the model through causality alone."""

    def inverse_frequencies(self, length: int) -> list[float]:
        return [0.0] * (self.head_dim // 2)


@dataclass(frozen=True)
class ALiBi(NoPE):
    """ALiBi (Press et al. 2022): no rotation, but the score of a query at i and a key at j loses m_h·(i − j).

    m_h = 2^(−8h/H) of head h = 1 … H; where H is no power of two, those of the largest power below it, and between them every second one of twice as many
    (as released). On CPUs only, and up to 65,536 tokens, which bf16 can tell apart in two pieces (model/attention.py).
    """

    def score_slopes(self, heads: int) -> list[float]:
        whole = 1 << (heads.bit_length() - 1)
        between = [2 ** (-4 * (2 * h - 1) / whole) for h in range(1, heads - whole + 1)]
        return [2 ** (-8 * h / whole) for h in range(1, whole + 1)] + between

    def require_length(self, length: int) -> None:
        if length > 2**16:
            raise UserError(f"position: alibi holds up to 65,536 tokens, not {length:,}")


@dataclass(frozen=True)
class AdjustedBaseFrequency(RoPE):
    """ABF: RoPE whose base is raised before long training (10,000 → 500,000 in LLaMA 2 Long)."""

    base: Base = 500_000.0


@dataclass(frozen=True)
class PartialRoPE(RoPE):
    """p-RoPE: the highest ``fraction`` of the frequencies rotate, the others are 0 (components without positions)."""

    fraction: Share = 0.75  # 0: no positions, 1: RoPE

    def inverse_frequencies(self, length: int) -> list[float]:
        kept = int(self.fraction * self.head_dim / 2)
        return [frequency if j < kept else 0.0 for j, frequency in enumerate(super().inverse_frequencies(length))]


@dataclass(frozen=True)
class PowerBasis(RoPE):
    """Giraffe's power basis: θ_j·(1 − j/(d/2))^k, which slows the slow pairs most."""

    k: NotNegative = 0.5  # 0: RoPE

    def inverse_frequencies(self, length: int) -> list[float]:
        half = self.head_dim // 2
        return [frequency * (1 - j / half) ** self.k for j, frequency in enumerate(super().inverse_frequencies(length))]


@dataclass(frozen=True)
class TruncatedBasis(RoPE):
    """Giraffe's truncated basis: θ_j where θ_j ≥ b, ``rho`` where a ≤ θ_j < b, 0 below a; all in radians per token.

    Pairs that do not make a full rotation within T = ``truncate`` tokens are not trusted. As in the released code b = 2π/T, a = b/8 and
    rho = b/16 unless given; rho is a plateau, below a itself, not a ramp.
    """

    truncate: Count = 2048
    a: NotNegative | None = None
    b: NotNegative | None = None
    rho: NotNegative | None = None

    def validate(self) -> None:
        a, b, _ = self.cuts()
        if a > b:
            raise UserError(f"position: truncated needs 0 ≤ a ≤ b (radians per token), not a={a}, b={b}")

    def cuts(self) -> tuple[float, float, float]:
        """a, b and rho, radians per token."""
        slowest = 2 * math.pi / self.truncate
        a, b, rho = slowest / 8, slowest, slowest / 16
        return (
            a if self.a is None else self.a,
            b if self.b is None else self.b,
            rho if self.rho is None else self.rho,
        )

    def inverse_frequencies(self, length: int) -> list[float]:
        a, b, rho = self.cuts()
        return [f if f >= b else rho if f >= a else 0.0 for f in super().inverse_frequencies(length)]


@dataclass(frozen=True)
class XPos(RoPE):
    """xPos: RoPE with queries scaled by ζ_j^p and keys by ζ_j^−p, so that scores carry the decay ζ_j^((m−n)/scale_base).

    ζ_j = (2j/d + gamma) / (1 + gamma) and p = (position − centre) / scale_base. ``centre`` cancels in every score; it only
    keeps the powers within the number range, so it is a setting of the run and never follows the live length: keys in a cache
    stay right. Lengths whose powers would leave the range of fp32 and bf16 (the same) are refused; fp16, which holds far less,
    is not supported.
    """

    gamma: Positive = 0.4
    scale_base: Positive = 512.0
    centre: Finite = 0.0

    def require_length(self, length: int) -> None:
        reach = LARGEST_EXPONENT * self.scale_base / math.log1p(1 / self.gamma)  # tokens from the centre; ζ_0 = 1/(1 + 1/γ)
        if max(abs(self.centre), abs(length - 1 - self.centre)) <= reach:
            return
        largest = math.floor(self.centre + reach) + 1 if abs(self.centre) <= reach else 0
        raise UserError(
            f"position: xPos with scale_base={self.scale_base:g} and centre={self.centre:g} holds up to {largest:,} tokens, not "
            f"{length:,}: its powers ζ^±((position − centre)/scale_base) would leave the range of fp32 and bf16. With its centre in "
            f"the middle (centre={length / 2:g}) it holds {2 * math.floor(reach) + 1:,}, and more in proportion to scale_base"
        )

    def rotation(self, positions: Tensor, length: int) -> Rotation:
        import torch

        self.require_length(length)
        cos, sin = self.cos_sin(positions, length)
        pairs = torch.arange(self.head_dim // 2, dtype=torch.float64, device=positions.device)
        zeta = (2 * pairs / self.head_dim + self.gamma) / (1 + self.gamma)
        power = (positions.to(torch.float64)[..., None] - self.centre) / self.scale_base
        scale = zeta**power
        return Rotation(*(table.float() for table in (cos * scale, sin * scale, cos / scale, sin / scale)))


@dataclass(frozen=True)
class XPosABF(XPos):
    """xPos on ABF frequencies (LLaMA 2 Long, §4.1): `XPos` with the raised base."""

    base: Base = 500_000.0


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
        half, reach = self.head_dim // 2, round(self.factor * self.original)
        for name, factors in (("short_factors", self.short_factors), ("long_factors", self.long_factors)):
            if len(factors) != half:
                raise UserError(
                    f"position.{name}: longrope needs a list of {half} factors above 0, one for each pair of components, searched for "
                    f"this very model; it was given {len(factors)}. `python -m lit_long.theory search=longrope stage=FOLDER length={reach} "
                    f"out=DIR` finds some for a trained stage (FOLDER: runs/stages/train-…); then position=DIR/longrope.yaml has them"
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
