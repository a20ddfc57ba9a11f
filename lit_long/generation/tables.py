"""Rotation tables for sequences that grow, and when what is cached goes stale because they changed.

Most encoders rotate a token by its position alone: tables are made once. Others look at the live length, and which way they do is found
by comparing their tables, so that it holds for anyone's encoder:

* they switch at some length (LongRoPE, from its short factors to the long ones): everything before is computed again, once, and equals
  one forward of the whole sequence exactly;
* they change with every token (dynamic NTK beyond its original context): computing everything again at every token is not affordable.
  Keys are then cached unrotated, and all of them rotated anew at every step. That is exact for the first layer only. In deeper layers a
  key is made from hidden states of its time, which attention computed with the tables of that shorter length; one forward of the whole
  sequence would make it with today's. In random models of two layers the logits come out 4 to 15 times closer to that forward than with
  keys rotated at their time, and the likeliest token is nearly always the same. Reading a prompt is exact at any depth.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from lit_long.positions import PositionalEncoder, Rotation
from lit_long.positions.layers import LayerGroup

PROBED = 4  # positions at which tables are compared, over the whole length


class Tables:
    """The tables of one run of generation, for one group of layers, whose sequences have ``shortest`` to ``longest`` tokens.

    An encoder that rotates alike at both lengths is taken to do so at all lengths between: it is ``steady``.
    """

    def __init__(self, encoder: PositionalEncoder | LayerGroup, shortest: int, longest: int, device: torch.device) -> None:
        encoder.require_length(longest)
        self.encoder, self.device = encoder, device
        self.steady = same_tables(encoder, shortest, longest)
        self.changes = cache(lambda length: not same_tables(encoder, max(1, length - 1), length))
        if self.steady:
            self.all = encoder.rotation(torch.arange(longest, device=device)[None], longest)

    def switches(self, lengths: list[int]) -> bool:
        """Whether some row's newest token changed its tables, and the next will not."""
        return not self.steady and any(self.changes(n) and not self.changes(n + 1) for n in set(lengths))

    def follow(self, lengths: list[int]) -> bool:
        """Whether some row's tables change with every token: then no key must be cached rotated."""
        return not self.steady and any(self.changes(n) and self.changes(n + 1) for n in set(lengths))

    def first(self, lengths: list[int]) -> Rotation:
        """Tables of positions 0 to the longest, [1 or B, T, K/2], in contexts of ``lengths`` tokens."""
        stop = max(lengths)
        if self.steady:
            return Rotation(*(table[:, :stop] for table in self.all))
        return self.by_row(torch.arange(stop, device=self.device).expand(len(lengths), -1), lengths)

    def between(self, start: int, stop: int) -> Rotation:
        """Tables of positions ``start`` to ``stop``, [1, T, K/2], of a steady encoder."""
        return Rotation(*(table[:, start:stop] for table in self.all))

    def newest(self, lengths: list[int]) -> Rotation:
        """Tables of each row's last position, [1 or B, 1, K/2]."""
        last = lengths[:1] if len(set(lengths)) == 1 else lengths
        positions = torch.tensor(last, device=self.device)[:, None] - 1
        if self.steady:
            return Rotation(*(table[0, positions] for table in self.all))
        return self.by_row(positions, last)

    def newest_and_all(self, lengths: list[int]) -> Rotation:
        """For queries as `newest`, for keys of all columns: rows end in the same one, so shorter rows begin with hidden ones."""
        stop = max(lengths)
        columns = torch.arange(stop, device=self.device)
        pads = stop - torch.tensor(lengths, device=self.device)
        tables = self.by_row((columns - pads[:, None]).clamp(min=0), lengths)
        return Rotation(tables.cos_q[:, -1:], tables.sin_q[:, -1:], tables.cos_k, tables.sin_k)

    def by_row(self, positions_BT: Tensor, lengths: list[int]) -> Rotation:
        """Every row's tables in the context of its own length; one row stands for all if they are equally long."""
        if len(set(lengths)) == 1:
            return self.encoder.rotation(positions_BT[:1], lengths[0])
        rows = [self.encoder.rotation(row[None], length) for row, length in zip(positions_BT, lengths, strict=True)]
        return Rotation(*(torch.cat(tables) for tables in zip(*rows, strict=True)))


def same_tables(encoder: PositionalEncoder | LayerGroup, shorter: int, longer: int) -> bool:
    """Whether the encoder rotates positions of the shorter context alike in both."""
    probed = torch.linspace(0, max(shorter - 1, 1), PROBED).round()[None]  # position 0 alone is rotated alike by all
    pairs = zip(encoder.rotation(probed, shorter), encoder.rotation(probed, longer), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
