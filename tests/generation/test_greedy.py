"""Greedy generation against transformers, and against one full forward per step."""

from __future__ import annotations

import pytest
import torch

from lit_long.config import ModelConfig, UserError
from lit_long.generation import Sequences, decode, generate, prefix, prepack
from lit_long.generation.decode import generate_in_turn
from lit_long.generation.prepacking import can_prepack
from lit_long.model.attention import without_cudnn
from tests.generation.llamas import count_plans, full_greedy, full_logits, gaps, prompts, small
from tests.pretrained.llamas import random_llama, read, save

STEPS = 64
ORIGINAL = 256
FACTORS = {"short_factor": [1 + 0.05 * j for j in range(8)], "long_factor": [1 + 0.5 * j for j in range(8)]}
ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {"factor": 4.0, "original_max_position_embeddings": 32, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "dynamic": {"factor": 2.0},
    "longrope": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL} | FACTORS,
}


def restless_llama(**shape):
    """A tied head likes to say the same token again; signs in the last norm keep it from that."""
    model = random_llama(**shape)
    with torch.no_grad():
        model.model.norm.weight[::2] *= -1
    return model


def theirs(model, rows: list[list[int]], steps: int = STEPS) -> list[list[int]]:
    """What transformers generates, each row alone."""
    model.generation_config.eos_token_id = None
    ways = dict(max_new_tokens=steps, do_sample=False, pad_token_id=0)
    return [
        model.generate(torch.tensor([row]), attention_mask=torch.ones(1, len(row)), **ways)[0, len(row) :].tolist()
        for row in rows
    ]


@pytest.mark.parametrize("rope", ROPES)
def test_tokens_are_transformers_own(tmp_path, rope):
    """Each kind of positions, within the original length; grouped heads and a tied head; two rows of unequal length."""
    hf = restless_llama(
        heads=4, kv=2, tied=True, context=ORIGINAL, rope={"rope_type": rope, "rope_theta": 10_000.0} | ROPES[rope]
    )
    rows = prompts(40, 23)
    found = generate(read(save(hf, tmp_path)), rows, STEPS)
    assert found == theirs(hf, rows)
    assert len(set().union(*found)) > 16  # not one token over and over


