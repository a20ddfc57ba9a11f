"""Queries that grow with their position, so that attention over more tokens stays as sharp: a factor β of the scores, by the query's position.

The usual partner of layers without positions. ``form: log`` names one of ours, ``form: my_module:MyScale`` the user's own subclass. Building and
checking imports no torch; only computing does.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lit_long.config import UserError, check
from lit_long.config.ranges import Base, Count, NotNegative
from lit_long.config.typed import setting_names
from lit_long.positions.encoder import Rotation
from lit_long.positions.schemes import Stretch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class QueryScale(ABC):
    """Base class of all forms. A subclass is a frozen dataclass; its fields are the keys allowed beside ``form``.

    ``fitted`` names the setting that is fitted to a trained model (evaluation/query_scale.py); "": none is.
    """

    fitted: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check(type(self), {name: getattr(self, name) for name in setting_names(type(self))}, "query_scale")

    @abstractmethod
    def factors(self, positions: Tensor) -> Tensor:
        """β of queries at logical ``positions`` (fp64, any shape), fp64 of that shape."""

    def in_context(self, length: int) -> QueryScale:
        """The scale in a context of ``length`` tokens: itself, unless it depends on that."""
        return self

    def scaled(self, rotation: Rotation, positions: Tensor) -> Rotation:
        """The rotation with queries multiplied by β."""
        import torch

        beta = self.factors(positions.to(torch.float64))[..., None]
        return rotation._replace(cos_q=(rotation.cos_q * beta).float(), sin_q=(rotation.sin_q * beta).float())


@dataclass(frozen=True)
class LogScale(QueryScale):
    """SWAN's (Puvvada et al. 2025): β = log_a(a + p), 1 at position p = 0. The paper fits a = ``base`` to a trained model, for inference."""

    fitted: ClassVar[str] = "base"

    base: Base

    def factors(self, positions: Tensor) -> Tensor:
        return (positions + self.base).log() / math.log(self.base)


@dataclass(frozen=True)
class FloorLogScale(QueryScale):
    """Llama 4's: β = 1 + c·ln(1 + ⌊(p + 1) / L⌋), c = ``coefficient``, L = ``length`` tokens: 1 up to position L − 2, then in steps."""

    fitted: ClassVar[str] = "coefficient"

    coefficient: NotNegative = 0.1
    length: Count = 8192

    def factors(self, positions: Tensor) -> Tensor:
        return 1 + self.coefficient * ((positions + 1) / self.length).floor().log1p()


@dataclass(frozen=True)
class ConstantScale(QueryScale):
    """DroPE's (Gelberg et al. 2025), for inference: β = 1 + c·ln s at every position, s = ``factor`` = new context / trained context.

    c = ``coefficient`` is fitted by perplexity: 0.412 for the paper's model from scratch, 0.103 for SmolLM-360M. With ``trained``, the trained
    context in tokens, instead of a factor, s is that of each context that the model is given, and 1 up to the trained one.
    """

    fitted: ClassVar[str] = "coefficient"

    coefficient: NotNegative
    factor: Stretch | None = None
    trained: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.factor is None) == (self.trained is None):
            raise UserError(
                "query_scale: form constant needs either factor, new context / trained context, or trained, in tokens"
            )

    def in_context(self, length: int) -> ConstantScale:
        return self if self.trained is None else ConstantScale(self.coefficient, max(1.0, length / self.trained))

    def factors(self, positions: Tensor) -> Tensor:
        """Of a scale with ``trained`` those up to the trained context: `in_context` gives those of others."""
        import torch

        return torch.full_like(positions, 1 + self.coefficient * math.log(self.factor or 1.0))


FORMS: dict[str, type[QueryScale]] = {"log": LogScale, "floor_log": FloorLogScale, "constant": ConstantScale}
