"""Beginnings that texts share are read once, where that pays, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_long.config import LayerGroupConfig
from lit_long.generation import Sampler, Sequences, generate, prefix
from lit_long.generation.prefix import SharedBeginning, empty_prefix, shared_beginnings
from lit_long.model import attention
from tests.generation.llamas import count_tokens, full_greedy, full_hidden, full_logits, gaps, prompts, small
from tests.generation.test_layers import LOCAL, NOPE, SCALED, llama
from tests.generation.test_length import LogLength

EXACT = 1e-4
SHARED, *RESTS = prompts(30, 5, 1, 12, 9)
ROWS = [SHARED + rest for rest in RESTS]
MODELS = {
    **{scheme: lambda scheme=scheme: small(scheme=scheme) for scheme in ("rope", "xpos", "yarn", "nope", "alibi")},
    "windows": lambda: llama(NOPE, LOCAL),
    "query scale": lambda: llama(SCALED, LOCAL, LayerGroupConfig(window=1)),
}


@pytest.fixture
def any_pays(monkeypatch):
    monkeypatch.setattr(prefix, "PASS_TOKENS", 1)


def all_of(tree: SharedBeginning, before: tuple[int, ...] = ()) -> dict[int, tuple[int, ...]]:
    """Of each text the beginning that is read for others, too."""
    whole = (*before, *tree.new)
    assert len(whole) == tree.length
    found = dict.fromkeys(tree.texts, whole)
    for inner in tree.inner:
        found |= all_of(inner, whole)
    return found


def tokens_read(tree: SharedBeginning) -> int:
    return len(tree.new) + sum(map(tokens_read, tree.inner))


@settings(max_examples=300)
@given(st.lists(st.lists(st.integers(0, 1), max_size=8).map(tuple), max_size=12), st.integers(1, 20))
def test_the_tree_of_beginnings(texts, worth):
    tree = shared_beginnings(texts, worth)
    found = all_of(tree)
    assert sorted(found) == list(range(len(texts)))
    assert all(texts[number][: len(beginning)] == beginning for number, beginning in found.items())
    saved = sum(map(len, found.values())) - tokens_read(tree)
    reads = sum(1 for _ in walk(tree)) - 1
    assert saved >= worth * reads


def walk(tree: SharedBeginning):
    yield tree
    for inner in tree.inner:
        yield from walk(inner)


def test_shots_then_questions():
    """All begin with the shots; each question's options with the question."""
    shots, first, second = (1,) * 50, (2,) * 20, (3,) * 30
    texts = [shots + first, shots + second, shots + first, shots + second, (*shots, 4)]
    tree = shared_beginnings(texts, 20)
    (outer,) = tree.inner
    assert not tree.texts and outer.length == 50 and outer.texts == [4]
    assert sorted((each.length, each.texts) for each in outer.inner) == [(70, [0, 2]), (80, [1, 3])]
    assert [each.length for each in shared_beginnings(texts, 25).inner[0].inner] == [80]
    long = [(*shots, number, *[8] * 470) for number in range(2)]  # of which the shots are little
    assert not shared_beginnings(long, 1).inner and shared_beginnings([each[:200] for each in long], 1).inner
    assert sorted(shared_beginnings(texts, 201).texts) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_after_a_prefix(name):
    model = MODELS[name]()
    start = empty_prefix(model, 1, 60).extended(SHARED[:13]).extended(SHARED[13:])
    found = start.hidden_states(RESTS)
    assert start.length == len(SHARED)
    for row, rest, hidden in zip(ROWS, RESTS, found, strict=True):
        torch.testing.assert_close(hidden[: len(rest)], full_hidden(model, row)[-len(rest) :], atol=EXACT, rtol=EXACT)


