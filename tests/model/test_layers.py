"""Layers that differ: windows against a written-out softmax, models against transformers' own, and what a layer must not notice."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM, SmolLM3Config, SmolLM3ForCausalLM

from lit_long.config import LayerGroupConfig, LayersConfig, ModelConfig
from lit_long.generation import generate
from lit_long.model import local
from lit_long.model.attention import attention, attention_masks, document_by_document, document_cu_seqlens
from lit_long.positions.layers import build_layers
from lit_long.training.parallel import parallelize
from tests.generation.llamas import small as large_weights
from tests.model.test_llama import batch_of

ROPE, NOPE = {"scheme": "rope", "base": 10_000.0}, {"scheme": "nope"}
FOUR = ModelConfig(vocab_size=97, d_model=64, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=16, d_ffn=96, context=512)
ONE = ModelConfig(vocab_size=97, d_model=64, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=16, d_ffn=96, context=512)
SWAN = LayersConfig(
    {"global": LayerGroupConfig(NOPE), "local": LayerGroupConfig(window=24)}, ["global", "local", "local", "local"]
)


def llama(layers=SWAN, config=FOUR, position=ROPE):
    """With weights large enough for attention to matter."""
    return large_weights(config, build_layers(layers, position, config.head_dim))


def tokens(*shape):
    return torch.randint(97, shape, generator=torch.Generator().manual_seed(sum(shape)))


def by_hand(q, k, v, window, ids):
    """Softmax of masked scores: of the same document, not later, and fewer than ``window`` tokens back."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    back = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
    seen = (back >= 0) & (back < (window or math.inf)) & (ids[:, :, None] == ids[:, None, :])
    scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5
    return scores.masked_fill(~seen[:, None], -math.inf).softmax(-1) @ v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("window", [1, 3, 130, 299, 300, 1000])
def test_windows_against_a_written_out_softmax(window, documents, dtype):
    """Values and gradients; windows narrower and wider than a block, than documents and than the sequence."""
    T, ids = 300, torch.zeros(2, 300, dtype=torch.int64)
    if documents:
        ids[0, 100:], ids[0, 103:], ids[1, 7:] = 1, 2, 3
    generator = torch.Generator().manual_seed(0)
    q, k, v, weight = (torch.randn(2, T, h, 16, generator=generator).transpose(1, 2).to(dtype) for h in (4, 2, 2, 4))
    mask = attention_masks(batch_of(ids, ids, documents), dtype, 16, [window])[0]
    ways = [lambda *x: attention(*x, mask)]
    if dtype == torch.float32:  # as on a GPU
        cu_seqlens = mask.cu_seqlens if documents else torch.tensor([0, T, 2 * T])
        ways.append(lambda *x: document_by_document(*x, cu_seqlens, window))
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    truth = by_hand(*exact, window, ids)
    truth = truth, *torch.autograd.grad((truth * weight).sum(), exact)
    for attend in ways:
        ours = [x.clone().requires_grad_() for x in (q, k, v)]
        found = attend(*ours)
        assert found.dtype == dtype
        found = found, *torch.autograd.grad((found * weight).sum(), ours)
        for a, b in zip(found, truth, strict=True):
            assert (a.double() - b).norm() <= (1e-5 if dtype == torch.float32 else 2e-2) * b.norm().clamp(min=10)


def test_a_window_saves_work_and_memory():
    """Scores that a CPU computes: W and a block's more for each query, whatever the length; masks and scores of one block exist at once."""
    q, k = torch.empty(1, 4, 8192, 16), torch.empty(1, 2, 8192, 16)
    found = [(at.stop - at.start) * (keys.stop - keys.start) for at, keys, _ in local.blocks(q, k, 512)]
    assert sum(found) <= 8192 * (512 + local.BLOCK)
    assert max(found) <= local.BLOCK * (512 + local.BLOCK)


