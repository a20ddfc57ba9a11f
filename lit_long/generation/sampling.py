"""Choosing the next token: the likeliest, or drawn by temperature from the likeliest that together have probability top-p.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_long.config import UserError


class Sampler:
    """Chooses a token for every row of logits.

    Args:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_p: tokens are drawn from the fewest likeliest ones that together have at least this probability (Holtzman et al. 2020).
        seed: row i draws from a stream of its own, seed and i: what else is in the batch does not change its tokens.

    Raises:
        UserError: a value out of range.
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> None:
        if not temperature >= 0:
            raise UserError(f"temperature={temperature:g} must be at least 0 (0 = always the likeliest token)")
        if not 0 < top_p <= 1:
            raise UserError(f"top_p={top_p:g} must be above 0 and at most 1 (1 = draw from all tokens)")
        self.temperature, self.top_p, self.seed = temperature, top_p, seed
        self.streams: list[torch.Generator] = []

    def keep(self, places: list[int]) -> None:
        """Go on with these rows alone, each with its own stream."""
        self.streams = [self.streams[place] for place in places] if self.streams else []

    def choose(self, logits_BV: Tensor) -> Tensor:
        """Tokens int64 [B]. A sampler is for one batch: its streams go on from call to call."""
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        while len(self.streams) < len(logits_BV):
            self.streams.append(torch.Generator().manual_seed((self.seed << 20) + len(self.streams)))
        drawn = torch.stack([torch.rand((), dtype=torch.float64, generator=stream) for stream in self.streams])
        probabilities_BV = (logits_BV.double() / self.temperature).softmax(-1)
        order_BV = None
        if self.top_p < 1:
            probabilities_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True, stable=True)
            before_BV = probabilities_BV.cumsum(-1) - probabilities_BV
            probabilities_BV = probabilities_BV * (before_BV < self.top_p)
        reached_BV = probabilities_BV.cumsum(-1)
        wanted_B1 = drawn.to(logits_BV.device)[:, None] * reached_BV[:, -1:]
        place_B1 = torch.searchsorted(reached_BV, wanted_B1, right=True)
        # Rounding may reach the end of the total: the last token that may be drawn, then.
        place_B1 = place_B1.minimum((probabilities_BV > 0).cumsum(-1).argmax(-1, keepdim=True))
        return (place_B1 if order_BV is None else order_BV.gather(-1, place_B1))[:, 0]
