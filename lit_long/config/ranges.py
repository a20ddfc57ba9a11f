"""Ranges of numbers, declared in the type of the setting: ``n_layers: Count``, ``weights: dict[str, NotNegative]``, ``Annotated[float, Range(above=1)]``;
words of which one is chosen: ``Annotated[str, Choice("pre", "post")]``; and paths, ``FilePath``, whose ~ must be somebody's home folder.

`typed.convert` checks them, and that every number is finite, wherever settings are read. A test goes through the schema, the commands' settings and
the positional encoders: a number without a range fails it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have: at least ``least``, above ``above``, at most ``most`` and below ``below``; without these any finite one.

    ``or_zero``: also 0, which then stands for something of its own. ``note`` is said in the message.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    or_zero: bool = False
    note: str = ""

    def __contains__(self, value: float) -> bool:
        within = (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        return math.isfinite(value) and (within or (self.or_zero and value == 0))

    def __str__(self) -> str:
        bounds = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        said = " and ".join(f"{word} {bound:,.12g}" for word, bound in bounds if bound is not None) or "a finite number"
        return f"{said}{', or 0' if self.or_zero else ''}{f' ({self.note})' if self.note else ''}"


class Choice(tuple[str, ...]):
    """The words that a setting may have: ``Choice("pre", "post")``."""

    def __new__(cls, *words: str) -> Choice:
        return super().__new__(cls, words)

    def __str__(self) -> str:
        return f"{', '.join(self[:-1])} or {self[-1]}"


PATH = "path"
FilePath = Annotated[str, PATH]  # of a file or folder; also a text that may be the name of something else, such as model.init
Count = Annotated[int, Range(least=1)]
CountOrNone = Annotated[int, Range(least=0)]  # 0: none, no limit, or the default; the field's comment says which
Seed = Annotated[int, Range(least=0, below=2**32)]  # what NumPy and Lightning take
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(least=0, most=1)]
PositiveShare = Annotated[float, Range(above=0, most=1)]
ShareBelowOne = Annotated[float, Range(least=0, below=1)]
Finite = Annotated[float, Range()]
Base = Annotated[float, Range(above=1)]  # of RoPE
