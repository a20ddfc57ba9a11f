"""One forward and backward of the tiny model: ours against transformers' LlamaForCausalLM, the same work in the same run.

make bench
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_long.config import ModelConfig
from lit_long.model.batch import Batch
from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.training.callbacks import machine

TINY = ModelConfig(4096, 192, 4, 3, 3, 64, 512, 1e-5, True, 256, 625.0)
ROUNDS = 7


def peer() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=3,
            num_key_value_heads=3,
            head_dim=64,
            tie_word_embeddings=True,
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": 625.0},
        )
    )


def seconds(step) -> float:
    step()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("rows", "length"), [(8, 256), (1, 2048)])
def test_forward_and_backward(rows, length, bf16):
    tokens = torch.randint(4096, (rows, length))
    batch = Batch(tokens, tokens, torch.zeros_like(tokens), torch.arange(length).expand_as(tokens))
    ours, theirs = Llama(TINY, build({"scheme": "rope", "base": 625.0}, 64)), peer()
    ours.init_weights(0)

    def our_step():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            nats, count = ours(batch)
        (nats / count).backward()

    def their_step():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = theirs(tokens, labels=tokens).loss
        loss.backward()

    mine, peers = seconds(our_step), seconds(their_step)
    name = f"{rows} × {length}, {'bf16' if bf16 else 'fp32'}"
    print(f"\n{name}: {rows * length / mine:,.0f} tokens/s, {peers / mine:.2f} × transformers ({machine(torch.device('cpu'))})")
