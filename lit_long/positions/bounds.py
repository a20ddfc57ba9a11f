"""How long a context a RoPE base supports, by the criterion of "Base of RoPE bounds context length" (2405.14591).

A model can tell a similar token from a random one at distance m as long as B_m(b) = Σ_j cos(m·θ_j) ≥ 0, θ_j = b^(−2j/d). A context
is supported when that holds at all its distances. The bound is not monotone in the base (d = 128: 310,000 holds to 12,223, less than
smaller bases do), so the smallest base for a length is found by trying a grid in order. Nothing is tabulated. A heuristic of one
layer, not a hard limit: LLaMA 2 Long's 500,000 ends at 18,438 by it, and the paper trains to 32,768.
"""

from __future__ import annotations

import functools

import numpy as np

from lit_long.config import UserError

GRID = 1.005  # bases tried: its whole powers. Coarser grids step over narrow ranges of bases that hold
LARGEST_BASE = 1e15
STRIDES = (17, 4, 1)  # coarse looks first
FIRST_BLOCK, LARGEST_BLOCK = 64, 4096  # distances computed at once


def similarity(base: float, head_dim: int, distances: np.ndarray) -> np.ndarray:
    """B_m(base) for each of ``distances`` [N], fp64 [N]; head_dim/2 at distance 0."""
    frequencies = base ** (-2 * np.arange(head_dim // 2) / head_dim)
    return np.cos(np.multiply.outer(distances, frequencies)).sum(-1)


def first_negative(base: float, head_dim: int, up_to: int, step: int = 1) -> int | None:
    """The smallest distance m ≤ ``up_to`` (tokens; a multiple of ``step``) with B_m(base) < 0; None if there is none."""
    start, count = 0, FIRST_BLOCK  # most answers come early
    while start <= up_to:
        distances = np.arange(start, min(start + count * step, up_to + 1), step)
        negative = similarity(base, head_dim, distances) < 0
        if negative.any():
            return int(distances[negative.argmax()])
        start, count = start + count * step, min(2 * count, LARGEST_BLOCK)
    return None


def context_bound(base: float, head_dim: int, limit: int = 2**24) -> int:
    """Tokens of the longest context that ``base`` supports: all its distances are below the first negative one; at most ``limit``."""
    found = first_negative(base, head_dim, limit - 1)
    return limit if found is None else found


@functools.cache
def smallest_base(length: int, head_dim: int) -> float:
    """The smallest base on a 0.5 % grid with B_m ≥ 0 for all distances m ≤ ``length`` (tokens), rounded up to a whole number.

    Raises:
        UserError: no base does that, as with a single pair of components.
    """
    power = 1
    while (base := float(np.ceil(GRID**power))) < LARGEST_BASE:
        if all(first_negative(base, head_dim, length, step) is None for step in STRIDES):
            return base
        power += 1
    raise UserError(
        f"position.base=auto: no base up to {LARGEST_BASE:.0e} suits heads of {head_dim} components at {length:,} tokens"
    )
