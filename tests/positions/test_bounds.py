"""The base bound against the numbers of 2405.14591, as recomputed for this project (paper.md §4.9)."""

from __future__ import annotations

import math

import pytest

from lit_long.config import UserError
from lit_long.positions.bounds import context_bound, first_negative, smallest_base


@pytest.mark.parametrize(("base", "expected"), [(1e4, 1707), (3.1e5, 12_223), (5e5, 18_438), (6.4e5, 27_685), (1e6, 27_115)])
def test_first_negative_distance(base, expected):
    assert first_negative(base, 128, 40_000) == expected
    assert first_negative(base, 128, expected - 1) is None
    assert context_bound(base, 128) == expected


def test_context_bound_is_capped():
    assert context_bound(1e6, 128, limit=1000) == 1000


def test_first_negative_by_hand():
    # one pair: cos(m) < 0 from m = 2 on; two pairs of base 4: cos(m) + cos(m/2) < 0 from m = 3 on (−0.99 + 0.07)
    assert first_negative(10_000.0, 2, 100) == 2
    assert math.cos(2) + math.cos(1) > 0 > math.cos(3) + math.cos(1.5)
    assert first_negative(4.0, 4, 100) == 3


@pytest.mark.parametrize(
    ("length", "expected"), [(1024, 4300), (2048, 11_600), (4096, 28_650), (8192, 83_800), (16_384, 234_500), (32_768, 630_000)]
)
def test_smallest_base(length, expected):
    assert smallest_base(length, 128) == pytest.approx(expected, rel=0.005)
    assert first_negative(smallest_base(length, 128), 128, length) is None


def test_single_pairs_have_no_base():
    with pytest.raises(UserError, match="no base"):
        smallest_base(16, 2)
