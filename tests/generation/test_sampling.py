"""Sampling against transformers' own top-p, and its independence of what else is in the batch."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.generation.logits_process import TopPLogitsWarper

from lit_long.config import UserError
from lit_long.generation import Sampler, generate
from tests.generation.llamas import prompts, small


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 0.01])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_truncated_distribution(temperature, top_p):
    draws, vocabulary = 40_000, 11
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(3)) * 2
    kept = TopPLogitsWarper(top_p)(None, (logits / temperature)[None]) if top_p < 1 else (logits / temperature)[None]
    expected = kept.softmax(-1)[0].double()
    sampler = Sampler(temperature, top_p, seed=1)
    found = torch.cat([sampler.choose(logits.expand(400, -1)) for _ in range(draws // 400)])
    counts = torch.bincount(found, minlength=vocabulary)
    assert (counts[expected == 0] == 0).all() and (counts[expected > 0.001] > 0).all()
    deviations = (counts / draws - expected).abs() / (expected * (1 - expected) / draws).sqrt().clamp(min=1e-4)
    assert deviations.max() < 4.5


def test_zero_temperature_takes_the_likeliest():
    logits = torch.randn(5, 50)
    assert torch.equal(Sampler(0.0).choose(logits), logits.argmax(-1))


def test_extreme_logits():
    logits = torch.tensor([[0.0, -math.inf, 90_000.0, 1.0], [-math.inf, 5.0, -math.inf, -math.inf]])
    for top_p in (1.0, 0.3):
        sampler = Sampler(1.0, top_p)
        for _ in range(50):
            assert sampler.choose(logits).tolist() == [2, 1]


def test_a_row_has_its_own_stream():
    """The same tokens whatever the other rows are and however many; other tokens with another seed or in another row."""
    model = small()
    a, b, c = prompts(12, 12, 20)

    def sampled(rows, seed=5):
        return generate(model, rows, 24, Sampler(1.5, 0.9, seed))

    both = sampled([a, b])
    assert sampled([a]) == both[:1] and sampled([a, c])[0] == both[0] and sampled([a, b]) == both
    assert sampled([a], seed=6)[0] != both[0]
    twice = sampled([a, a])
    assert twice[0] != twice[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1 must be at least 0"),
        ({"temperature": math.nan}, "temperature=nan must be at least 0"),
        ({"top_p": 0.0}, "top_p=0 must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0"),
    ],
)
def test_values_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        Sampler(**settings)
