"""What a window saves: attention of a local layer beside that of a full one on the CPU, forward and backward, at 8,192 tokens and W = 512.

pytest -s tests/benchmarks/bench_local_layers.py

The pairs of tokens allow 8.25 times; blocks of queries meet W and a block's more keys. The yardstick of the full layer is torch's flash kernel.
"""

from __future__ import annotations

import pytest
import torch

from lit_long.batch import Batch
from lit_long.model import local
from lit_long.model.attention import attention, attention_masks
from lit_long.processor import describe_machine
from tests.benchmarks.bench_rotation import seconds

TOKENS, WINDOW, ROUNDS = 8192, 512, 3
SHAPES = {
    "tiny": (3, 3, 64),
    "smollm2-135m": (9, 3, 64),
    "llama2-7b": (8, 8, 128),
}  # heads, key-value heads (a quarter of 7B's), components


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_local_layers(name, dtype):
    heads, shared, head_dim = SHAPES[name]
    q, k, v, weight = (torch.randn(1, TOKENS, h, head_dim).to(dtype).transpose(1, 2) for h in (heads, shared, shared, heads))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    tokens = torch.zeros(1, TOKENS, dtype=torch.int64)
    batch = Batch(tokens, tokens, tokens, tokens, mask_documents=False)
    full, windowed = attention_masks(batch, dtype, head_dim, [None, WINDOW])

    def step(mask):
        torch.autograd.grad(attention(*inputs, mask), inputs, weight)

    whole, own = seconds(ROUNDS, lambda: step(full), lambda: step(windowed))
    computed = TOKENS * (WINDOW + local.BLOCK - 1)
    print(
        f"\n{name}, {dtype}: a window of {WINDOW} is {whole / own:.1f} × as fast as all of {TOKENS} tokens ({own:.3f} and {whole:.3f} s); its "
        f"pairs allow {TOKENS * (TOKENS + 1) / 2 / (TOKENS * WINDOW - WINDOW * (WINDOW - 1) / 2):.1f} ×, blocks of {local.BLOCK} "
        f"{TOKENS * (TOKENS + 1) / 2 / computed:.1f} × ({describe_machine(torch.device('cpu'))})"
    )
