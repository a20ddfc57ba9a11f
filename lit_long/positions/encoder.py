"""What a positional encoder is: plain numbers in, rotations out.

Every scheme of the RoPE family rotates each pair of query and key components by an angle that grows with the position. A scheme
is a small dataclass whose fields are its settings; it says with which angular frequencies it rotates them (`inverse_frequencies`), may
sharpen the attention (`attention_factor`), and may change `rotation` itself when it does more (xPos).

Components are paired half by half (component j with j + head_dim/2, the layout of Hugging Face weights), not interleaved.
Phases are computed from the positions at each use, in fp64, so that no cast of the model can spoil them; the tables are fp32.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lit_long.config import NOT_A_SETTING, UserError, check
from lit_long.config.typed import setting_names

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Rotation(NamedTuple):
    """Tables for one forward pass, shared by all layers. Each fp32 [B, T, head_dim/2]; they may differ for queries and keys."""

    cos_q: Tensor
    sin_q: Tensor
    cos_k: Tensor
    sin_k: Tensor

    def widened(self) -> Rotation:
        """The same with cosines [B, T, head_dim], each there for both components of its pair: `apply_rotary` multiplies by these in one go."""
        import torch

        cos_q = torch.cat((self.cos_q, self.cos_q), dim=-1)
        cos_k = cos_q if self.cos_k is self.cos_q else torch.cat((self.cos_k, self.cos_k), dim=-1)
        return self._replace(cos_q=cos_q, cos_k=cos_k)


@functools.lru_cache(maxsize=256)
def kept_on(device: torch.device, frequencies: tuple[float, ...]) -> Tensor:
    """The frequencies on a GPU, fp64, where they stay: each micro-batch asks for those of each group of layers, and each copy takes the host's time."""
    import torch

    from lit_long.batch import to_device

    with torch.inference_mode(False):  # training may ask for them next
        return to_device([torch.tensor(frequencies, dtype=torch.float64)], device)[0]


@dataclass(frozen=True)
class PositionalEncoder(ABC):
    """Base class of all schemes, built-in and user-made.

    A subclass is a frozen dataclass; its fields beyond ``head_dim`` are the keys allowed in configs/position/NAME.yaml. Ranges of numbers
    stand in their types (config/ranges.py); `validate` checks what they cannot say.
    """

    head_dim: int = field(metadata=NOT_A_SETTING)  # the model's

    def __post_init__(self) -> None:
        check(type(self), {name: getattr(self, name) for name in setting_names(type(self))}, "position")
        if self.head_dim < 2 or self.head_dim % 2:
            raise UserError(f"model.head_dim must be even to be rotated in pairs, not {self.head_dim}")
        self.validate()

    def validate(self) -> None:
        """Raise a UserError when a setting makes no sense."""

    @abstractmethod
    def inverse_frequencies(self, length: int) -> list[float]:
        """Radians per position of each of the head_dim/2 pairs, fastest first.

        Args:
            length: the live context length in tokens. It is given explicitly, since a shard or a cached step cannot infer it.
        """

    def attention_factor(self, length: int) -> float:
        """What the tables of queries and of keys are each multiplied by, so scores by its square; 1 leaves them as they are."""
        return 1.0

    def score_slopes(self, heads: int) -> list[float] | None:
        """What the score of a query and a key loses for each position between them, of each of so many heads (ALiBi); None: nothing."""
        return None

    def require_length(self, length: int) -> None:
        """Raise a UserError when the scheme cannot hold positions 0 … ``length`` − 1 in the number range of its tables."""

    def rotation(self, positions: Tensor, length: int) -> Rotation:
        """Rotation tables for logical ``positions`` [B, T] (integer or real) in a context of ``length`` tokens."""
        cos, sin = self.cos_sin(positions, length)
        cos, sin = cos.float(), sin.float()
        return Rotation(cos, sin, cos, sin)

    def cos_sin(self, positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every phase times the attention factor, fp64 [B, T, head_dim/2]."""
        import torch

        found = self.inverse_frequencies(length)
        on_cpu = positions.device.type == "cpu"
        frequencies = torch.tensor(found, dtype=torch.float64) if on_cpu else kept_on(positions.device, tuple(found))
        phases = positions.to(torch.float64)[..., None] * frequencies
        factor = self.attention_factor(length)
        return phases.cos() * factor, phases.sin() * factor

    def require(self, condition: bool, name: str, wanted: str) -> None:
        """Raise the UserError of a bad setting unless ``condition`` holds."""
        if not condition:
            raise UserError(f"position.{name} must be {wanted}, not {getattr(self, name)!r}")
