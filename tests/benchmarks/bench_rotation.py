"""What rotation costs: its share of an attention layer on the CPU at 2,048 tokens, and beside transformers' rotary in the same run.

make bench
"""

from __future__ import annotations

import random
import time

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from lit_long.config import ModelConfig
from lit_long.model.attention import CAUSAL
from lit_long.model.llama import Attention
from lit_long.positions import build
from lit_long.positions.rotary import apply_rotary
from lit_long.processor import describe_machine

SHAPES = {  # heads, components, d_model, rounds: those of configs/model/
    "tiny": (3, 64, 192, 200),
    "llama2-7b": (32, 128, 4096, 8),
}
TOKENS = 2048


def seconds(rounds: int, *steps) -> list[float]:
    """Best times of the steps, in an order drawn anew each round: all meet the same machine, and the same caches, which are cold after the
    whole layer and warm after a step on the same queries and keys."""
    draw = random.Random(0)
    times = [[] for _ in steps]
    for round_number in range(rounds + 1):
        for index in draw.sample(range(len(steps)), len(steps)):
            start = time.perf_counter()
            steps[index]()
            if round_number:
                times[index].append(time.perf_counter() - start)
    return [min(own) for own in times]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_rotation(name, dtype, backward):
    heads, head_dim, width, rounds = SHAPES[name]
    layer = Attention(ModelConfig(d_model=width, n_heads=heads, n_kv_heads=heads, head_dim=head_dim)).to(dtype)
    x = torch.randn(1, TOKENS, width, dtype=dtype)
    q, k = (torch.randn(1, TOKENS, heads, head_dim, dtype=dtype).transpose(1, 2).requires_grad_(backward) for _ in range(2))
    positions = torch.arange(TOKENS)[None]
    encoder = build({"scheme": "rope"}, head_dim)
    rotation = encoder.rotation(positions, TOKENS).widened()
    config = LlamaConfig(hidden_size=heads * head_dim, num_attention_heads=heads, head_dim=head_dim)
    embedding = LlamaRotaryEmbedding(config)
    cos, sin = embedding(x, positions)

    def finish(*outputs):
        if backward:
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    def whole_layer():
        with torch.set_grad_enabled(backward):
            finish(layer(x, rotation, CAUSAL))

    def ours():
        finish(apply_rotary(q, rotation.cos_q, rotation.sin_q), apply_rotary(k, rotation.cos_k, rotation.sin_k))

    def theirs():
        finish(*apply_rotary_pos_emb(q, k, cos, sin))

    layer_time, mine, peers, table, their_table = seconds(
        rounds, whole_layer, ours, theirs, lambda: encoder.rotation(positions, TOKENS).widened(), lambda: embedding(x, positions)
    )
    print(
        f"\n{name}, {dtype}, {'with backward' if backward else 'forward'}: {mine / layer_time:.1%} of an attention layer "
        f"({mine * 1e3:.2f} of {layer_time * 1e3:.1f} ms), {peers / mine:.2f} × as fast as transformers; tables, once a forward: "
        f"{table * 1e3:.2f} ms (transformers {their_table * 1e3:.2f}) ({describe_machine(torch.device('cpu'))})"
    )