@torch.no_grad()
def test_a_window_counts_the_token_itself():
    """Of a token W − 1 back a query sees something, of one W back nothing at all."""
    W, model = 24, llama(LayersConfig({"all": LayerGroupConfig(window=24)}, ["all"]), ONE)
    row = tokens(1, 100)
    before = model.logits(batch_of(row))
    for back in (W - 1, W):
        other = row.clone()
        other[0, 60 - back] += 1
        other %= 97
        assert torch.equal(model.logits(batch_of(other))[0, 60], before[0, 60]) == (back == W)


@torch.no_grad()
def test_layers_without_positions_do_not_move_with_them():
    row = tokens(1, 50)
    batch = batch_of(row)
    moved = batch._replace(positions=batch.positions * 3 + 1000)
    assert torch.equal(
        llama(LayersConfig({"all": LayerGroupConfig(NOPE)}, ["all"])).logits(batch),
        llama(LayersConfig(), position=NOPE).logits(moved),
    )
    assert not torch.equal(llama().logits(batch), llama().logits(moved))  # local layers have the stage's encoder


@settings(max_examples=20)
@given(
    st.text("abcxyz", min_size=1),
    st.integers(1, 5),
    st.one_of(st.none(), st.integers(64, 1000)),
    st.sampled_from([{}, ROPE]),
)
@torch.no_grad()
def test_a_pattern_of_one_group_is_uniform(name, places, window, position):
    """Bit for bit, and with the same parameters: also with a window that nothing lies beyond."""
    batch = batch_of(tokens(2, 64))
    layers = LayersConfig({name: LayerGroupConfig(position, window)}, [name] * places)
    plain, found = llama(LayersConfig()), llama(layers)
    assert list(plain.state_dict()) == list(found.state_dict())
    assert torch.equal(plain.logits(batch), found.logits(batch))


def test_groups_that_are_alike_are_one():
    twins = {"a": LayerGroupConfig(window=8), "b": LayerGroupConfig(ROPE, window=8), "c": LayerGroupConfig(NOPE)}
    pattern = build_layers(LayersConfig(twins, ["a", "b", "c"]), ROPE, 16)
    assert len(pattern.groups) == 2
    assert [pattern.place(layer) for layer in range(7)] == [0, 0, 1, 0, 0, 1, 0]


@torch.no_grad()
def test_each_layer_has_its_own_encoder():
    """A block's outputs are those that it has in a model whose layers all are of its group."""
    bases = {
        "a": LayerGroupConfig({"scheme": "rope", "base": 500.0}, 24),
        "b": LayerGroupConfig(query_scale={"form": "floor_log", "length": 8}),
    }
    mixed = llama(LayersConfig(bases, ["a", "b"]))
    alone = {name: llama(LayersConfig({name: group}, [name])) for name, group in bases.items()}
    inputs, outputs = [], []
    for block in mixed.layers:
        block.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        block.register_forward_hook(lambda _, given, found: outputs.append(found))
    batch = batch_of(tokens(2, 64))
    mixed.hidden_states(batch)
    for number, (x, expected) in enumerate(zip(inputs, outputs, strict=True)):
        own, other = (alone[name] for name in ("ab" if number % 2 == 0 else "ba"))
        found = []
        for model in (own, other):
            (group,) = model.pattern.groups
            rotation = group.rotation(batch.positions, 64).widened()
            found.append(model.layers[number](x, rotation, attention_masks(batch, torch.float32, 16, [group.window])[0]))
        assert torch.equal(found[0], expected)
        assert not torch.equal(found[1], expected)


@torch.no_grad()
def test_documents_beside_each_other_are_as_alone():
    model = llama()
    ids = torch.tensor([[0] * 41 + [1] * 7 + [2] * 52])
    batch = batch_of(tokens(1, 100), ids, True)
    whole, start = model.logits(batch), 0
    for length in (41, 7, 52):
        alone = model.logits(batch_of(batch.tokens[:, start : start + length]))
        torch.testing.assert_close(whole[:, start : start + length], alone, atol=2e-5, rtol=1e-5)
        start += length


