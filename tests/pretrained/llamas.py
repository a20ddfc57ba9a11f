"""Small random Llamas made by transformers, ours read from their files, and how far the two are apart."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_long.batch import Batch
from lit_long.model.llama import Llama
from lit_long.positions.layers import build_layers
from lit_long.pretrained import PretrainedWeights, open_pretrained
from lit_long.pretrained.weights import load_pretrained

SCALED = {"rope_type": "llama3", "original_max_position_embeddings": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# The published shapes, smaller: heads, key-value heads, tying, epsilon, base and scaling are theirs; an original context of 64 stands
# for 8,192 tokens.
SHAPES = {
    "llama2": {"heads": 4, "kv": 4, "eps": 1e-5, "rope": {"rope_theta": 10_000.0}, "context": 128},
    "llama3": {"heads": 8, "kv": 2, "eps": 1e-5, "rope": {"rope_theta": 500_000.0}, "context": 256},
    "llama3.1": {"heads": 8, "kv": 2, "eps": 1e-5, "rope": {"rope_theta": 500_000.0, "factor": 8.0} | SCALED, "context": 1024},
    "llama3.2": {"heads": 8, "kv": 2, "eps": 1e-5, "rope": {"rope_theta": 500_000.0, "factor": 32.0} | SCALED, "context": 1024}
    | {"tied": True},
    "tinyllama": {"heads": 8, "kv": 1, "eps": 1e-5, "rope": {"rope_theta": 10_000.0}, "context": 64},
    "smollm2": {"heads": 9, "kv": 3, "eps": 1e-5, "rope": {"rope_theta": 100_000.0}, "context": 256, "tied": True},
}


def random_llama(seed=0, heads=4, kv=2, eps=1e-5, rope=None, context=64, tied=False, vocab=160, ffn=96, layers=2, head_dim=16):
    """transformers' Llama with weights large enough for attention, and so for positions, to matter."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=heads * head_dim,
            intermediate_size=ffn,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv,
            rms_norm_eps=eps,
            tie_word_embeddings=tied,
            max_position_embeddings=context,
            rope_parameters=dict(rope or {"rope_theta": 10_000.0}),
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.ndim > 1 else parameter.uniform_(0.5, 1.5)
    return model


def save(model, folder: Path, layout: str = "new", **options) -> Path:
    """Save by transformers; ``layout="old"``: rope_theta beside rope_scaling, as transformers 4 writes."""
    model.save_pretrained(folder, **options)
    if layout == "old":
        edit_config(folder, lambda config: config | old_layout(config.pop("rope_parameters")))
    return folder


def old_layout(parameters: dict) -> dict:
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    return {"rope_theta": parameters["rope_theta"], "rope_scaling": None if scaling == {"rope_type": "default"} else scaling}


def edit_config(folder: Path, change) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def read(source: PretrainedWeights | Path | str) -> Llama:
    """Our model with the weights of ``source``, streamed into a model on the meta device."""
    pretrained = source if isinstance(source, PretrainedWeights) else open_pretrained(str(source))
    with torch.device("meta"):
        model = Llama(pretrained.shape, build_layers(pretrained.layers, pretrained.position, pretrained.shape.head_dim))
    load_pretrained(model, pretrained)
    return model


def batch_of(tokens: torch.Tensor) -> Batch:
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    return Batch(tokens, torch.roll(tokens, -1, dims=1), torch.zeros_like(tokens), positions, mask_documents=False)


@torch.no_grad()
def difference(theirs, ours: Llama, length: int) -> tuple[float, float]:
    """(largest difference of logits, mean KL divergence in nats) over ``length`` tokens, in fp32."""
    tokens = torch.randint(0, ours.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(length))
    expected, found = theirs(tokens).logits, ours.logits(batch_of(tokens))
    wanted = expected.double().log_softmax(-1)
    divergence = (wanted.exp() * (wanted - found.double().log_softmax(-1))).sum(-1).mean()
    return float((expected - found).abs().max()), float(divergence)


def assert_same(theirs, ours: Llama, length: int) -> None:
    """Within what fp32 allows; field.md, section D: a wrong layout of queries and keys can be as small as 1e-6 nats."""
    largest, divergence = difference(theirs, ours, length)
    assert largest <= 1e-4, f"logits differ by {largest:.2e}"
    assert divergence <= 1e-8, f"KL divergence {divergence:.2e}"