def test_texts_after_a_prefix_leave_nothing(monkeypatch):
    """Keys and values of all layers would be a cache that nobody asked for: they are kept of a prefix only."""
    views, made = [], prefix.AfterPrefix
    monkeypatch.setattr(prefix, "AfterPrefix", lambda *values, **more: views.append(made(*values, **more)) or views[-1])
    start = empty_prefix(small(), 1, 60).extended(SHARED)
    start.hidden_states(RESTS)
    assert [view.kept.shape[3] for view in views[:2]] == [len(SHARED)] * 2
    assert [view.kept for view in views[2:]] == [None, None]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("forgets", [True, False])
def test_prompts_that_share_a_beginning(name, forgets, any_pays, monkeypatch):
    model = MODELS[name]()
    read = count_tokens(monkeypatch)
    logits = Sequences(model, ROWS, 20, forgets=forgets).read()
    assert len(read) == 2 and read[0] == len(SHARED) and read[1] == len(RESTS) * max(map(len, RESTS))
    assert logits.shape == (4, 97)
    assert max(gaps(model, ROWS, 20, forgets=forgets)) < 2 * EXACT


@pytest.mark.parametrize("name", ["rope", "windows"])
def test_no_mask_is_of_all_tokens(name, any_pays, monkeypatch):
    """A long rest goes through attention block by block."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 5)
    masks, real = [], torch.nn.functional.scaled_dot_product_attention

    def seen(*inputs, attn_mask=None, **how):
        masks.append(0 if attn_mask is None else attn_mask.shape[-2])
        return real(*inputs, attn_mask=attn_mask, **how)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    model = MODELS[name]()
    logits = Sequences(model, ROWS, 1).read()
    assert max(masks) == 5
    torch.testing.assert_close(logits, torch.stack([full_logits(model, row) for row in ROWS]), atol=EXACT, rtol=EXACT)


def test_prompts_of_equal_length_and_the_same_prompt(any_pays):
    model = small()
    for rows in ([[*SHARED, 1, 2], [*SHARED, 3, 4]], [SHARED, SHARED], [SHARED, SHARED[:20]]):
        assert max(gaps(model, rows, 12)) < EXACT
        assert generate(model, rows, 12, chunk=7) == [full_greedy(model, row, 12) for row in rows]


def test_encoders_that_look_at_the_length_share_nothing(any_pays, monkeypatch):
    dynamic = small(scheme="dynamic_ntk", original=16)
    assert empty_prefix(dynamic, 10, 40) is None and empty_prefix(dynamic, 2, 16) is not None
    assert empty_prefix(dynamic, 1, 40) is None and empty_prefix(dynamic, 1, 16) is not None
    assert empty_prefix(small(encoder=LogLength(16)), 10, 11) is None
    expected = [generate(dynamic, [row], 6)[0] for row in ROWS]
    read = count_tokens(monkeypatch)
    assert generate(dynamic, ROWS, 6) == expected
    assert read[0] == len(ROWS) * max(map(len, ROWS))


def test_what_does_not_pay_is_not_shared(monkeypatch):
    read = count_tokens(monkeypatch)
    monkeypatch.setattr(prefix, "PASS_TOKENS", 3 * len(SHARED) + 1)
    Sequences(small(), ROWS, 1).read()
    assert len(read) == 1


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("name", ["rope", "windows"])
def test_ended_rows_cost_nothing(name, temperature, monkeypatch):
    """Steps leave them out; the others get the tokens that they get alone."""
    model, lasting = MODELS[name](), {0: 3, 1: 20, 2: 9, 3: 5, 4: 1}
    rows = prompts(21, 30, 21, 4, 17)
    every = generate(model, rows, 20, sampler=Sampler(temperature))
    read = count_tokens(monkeypatch)
    heard: dict[int, list[int]] = {row: [] for row in lasting}
    found = generate(
        model,
        rows,
        20,
        Sampler(temperature),
        heard=lambda row, token: len((heard[row].append(token), heard[row])[1]) == lasting[row],
    )
    assert found == [tokens[: lasting[row]] for row, tokens in enumerate(every)] == list(heard.values())
    steps = [tokens for tokens in read if tokens <= len(rows)]
    assert steps == [5, 5, 5, 5, 2, 2, 2, 2] + [1] * 11
