"""An encoder that breaks: its ``at``-th table from now on, in this process, is not a number."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_long.positions import Rotation
from lit_long.positions.schemes import RoPE

at = 0


@dataclass(frozen=True)
class Broken(RoPE):
    def rotation(self, positions: Tensor, length: int) -> Rotation:
        global at
        at -= 1
        found = super().rotation(positions, length)
        return found if at else found._replace(cos_q=found.cos_q * float("nan"))
