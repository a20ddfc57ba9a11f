"""Small random Llamas for generation, and what one full forward per step would generate."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from lit_long.batch import Batch
from lit_long.config import ModelConfig
from lit_long.generation import Sequences, generate
from lit_long.model.attention import without_cudnn
from lit_long.model.llama import Llama
from lit_long.positions import PositionalEncoder, build

SMALL = ModelConfig(vocab_size=97, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ffn=96, context=64)


def small(config: ModelConfig = SMALL, encoder: PositionalEncoder | None = None, seed: int = 0, **position) -> Llama:
    """With weights large enough for attention, and so for positions, to matter."""
    model = Llama(config, encoder or build({"scheme": "rope"} | position, config.head_dim))
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.ndim > 1 else parameter.uniform_(0.5, 1.5, generator=generator)
    return model


def prompts(*lengths: int, vocabulary: int = 97) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def full_logits(model: Llama, row: list[int]) -> torch.Tensor:
    """Logits [V] after ``row``, from one forward of it all."""
    return model.head(full_hidden(model, row))[-1]


@torch.no_grad()
def full_hidden(model: Llama, row: list[int]) -> torch.Tensor:
    """Hidden states [T, D] from one forward of the row."""
    tokens = torch.tensor([row])
    positions = torch.arange(len(row))[None]
    return model.hidden_states(Batch(tokens, tokens, torch.zeros_like(tokens), positions, mask_documents=False))[0]


def count_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each pass through a model's layers from now on the tokens, padding included."""
    read: list[int] = []
    through = Llama.through_layers

    def counted(self, tokens_BT, *others, **options):
        read.append(tokens_BT.numel())
        return through(self, tokens_BT, *others, **options)

    monkeypatch.setattr(Llama, "through_layers", counted)
    return read


def full_greedy(model: Llama, row: list[int], steps: int) -> list[int]:
    row = list(row)
    for _ in range(steps):
        row.append(int(full_logits(model, row).argmax()))
    return row[-steps:]


@torch.inference_mode()
def gaps(model: Llama, rows: list[list[int]], steps: int, **options) -> list[float]:
    """For every step, how far the logits are from those of one full forward of each row alone; tokens are the likeliest ones."""
    sequences = Sequences(model, rows, steps, **options)
    logits, found = sequences.read(), []
    for _ in range(steps):
        expected = torch.stack([full_logits(model, row) for row in sequences.rows])
        found.append(float((logits - expected).abs().max()))
        logits = sequences.step(logits.argmax(-1))
    return found


def count_plans(monkeypatch: pytest.MonkeyPatch, *users: ModuleType) -> dict[bool, set[tuple[int, ...]]]:
    """The shapes that reach SDPA from now on, by whether cuDNN, which makes a plan for each, may take them; ``users`` of `without_cudnn` do as on a GPU."""
    found: dict[bool, set[tuple[int, ...]]] = {True: set(), False: set()}
    real = torch.nn.functional.scaled_dot_product_attention

    def counted(q: torch.Tensor, k: torch.Tensor, *more, **how) -> torch.Tensor:
        found[torch.backends.cuda.cudnn_sdp_enabled()].add((*q.shape, *k.shape))
        return real(q, k, *more, **how)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    for user in users:
        monkeypatch.setattr(user, "without_cudnn", lambda device: without_cudnn(torch.device("cuda", 0)))
    return found


__all__ = [
    "SMALL",
    "count_plans",
    "count_tokens",
    "full_greedy",
    "full_hidden",
    "full_logits",
    "gaps",
    "generate",
    "prompts",
    "small",
]