@pytest.mark.parametrize("kv", [4, 2, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_tokens_of_every_shape(tmp_path, kv, tied):
    hf = restless_llama(seed=3, heads=4, kv=kv, tied=tied)
    rows = prompts(30, 9, 17)
    found = generate(read(save(hf, tmp_path)), rows, STEPS)
    assert found == theirs(hf, rows)
    assert len(set().union(*found)) > 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("tied", [True, False])
def test_a_packed_model_has_the_same_logits(dtype, rows, tied):
    config = ModelConfig(97, 64, 2, 4, 2, 16, 96, tie_embeddings=tied)
    plain, packed = small(config).to(dtype), small(config).to(dtype)
    packed.load_state_dict(plain.state_dict())
    prepack(packed, rows)
    if dtype == torch.bfloat16 and not can_prepack(plain.embed_tokens.weight):
        pytest.skip("this CPU does not compute bf16, so nothing is packed")
    assert packed.layers[0].mlp.fused_proj is not None, "this CPU cannot pack"
    row = prompts(33)[0]
    expected, found = full_logits(plain, row), full_logits(packed, row)
    largest = float(expected.abs().max())
    assert (found - expected).abs().max() <= largest * (1e-5 if dtype == torch.float32 else 2e-2)
    if dtype == torch.float32:
        batch = prompts(20, 13, 20)
        assert generate(packed, batch, 32) == generate(plain, batch, 32)


def test_every_step_equals_a_full_forward():
    assert max(gaps(small(), prompts(21), 40)) <= 1e-4


def test_rows_of_unequal_length_are_as_if_alone():
    model = small()
    rows = prompts(1, 40, 7, 40, 22)
    assert max(gaps(model, rows, 24)) <= 1e-4
    assert generate(model, rows, 24) == [full_greedy(model, row, 24) for row in rows]


def test_nothing_in_the_memory_of_padding_is_seen():
    """The cache's memory is not cleared: whatever was there must not matter. Torch can fill such memory with NaN."""
    model, rows = small(), prompts(30, 4, 17)
    expected = [full_greedy(model, row, 16) for row in rows]
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.isnan(torch.ones(1).new_empty(4)).all()
        assert generate(model, rows, 16) == expected
    finally:
        torch.use_deterministic_algorithms(False)


def test_rows_of_equal_length_need_no_mask():
    model = small()
    for lengths, masked in (((9, 9), False), ((9, 8), True)):
        sequences = Sequences(model, prompts(*lengths), 4)
        sequences.read()
        assert (sequences.cache.padding_mask is not None) is masked


@pytest.mark.parametrize("chunk", [1, 7, 70, 4096])
def test_the_chunk_changes_nothing(chunk):
    model = small()
    rows = prompts(31, 50, 31)  # chunk=70: the first and the last together
    expected = [full_greedy(model, row, 8) for row in rows]
    assert generate(model, rows, 8, chunk=chunk) == expected


def test_the_last_layer_computes_what_comes_next_only():
    """Where rows are equally long, so that it is in the same place."""
    model = small()
    for lengths, outputs in (((9, 9), 1), ((9, 8), 9)):
        sequences = Sequences(model, prompts(*lengths), 4)
        sequences.read()
        tokens = torch.zeros(2, 9, dtype=torch.int64)
        caches = sequences.cache.prefill([0, 1])
        with torch.inference_mode():
            hidden = model.through_layers(tokens, [tables.first([9, 9]) for tables in sequences.tables], sequences.masks, caches)
        assert hidden.shape == (2, outputs, 64)


def test_generation_stops():
    model = small()
    row = prompts(12)[0]
    tokens = full_greedy(model, row, 20)
    end = tokens[9]
    assert generate(model, [row], 20, eos=[end]) == [tokens[: tokens.index(end) + 1]]
    heard = []
    other = prompts(5)[0]
    found = generate(model, [row, other], 20, heard=lambda r, token: heard.append((r, token)) or (r == 0 and len(heard) > 6))
    assert found == [tokens[:4], full_greedy(model, other, 20)]  # the other row goes on
    assert [token for r, token in heard if r == 0] == tokens[:4]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([[]], {}, "every prompt must have at least one token"),
        ([], {}, "there is nothing to continue"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ([[1]], {"chunk": 0}, "prefill_chunk=0 must be at least 1"),
    ],
)
def test_bad_requests(rows, options, message):
    with pytest.raises(UserError, match=message):
        generate(small(), rows, **{"max_new_tokens": 4} | options)


def test_an_encoder_that_cannot_hold_the_length_says_so():
    model = small(scheme="xpos", scale_base=1.0)
    with pytest.raises(UserError, match="xPos with scale_base=1"):
        generate(model, prompts(20), 100)


def test_a_gpu_plans_no_kernel_for_every_length(monkeypatch):
    """Neither for prompts nor for steps, together, in turn or after a shared beginning; a whole forward pass may be cuDNN's."""
    plans = count_plans(monkeypatch, decode, prefix)
    monkeypatch.setattr(prefix, "PASS_TOKENS", 8)
    model, rows = small(), prompts(3, 9, 14)
    generate(model, rows, 6, chunk=8)
    assert len(plans[False]) == 3 + 3 + 5  # prompts, their last tokens in the last layer, steps
    generate_in_turn(model, [[*rows[2], 1, 2], [*rows[2], 5], [*rows[2], 7, 8, 9]], 6)
    assert len(plans[False]) > 12 and not plans[True]
    full_logits(model, rows[0])
    assert len(plans[True]) == 1
    with without_cudnn(torch.device("cpu")):
        assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(
    ("weights", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)], ids=str
)
def test_the_cache_is_in_the_precision_that_is_computed_in(weights, autocast):
    """Of fp32 weights under autocast, too: half the memory, and keys that fit the queries."""
    computed = torch.bfloat16 if autocast else weights
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model = small().to(weights)
        sequences = Sequences(model, prompts(9, 5), 4)
        assert sequences.read().shape == (2, 97)
        kept = list(sequences.cache.keys_and_values)
        assert {each.dtype for each in kept} == {computed} == {sequences.cache.padding_mask.dtype}
        assert (
            sum(each.nbytes for each in kept) == 2 * 2 * 2 * 2 * 13 * 16 * computed.itemsize
        )  # layers, keys and values, rows, heads, columns
        assert sequences.step(torch.tensor([1, 2])).isfinite().all()
