"""Prompts one after another that share their beginning: the same tokens as each alone, and what is shared is read once."""

from __future__ import annotations

import pytest
import torch

from lit_long.generation import Sequences, generate
from lit_long.generation.decode import SHARED_CHUNK, generate_in_turn
from tests.evaluation.models import SHAPE
from tests.generation.llamas import count_tokens, full_logits, small
from tests.generation.llamas import prompts as short_prompts
from tests.generation.test_length import LONGROPE

ENCODERS = [
    {"scheme": "rope", "base": 10_000.0},
    {"scheme": "dynamic_ntk", "base": 10_000.0, "factor": 1.0, "original": 64},
    LONGROPE | {"original": 64},
]


def prompts() -> list[list[int]]:
    """A needle at four depths of one text; one that is the beginning of another; a stranger."""
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(SHAPE.vocab_size, (SHARED_CHUNK + 300,), generator=draw).tolist()
    needle = [7, 8, 9]
    return [*([*text[:cut], *needle, *text[cut:]] for cut in (40, 0, 700, 300)), text[:100], text[:200], [5, 6]]


@pytest.mark.parametrize("position", ENCODERS, ids=lambda each: each["scheme"])
def test_same_tokens_as_alone(position):
    """Read first is one above the original context of 64 tokens, then one below it."""
    model, rows = small(SHAPE, **position), [*prompts(), [1] * 70, [*range(5, 40)]]
    expected = [generate(model, [prompt], 6)[0] for prompt in rows]
    assert generate_in_turn(model, rows, 6) == expected


def test_same_logits_and_fewer_tokens(monkeypatch):
    model = small(SHAPE, **ENCODERS[0])
    first, *_, third, _, _, _ = prompts()
    alone = Sequences(model, [third], 4).read()
    read = count_tokens(monkeypatch)
    sequences = Sequences(model, [first], 4)
    sequences.read()
    torch.testing.assert_close(sequences.change(third), alone, atol=1e-5, rtol=1e-5)
    assert sum(read) == len(first) + len(third) - 40
    assert generate(model, [third], 1)[0] == alone.argmax(-1).tolist()


@pytest.mark.parametrize("kept", [0, 1])
def test_a_row_that_was_the_shorter_of_two(kept):
    """Its first token lies in a later column."""
    model, (longer, shorter) = small(), short_prompts(12, 2)
    sequences = Sequences(model, [longer, shorter], 8, forgets=False)
    sequences.read()
    sequences.keep([kept])
    other = [*(longer, shorter)[kept], 3, 4, 5]
    torch.testing.assert_close(sequences.change(other)[0], full_logits(model, other), atol=1e-5, rtol=1e-5)