SHAPE = dict(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    max_position_embeddings=512,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    attn_implementation="eager",
    pad_token_id=None,
)
FULL, LOCAL = "full_attention", "sliding_attention"
FAMILIES = {
    "mistral": (
        lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=24)),
        LayersConfig({"all": LayerGroupConfig(window=24)}, ["all"]),
    ),
    "smollm3": (
        lambda: SmolLM3ForCausalLM(SmolLM3Config(**SHAPE, no_rope_layers=[1, 1, 1, 0])),
        LayersConfig({"rotated": LayerGroupConfig(), "nope": LayerGroupConfig(NOPE)}, ["rotated"] * 3 + ["nope"]),
    ),
    "swan": (
        lambda: SmolLM3ForCausalLM(
            SmolLM3Config(
                **SHAPE,
                no_rope_layers=[0, 1, 1, 1],
                use_sliding_window=True,
                sliding_window=24,
                layer_types=[FULL, LOCAL, LOCAL, LOCAL],
            )
        ),
        SWAN,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_models(family):
    """Logits, gradients of the loss, and 64 greedy tokens, far beyond the window."""
    make, layers = FAMILIES[family]
    torch.manual_seed(5)
    theirs = make().eval()
    with torch.no_grad():  # transformers' initial weights are too small for attention to matter
        for parameter in theirs.parameters():
            parameter.mul_(3.0) if parameter.ndim > 1 else parameter.uniform_(0.5, 1.5)
        theirs.model.norm.weight[::2] *= -1  # else the same token again and again
    ours = llama(layers)
    ours.load_state_dict({name.removeprefix("model."): value for name, value in theirs.state_dict().items()})
    row = tokens(2, 150)
    expected = theirs(row).logits
    assert (ours.logits(batch_of(row)) - expected).abs().max() <= 1e-4
    assert (llama(LayersConfig()).logits(batch_of(row)) - expected).abs().max() > 1e-2  # the comparison can fail
    nats, count = ours(batch_of(row))
    (nats / count).backward()
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), row.roll(-1, 1).flatten()).backward()
    other = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        truth = other[name if name.startswith("lm_head") else f"model.{name}"].grad
        assert (parameter.grad - truth).norm() <= 1e-4 * truth.norm()
    theirs.generation_config.eos_token_id = None
    whole = theirs.generate(row[:1], attention_mask=torch.ones(1, 150), max_new_tokens=64, do_sample=False, pad_token_id=0)
    (found,) = generate(ours, row[:1].tolist(), 64)
    assert found == whole[0, 150:].tolist()
    assert len(set(found)) > 4  # not one token over and over


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(
    ("checkpointing", "compiled"),
    [
        ("full", False),
        ("selective", False),
        *(pytest.param(way, True, marks=pytest.mark.slow) for way in ("selective", "attention")),
    ],
)
def test_checkpointed_and_compiled(checkpointing, compiled, documents):
    ids = torch.arange(100).div(60, rounding_mode="floor").expand(2, -1)
    batch, gradients = batch_of(tokens(2, 100), ids, documents), []
    for how in (("none", False), (checkpointing, compiled)):
        model = parallelize(llama(), None, *how)
        model(batch)[0].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for before, after in zip(*gradients, strict=True):
        torch.testing.assert_close(after, before, atol=1e-5 * float(before.abs().max()), rtol=1e-4)


def test_document_cu_seqlens_know_no_window():
    """The boundaries of documents are made once a group, and are the same for all."""
    ids = torch.tensor([[0, 0, 1, 1]])
    batch = batch_of(ids, ids, True)
    assert torch.equal(attention_masks(batch, torch.float32, 16, [2])[0].cu_seqlens, document_cu_seqlens(batch))
