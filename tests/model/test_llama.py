"""The model against transformers' LlamaForCausalLM, and document boundaries by perturbation."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_long.batch import NO_LOSS, PADDING, Batch
from lit_long.config import ModelConfig, UserError
from lit_long.model.attention import AttentionMask, attention, document_cu_seqlens
from lit_long.model.llama import Llama
from lit_long.planning.flops import matmul_weights, parameters
from lit_long.positions import build

SMALL = ModelConfig(
    vocab_size=97, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ffn=96, tie_embeddings=True, context=64
)


def batch_of(tokens, document_ids=None, mask_documents=False):
    tokens = torch.as_tensor(tokens)
    ids = torch.zeros_like(tokens) if document_ids is None else torch.as_tensor(document_ids).expand_as(tokens)
    targets = torch.roll(tokens, -1, dims=1)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    if mask_documents:
        starts = torch.ones_like(ids, dtype=torch.bool)
        starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
        positions = positions - torch.where(starts, positions, 0).cummax(1).values
    return Batch(tokens, targets, ids, positions, mask_documents)


def small(config=SMALL, seed=0, **position):
    model = Llama(config, build({"scheme": "rope"} | position, config.head_dim), loss_chunk=17)
    model.init_weights(seed)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_logits_equal_transformers(tied, kv_heads):
    """GQA, custom base, 2,048 tokens, fp32."""
    hf_config = LlamaConfig(
        vocab_size=211,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=kv_heads,
        head_dim=16,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 31_250.0},
    )
    torch.manual_seed(kv_heads)
    theirs = LlamaForCausalLM(hf_config).eval()
    with torch.no_grad():  # transformers' initial weights are too small for attention to matter
        for parameter in theirs.parameters():
            parameter.mul_(3.0) if parameter.ndim > 1 else parameter.uniform_(0.5, 1.5)
    config = ModelConfig(211, 96, 3, 6, kv_heads, 16, 160, 1e-5, tied)
    ours = small(config, base=31_250.0)
    state = {name.removeprefix("model."): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict({name: value for name, value in state.items() if not (tied and name == "lm_head.weight")})
    tokens = torch.randint(211, (2, 2048))
    with torch.no_grad():
        expected, found = theirs(tokens).logits, ours.logits(batch_of(tokens))
        wrong_base = small(config, base=10_000.0)
        wrong_base.load_state_dict(ours.state_dict())
        different = wrong_base.logits(batch_of(tokens))
    assert (found - expected).abs().max() <= 1e-4
    assert (different - expected).abs().max() > 1e-2  # the comparison can fail


@pytest.mark.parametrize("mask_documents", [True, False])
def test_later_documents_see_the_first_only_without_mask(mask_documents):
    """Another first document: the second one's logits stay the same exactly when documents are masked."""
    model = small()
    tokens = torch.randint(97, (1, 32))
    ids = [0] * 13 + [1] * 19
    other = tokens.clone()
    other[0, :13] = (other[0, :13] + 1) % 97
    with torch.no_grad():
        a, b = (model.logits(batch_of(t, ids, mask_documents)) for t in (tokens, other))
    difference = (a[0, 13:] - b[0, 13:]).abs().max()
    assert difference == 0 if mask_documents else difference > 1e-4


def test_a_masked_document_is_as_if_alone():
    model = small()
    tokens = torch.randint(97, (1, 32))
    packed = model.logits(batch_of(tokens, [0] * 13 + [1] * 19, mask_documents=True))
    alone = model.logits(batch_of(tokens[:, 13:]))
    torch.testing.assert_close(packed[:, 13:], alone, atol=1e-5, rtol=1e-5)


def test_right_padding_changes_nothing_before_it():
    model = small()
    tokens = torch.randint(97, (1, 32))
    padded = batch_of(tokens, [0] * 20 + [PADDING] * 12, mask_documents=True)
    assert document_cu_seqlens(padded) is None
    torch.testing.assert_close(model.logits(padded)[:, :20], model.logits(batch_of(tokens[:, :20])), atol=1e-6, rtol=1e-6)


def test_loss_is_summed_over_targets_only():
    model = small()
    batch = batch_of(torch.randint(97, (3, 40)))
    batch.targets[:, :10] = NO_LOSS
    nats, tokens = model(batch)
    logits = model.logits(batch)
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), reduction="none", ignore_index=NO_LOSS
    )
    assert int(tokens) == 90 == int(batch.loss_tokens())
    torch.testing.assert_close(nats, expected.sum())
    per_token, hits = model(batch, per_token=True)
    torch.testing.assert_close(per_token.flatten(), expected.detach())
    assert torch.equal(hits, (logits.argmax(-1) == batch.targets))


def test_initial_weights_follow_the_seed():
    def weights(seed):
        return torch.cat([p.detach().flatten() for p in small(seed=seed).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_right(tied):
    config = ModelConfig(97, 64, 2, 4, 2, 16, 96, tie_embeddings=tied)
    model = small(config)
    assert parameters(config) == sum(p.numel() for p in model.parameters())
    linear = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    assert matmul_weights(config) == linear + (97 * 64 if tied else 0)


def test_heads_must_share_evenly():
    with pytest.raises(UserError, match="must be a multiple of model.n_kv_heads"):
        small(ModelConfig(97, 64, 2, 4, 3, 16, 96))


def test_documents_match_dense_attention_under_the_full_mask():
    """Many rows, documents of equal and unequal lengths, padding: values and gradients of torch's masked attention."""
    torch.manual_seed(0)
    ids = torch.tensor([[0] * 12, [0] * 4 + [1] * 8, [2] * 4 + [3] * 4 + [4] * 4, [5] * 5 + [6] * 4 + [PADDING] * 3])
    batch = Batch(ids, ids, ids, ids, mask_documents=True)
    q, k, v = (torch.randn(4, heads, 12, 8, requires_grad=True) for heads in (4, 2, 2))
    mask = ((ids[:, :, None] == ids[:, None, :]) & torch.ones(12, 12).tril().bool())[:, None]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    found = attention(q, k, v, AttentionMask(document_cu_seqlens(batch)))
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    for ours, theirs in zip(*(torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_weights_are_drawn_on_the_cpu_wherever_they_lie():
    """On a GPU parameters are born there, also what is made on the default device; the source of randomness is the CPU's."""
    expected = dict(Llama(SMALL, build({"scheme": "rope"}, SMALL.head_dim)).draw_weights(0))
    with torch.device("meta"):
        model = Llama(SMALL, build({"scheme": "rope"}, SMALL.head_dim))
        drawn = dict(model.draw_weights(0))
        model.init_weights(0)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert drawn.keys() == expected.keys() and all(drawn[name].equal(value) for name, value in expected.items())
