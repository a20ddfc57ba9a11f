"""Encoders that look at the live length: what is cached must not go stale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from lit_long.config import ModelConfig
from lit_long.generation import Sequences, generate
from lit_long.generation.tables import Tables
from lit_long.positions import SCHEMES, Rotation, build
from lit_long.positions.schemes import RoPE, XPos
from tests.generation.llamas import SMALL, full_greedy, full_logits, gaps, prompts, small

ONE_LAYER = ModelConfig(97, 64, 1, 4, 2, 16, 96, context=64)
EXACT = 1e-5  # of logits up to 2
DYNAMIC = {"scheme": "dynamic_ntk", "original": 16}
LONGROPE = {
    "scheme": "longrope",
    "factor": 4.0,
    "original": 32,
    "short_factors": [1 + 0.05 * j for j in range(8)],
    "long_factors": [1 + 0.5 * j for j in range(8)],
}


@dataclass(frozen=True)
class LogLength(RoPE):
    """Scores grow with ln length (Su's log-n scaling), from the first token on."""

    def attention_factor(self, length: int) -> float:
        return math.sqrt(math.log(length + 2))


@dataclass(frozen=True)
class Stairs(RoPE):
    """Positions are stretched anew every ``step`` tokens; only `rotation` knows."""

    step: int = 16

    def rotation(self, positions: torch.Tensor, length: int) -> Rotation:
        return super().rotation(positions / (1 + length // self.step), length)


@dataclass(frozen=True)
class Settling(RoPE):
    """Changes with every token up to ``settled``, then no more."""

    settled: int = 24

    def inverse_frequencies(self, length: int) -> list[float]:
        return [frequency * 8 / min(length, self.settled) for frequency in super().inverse_frequencies(length)]


@dataclass(frozen=True)
class Warped(XPos):
    """Changes with every token, scales keys otherwise than queries, and depends on absolute positions: nothing cancels."""

    def attention_factor(self, length: int) -> float:
        return math.sqrt(math.log(length + 2))

    def rotation(self, positions: torch.Tensor, length: int) -> Rotation:
        return super().rotation((positions + 1.0).sqrt(), length)


@pytest.fixture
def reads(monkeypatch):
    """Lengths at which prompts were computed from their beginning."""
    found = []
    read = Sequences.read
    monkeypatch.setattr(Sequences, "read", lambda self: found.append([len(row) for row in self.rows]) or read(self))
    return found


@pytest.mark.parametrize(
    ("lengths", "read"),
    [
        ((25, 20), [[25, 20], [33, 28], [38, 33]]),  # the first row passes 32 tokens, then the second
        ((1,), [[1], [33]]),
        ((1, 20), [[1, 20], [14, 33], [33, 52]]),
    ],
    ids=str,
)
def test_longrope_switches_once_and_exactly(reads, lengths, read):
    model = small(**LONGROPE)
    rows = prompts(*lengths)
    assert max(gaps(model, rows, 40)) <= EXACT
    assert reads == read
    stale = small(**LONGROPE | {"long_factors": LONGROPE["short_factors"]})
    assert (full_logits(stale, prompts(33)[0]) - full_logits(model, prompts(33)[0])).abs().max() > 0.1  # it does matter
    assert generate(model, rows, 40) == [full_greedy(model, row, 40) for row in rows]


@pytest.mark.parametrize("lengths", [(20,), (10,), (30, 12, 21), (1, 12)], ids=str)
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_dynamic_ntk_is_exact_in_one_layer(reads, lengths, factor):
    """From before and from beyond its original 16 tokens."""
    model = small(ONE_LAYER, factor=factor, **DYNAMIC)
    assert max(gaps(model, prompts(*lengths), 32)) <= EXACT
    assert len(reads) == (1 if max(lengths) > 16 else 2)


def test_dynamic_ntk_is_close_in_two_layers(monkeypatch):
    """Deeper keys are of their time. The gap against one full forward stays far below what keys rotated at their time would make."""
    model, rows = small(**DYNAMIC), prompts(40)
    found = gaps(model, rows, 32)
    assert found[0] <= EXACT  # reading the prompt is exact at any depth
    assert EXACT < max(found) < 0.05
    assert max(rotated_at_their_time(model, rows, 32, monkeypatch)) > 4 * max(found)


def test_keys_rotated_at_their_time_would_be_wrong_even_in_one_layer(monkeypatch):
    assert max(rotated_at_their_time(small(ONE_LAYER, **DYNAMIC), prompts(20), 32, monkeypatch)) > 1000 * EXACT


def rotated_at_their_time(model, rows, steps, monkeypatch):
    """`gaps` of a cache that ignores that the tables change."""
    with monkeypatch.context() as patch:
        patch.setattr(Tables, "follow", lambda self, lengths: False)
        patch.setattr(Tables, "switches", lambda self, lengths: False)
        return gaps(model, rows, steps)


@pytest.mark.parametrize("encoder", [LogLength(16), Warped(16, scale_base=4.0)], ids=["log length", "warped"])
def test_a_users_encoder_that_changes_with_every_token(encoder):
    assert max(gaps(small(ONE_LAYER, encoder), prompts(20, 11), 32)) <= EXACT


@pytest.mark.parametrize("lengths", [(20,), (20, 13, 5)], ids=str)
def test_a_users_encoder_that_changes_now_and_then(reads, lengths):
    model = small(SMALL, Stairs(16))
    assert max(gaps(model, prompts(*lengths), 32)) <= EXACT
    assert len(reads) == 1 + 2 * len(lengths)


def test_a_users_encoder_that_settles(reads):
    model = small(SMALL, Settling(16))
    found = gaps(model, prompts(14), 24)
    assert found[0] <= EXACT and max(found[10:]) <= EXACT  # from 24 tokens on
    assert max(found) > EXACT and len(reads) == 2


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tables_that_do_not_change_are_made_once(scheme):
    settings = LONGROPE if scheme == "longrope" else {"scheme": scheme}
    encoder = build(settings, 16)
    changes = {"longrope": (20, 40), "dynamic_ntk": (4000, 5000)}
    assert Tables(encoder, *changes.get(scheme, (4000, 5000)), torch.device("cpu")).steady is (scheme not in changes)
    if scheme in changes:
        assert Tables(encoder, 2, 32, torch.device("cpu")).steady


@pytest.mark.parametrize("scheme", ["rope", "xpos", "yarn", "nope", "alibi"])
def test_tables_of_queries_and_keys_are_kept_apart(scheme):
    """xPos scales keys otherwise than queries, YaRN both."""
    assert max(gaps(small(scheme=scheme), prompts(30, 12), 24)) <= EXACT
