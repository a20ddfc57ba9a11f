"""The schemes. One class each, with its formula and its source.

d = head_dim, j = 0 … d/2 − 1. Sources: Su et al. 2021 (RoPE); Chen et al. 2023 (PI); Xiong et al. 2023, §4.1 and App. B (ABF);
Sun et al. 2022 (xPos).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lit_long.positions.encoder import PositionalEncoder, Rotation

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RoPE(PositionalEncoder):
    """Rotary position embedding: θ_j = base^(−2j/d)."""

    base: float = 10_000.0

    def validate(self) -> None:
        self.require(self.base > 1, "base", "above 1")

    def inverse_frequencies(self, length: int) -> list[float]:
        return [self.base ** (-2 * j / self.head_dim) for j in range(self.head_dim // 2)]


@dataclass(frozen=True)
class PositionInterpolation(RoPE):
    """Position interpolation: θ_j / factor, positions squeezed into the range that the model was trained on."""

    factor: float = 8.0

    def validate(self) -> None:
        super().validate()
        self.require(self.factor >= 1, "factor", "at least 1 (new context / old context)")

    def inverse_frequencies(self, length: int) -> list[float]:
        return [frequency / self.factor for frequency in super().inverse_frequencies(length)]


@dataclass(frozen=True)
class AdjustedBaseFrequency(RoPE):
    """ABF: RoPE whose base is raised before long training (10,000 → 500,000 in LLaMA 2 Long)."""

    base: float = 500_000.0


@dataclass(frozen=True)
class XPosABF(AdjustedBaseFrequency):
    """xPos on ABF frequencies: queries scaled by ζ_j^p, keys by ζ_j^−p, so that scores carry ζ_j^((m−n)/scale_base).

    ζ_j = (2j/d + gamma) / (1 + gamma) and p = (position − centre) / scale_base. ``centre`` cancels in every score; it only
    keeps the powers within the number range, so it is a setting of the run and never follows the live length.
    """

    gamma: float = 0.4
    scale_base: float = 512.0
    centre: float = 0.0

    def validate(self) -> None:
        super().validate()
        self.require(self.gamma > 0, "gamma", "above 0")
        self.require(self.scale_base > 0, "scale_base", "above 0 (tokens)")

    def rotation(self, positions: Tensor, length: int) -> Rotation:
        import torch

        cos, sin = self.cos_sin(positions, length)
        pairs = torch.arange(self.head_dim // 2, dtype=torch.float64, device=positions.device)
        zeta = (2 * pairs / self.head_dim + self.gamma) / (1 + self.gamma)
        power = (positions.to(torch.float64)[..., None] - self.centre) / self.scale_base
        scale = zeta**power
        return Rotation(*(table.float() for table in (cos * scale, sin * scale, cos / scale, sin / scale)))
