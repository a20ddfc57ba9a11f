"""Generation where layers differ: every step against one full forward, and caches that hold a window and no more."""

from __future__ import annotations

import pytest
import torch

from lit_long.config import LayerGroupConfig, LayersConfig, ModelConfig
from lit_long.generation import Sequences, generate
from lit_long.generation.decode import generate_in_turn
from lit_long.positions.layers import build_layers
from tests.generation.llamas import full_greedy, gaps, prompts, small

SHAPE = ModelConfig(vocab_size=97, d_model=64, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=16, d_ffn=96, context=128)
W = 8
NOPE, LOCAL = LayerGroupConfig({"scheme": "nope"}), LayerGroupConfig(window=W)
SCALED = LayerGroupConfig({"scheme": "nope"}, query_scale={"form": "log", "base": 4})
DYNAMIC = LayerGroupConfig({"scheme": "dynamic_ntk", "factor": 1.0, "original": 16}, W)


def llama(*groups, config=SHAPE):
    names = [str(number) for number in range(len(groups))]
    layers = LayersConfig(dict(zip(names, groups, strict=True)), names)
    return small(config, build_layers(layers, {"scheme": "rope"}, config.head_dim))


@pytest.mark.parametrize("lengths", [(20,), (3,), (30, 30), (3, 20, 11), (5, 4)], ids=str)
@pytest.mark.parametrize("groups", [(NOPE, LOCAL), (LOCAL,), (SCALED, LOCAL, LayerGroupConfig(window=1))], ids=len)
@pytest.mark.parametrize("forgets", [True, False])
def test_every_step_is_a_full_forward(groups, lengths, forgets):
    """Prompts shorter and longer than the window, rows of unequal length, and steps that go round the window more than once."""
    assert max(gaps(llama(*groups), prompts(*lengths), 20, forgets=forgets)) < 2e-4


@pytest.mark.parametrize("chunk", [1, 25, 2048])
def test_the_chunk_changes_nothing(chunk):
    model, rows = llama(NOPE, LOCAL), prompts(31, 12, 31)
    assert generate(model, rows, 12, chunk=chunk) == [full_greedy(model, row, 12) for row in rows]


def test_an_encoder_that_changes_with_every_token_in_a_window():
    """Keys of that group alone are cached unrotated; exact in a model of one layer."""
    one = ModelConfig(**{**vars(SHAPE), "n_layers": 1})
    assert max(gaps(llama(DYNAMIC, config=one), prompts(30, 12), 20)) < 2e-4
    sequences = Sequences(llama(DYNAMIC, LayerGroupConfig()), prompts(30), 4)
    sequences.read()
    assert sequences.cache.rotated == [False, True]


def test_a_local_layer_holds_its_window():
    sequences = Sequences(llama(NOPE, LOCAL), prompts(50), 20)
    sequences.read()
    assert [kept.shape[3] for kept in sequences.cache.keys_and_values] == [70, W, 70]


@pytest.mark.parametrize("forgets", [True, False])
def test_going_back(forgets):
    """To what was before, whether it is still there or read anew."""
    model, rows = llama(NOPE, LOCAL), prompts(30, 12)
    sequences = Sequences(model, rows, 20, forgets=forgets)
    first = sequences.read()
    for token in (5, 6, 7):
        sequences.step(torch.tensor([token, token]))
    sequences.rewind(3)
    again = Sequences(model, rows, 20)
    again.read()
    ours, expected = (each.step(first.argmax(-1)) for each in (sequences, again))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert sequences.rows == again.rows


def test_prompts_with_a_common_beginning():
    model = llama(NOPE, LOCAL)
    (text,) = prompts(90)
    rows = [text, [*text[:60], 5, *text[60:]], text[:40], [*text[:88], 1, 2, 3], [7, 8]]
    assert generate_in_turn(model, rows, 6) == [full_greedy(model, row, 6) for row in rows]
