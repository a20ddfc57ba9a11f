"""The basic schemes: RoPE itself, no positions at all, other bases, other frequencies, and xPos. One class each.

d = head_dim, j = 0 … d/2 − 1, θ_j = base^(−2j/d). Sources: Su et al. 2021 (RoPE); Xiong et al. 2023, §4.1 and App. B (ABF);
Sun et al. 2022 (xPos); Kazemnejad et al. 2023 (NoPE); Barbero et al. 2024, 2410.06205 (p-RoPE); Pal et al. 2023 and the code released
with it (Giraffe: power and truncated basis). Schemes that stretch a trained range are in scaled.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lit_long.config import UserError
from lit_long.config.ranges import Base, Count, Finite, NotNegative, Positive, Share
from lit_long.positions.encoder import PositionalEncoder, Rotation

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_EXPONENT = 126 * math.log(2)  # e^±this are normal numbers in fp32 and bf16 alike


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
