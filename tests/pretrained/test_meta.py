"""Meta's original format, written here from a Hugging Face model by an independent permutation."""

from __future__ import annotations

import json

import pytest
import torch

from lit_long.config import UserError
from lit_long.pretrained import open_pretrained
from tests.pretrained.llamas import assert_same, random_llama, read

LLAMA3_ROPE = {"rope_type": "llama3", "original_max_position_embeddings": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PER_LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def interleaved(weight, heads):
    """Row by row: component j of a head goes to 2j, component j + K/2 to 2j + 1, which is where Meta's code expects its partner."""
    result, size = torch.empty_like(weight), len(weight) // heads
    for head in range(heads):
        for j in range(size // 2):
            result[head * size + 2 * j] = weight[head * size + j]
            result[head * size + 2 * j + 1] = weight[head * size + j + size // 2]
    return result


def write(model, folder, parts=1, embedding_by_columns=True, repeat_kv=1, **params):
    """The model in Meta's format, cut into ``parts``."""
    config = model.config
    own = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    whole = {"tok_embeddings.weight": own["model.embed_tokens.weight"], "norm.weight": own["model.norm.weight"]}
    whole["output.weight"] = own["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        for theirs, name in PER_LAYER.items():
            weight = own[f"model.layers.{layer}.{name}.weight"]
            if theirs in ("attention.wq", "attention.wk"):
                heads = config.num_attention_heads if theirs == "attention.wq" else config.num_key_value_heads
                weight = interleaved(weight, heads)
            if theirs in ("attention.wk", "attention.wv") and repeat_kv > 1:  # more parts than heads: each head in several parts
                weight = torch.cat([piece for piece in weight.chunk(config.num_key_value_heads) for _ in range(repeat_kv)])
            whole[f"layers.{layer}.{theirs}.weight"] = weight
    for part in range(parts):

        def cut(name, weight, part=part):
            if weight.ndim == 1:
                return weight.clone()
            by_columns = name.endswith(("wo.weight", "w2.weight")) or (name.startswith("tok") and embedding_by_columns)
            return weight.chunk(parts, dim=1 if by_columns else 0)[part].clone()

        content = {name: cut(name, weight) for name, weight in whole.items()}
        torch.save(content | {"rope.freqs": torch.ones(8)}, folder / f"consolidated.{part:02d}.pth")
    basic = {"dim": config.hidden_size, "n_layers": config.num_hidden_layers, "n_heads": config.num_attention_heads}
    basic |= {"n_kv_heads": config.num_key_value_heads, "norm_eps": config.rms_norm_eps, "vocab_size": -1, "multiple_of": 32}
    (folder / "params.json").write_text(json.dumps(basic | params))
    return folder


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("by_columns", [True, False])
def test_logits(tmp_path, parts, by_columns):
    theirs = random_llama(heads=8, kv=2)
    assert_same(theirs, read(write(theirs, tmp_path, parts, by_columns)), 200)


def test_llama2_without_a_base(tmp_path):
    """Multi-head attention, no n_kv_heads and no rope_theta in params.json: 10,000 and 4,096 are fixed in Meta's code. Llama 1's says the same."""
    theirs = random_llama(heads=4, kv=4)
    assert not open_pretrained(str(write(theirs, tmp_path))).note
    params = json.loads((tmp_path / "params.json").read_text())
    del params["n_kv_heads"]
    (tmp_path / "params.json").write_text(json.dumps(params))
    assert_same(theirs, read(tmp_path), 100)
    pretrained = open_pretrained(str(tmp_path))
    assert pretrained.position == {"scheme": "rope", "base": 10_000.0}
    assert (pretrained.shape.context, pretrained.shape.vocab_size, pretrained.shape.n_kv_heads) == (4096, 160, 4)
    assert "4,096 tokens" in pretrained.note and "model.context=2048" in pretrained.note


def test_more_parts_than_kv_heads(tmp_path):
    theirs = random_llama(heads=8, kv=2)
    assert_same(theirs, read(write(theirs, tmp_path, 4, repeat_kv=2)), 100)


def test_llama3_scaling(tmp_path):
    """At positions beyond the 8,192 of Llama 3, where the factor matters; a tied head that was saved twice."""
    theirs = random_llama(rope={"rope_theta": 500_000.0, "factor": 8.0} | LLAMA3_ROPE, context=131_072, heads=2, kv=1, tied=True)
    write(theirs, tmp_path, rope_theta=500_000.0, use_scaled_rope=True)
    pretrained = open_pretrained(str(tmp_path))
    ours = read(pretrained)
    assert (pretrained.shape.tie_embeddings, pretrained.shape.context) == (True, 131_072)
    wanted = {"scheme": "llama3", "base": 5e5, "factor": 8.0, "original": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert pretrained.position == wanted
    positions = torch.tensor([[0, 1, 100, 5000, 9000, 50_000, 131_071]])
    cos, sin = theirs.model.rotary_emb(torch.zeros(1), positions)
    rotation = ours.pattern.groups[0].rotation(positions, 131_072)
    torch.testing.assert_close(rotation.cos_q, cos[..., :8], atol=0.01, rtol=0)  # transformers' phases are fp32
    torch.testing.assert_close(rotation.sin_k, sin[..., :8], atol=0.01, rtol=0)
    assert_same(theirs, ours, 100)


def test_head_that_begins_like_the_embedding(tmp_path):
    """It is not tied to it for that."""
    theirs = random_llama()
    with torch.no_grad():
        theirs.lm_head.weight[:100] = theirs.model.embed_tokens.weight[:100]
    pretrained = open_pretrained(str(write(theirs, tmp_path)))
    assert not pretrained.shape.tie_embeddings
    assert_same(theirs, read(pretrained), 50)


def test_llama32_has_another_factor(tmp_path):
    """Known by its shape: params.json does not say. A file that does say is believed."""
    write(random_llama(heads=16, kv=1, head_dim=128, layers=1, ffn=8, vocab=32), tmp_path, rope_theta=5e5, use_scaled_rope=True)
    params = json.loads((tmp_path / "params.json").read_text())
    for change, factor in (({}, 8), ({"n_layers": 16}, 32), ({"n_layers": 16, "rope_scaling_factor": 4}, 4)):
        (tmp_path / "params.json").write_text(json.dumps(params | change))
        assert open_pretrained(str(tmp_path)).position["factor"] == factor


def test_code_llama(tmp_path):
    pretrained = open_pretrained(str(write(random_llama(), tmp_path, rope_theta=1e6)))
    assert (pretrained.position, pretrained.shape.context) == ({"scheme": "rope", "base": 1e6}, 16_384)


def fails(folder, *words):
    with pytest.raises(UserError) as caught:
        read(folder)
    for word in words:
        assert word in str(caught.value), f"no {word!r} in: {caught.value}"


def test_missing_part(tmp_path):
    write(random_llama(heads=8, kv=2), tmp_path, parts=2)
    first, second = sorted(tmp_path.glob("*.pth"))
    kept = second.read_bytes()
    second.unlink()
    fails(tmp_path, "consolidated.00.pth", "layers.0.attention.wq.weight", "64 of the model's 128 rows", "missing")
    first.unlink()
    fails(tmp_path, "consolidated.00.pth", "is missing")
    second.write_bytes(kept)
    fails(tmp_path, "consolidated.00.pth", "is missing")


def test_damaged_part(tmp_path):
    write(random_llama(heads=8, kv=2), tmp_path, parts=2)
    file = tmp_path / "consolidated.01.pth"
    content = torch.load(file)
    torch.save({name: tensor for name, tensor in content.items() if name != "layers.1.ffn_norm.weight"}, file)
    fails(tmp_path, "consolidated.01.pth", "layers.1.ffn_norm.weight", "is missing")
    file.write_bytes(file.read_bytes()[:-3000])
    fails(tmp_path, "consolidated.01.pth", "cannot be read")


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("layers.0.attention.wo.weight", torch.zeros(64, 3), ["layers.0.self_attn.o_proj.weight", "[64, 3]"]),
        ("layers.0.attention.wk.weight", torch.zeros(33, 64), ["layers.0.attention.wk.weight", "2 heads"]),
        ("layers.0.attention.wq.bias", torch.zeros(64), ["layers.0.attention.wq.bias", "no place"]),
        ("layers.0.feed_forward.gate.weight", torch.zeros(8, 64), ["feed_forward.gate", "experts"]),
        ("layers.7.ffn_norm.weight", torch.ones(64), ["layers.7.post_attention_layernorm.weight", "not in the model"]),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, name, tensor, words):
    file = write(random_llama(), tmp_path) / "consolidated.00.pth"
    torch.save(torch.load(file) | {name: tensor}, file)
    fails(tmp_path, "consolidated.00.pth", *words)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"quantization_args": {"group_size": 32}}, ["quantization_args"]),
        ({"dim": None}, ["dim is missing"]),
        ({"n_layers": "2"}, ["n_layers must be a whole number"]),
        ({"use_scaled_rope": True}, ["rope_theta is missing"]),
    ],
)
def test_params_that_are_not_known(tmp_path, params, words):
    write(random_llama(), tmp_path, **params)
    fails(tmp_path, "params.json", *words)
