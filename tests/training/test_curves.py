"""A hundred updates: the loss follows that of transformers' model under torch's own loss and optimizer, whatever is switched on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from lit_long.batch import NO_LOSS
from lit_long.config import ModelConfig
from lit_long.training.parallel import parallelize
from tests.model.test_llama import batch_of, small

SHAPE = ModelConfig(67, 48, 2, 4, 2, 12, 96, 1e-5, True, 64)
UPDATES, ROWS, LENGTH = 100, 4, 48


def batches(masked):
    """Noisy counting with a step of the document's own, so that there is something to learn; some tokens have no target."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(UPDATES):
        ids = (torch.rand(ROWS, LENGTH, generator=generator) < 0.06).cumsum(1)
        strides = torch.randint(1, 6, (ROWS, int(ids.max()) + 1), generator=generator).gather(1, ids)
        tokens = (strides.cumsum(1) + (torch.rand(ROWS, LENGTH, generator=generator) < 0.05) * 7) % SHAPE.vocab_size
        batch = batch_of(tokens, ids, masked)
        targets = batch.targets.clone()
        targets[:, -1], targets[0, : LENGTH // 2] = NO_LOSS, NO_LOSS
        yield batch._replace(targets=targets)


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def theirs(masked):
    """transformers' model with eager attention under an explicit mask, and plain cross-entropy over all logits."""
    config = LlamaConfig(
        vocab_size=SHAPE.vocab_size,
        hidden_size=SHAPE.d_model,
        intermediate_size=SHAPE.d_ffn,
        num_hidden_layers=SHAPE.n_layers,
        num_attention_heads=SHAPE.n_heads,
        num_key_value_heads=SHAPE.n_kv_heads,
        head_dim=SHAPE.head_dim,
        rms_norm_eps=SHAPE.norm_eps,
        tie_word_embeddings=True,
        attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    model = LlamaForCausalLM(config)
    model.model.load_state_dict(small(SHAPE).state_dict())
    optimizer = optimizer_of(model)
    losses = []
    for batch in batches(masked):
        allowed = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        if masked:
            allowed = allowed & (batch.document_ids[:, :, None] == batch.document_ids[:, None])
        mask = torch.where(allowed.expand(ROWS, -1, -1)[:, None], 0.0, torch.finfo(torch.float32).min)
        logits = model(batch.tokens, attention_mask=mask, position_ids=batch.positions, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=NO_LOSS)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def ours(masked, checkpointing, compiled):
    model = parallelize(small(SHAPE), None, checkpointing, compiled)
    optimizer = optimizer_of(model)
    losses = []
    for batch in batches(masked):
        loss = torch.div(*model(batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    ("checkpointing", "compiled"), [("none", False), ("selective", False), pytest.param("full", True, marks=pytest.mark.slow)]
)
def test_loss_curves_overlap(checkpointing, compiled, masked):
    expected, found = theirs(masked), ours(masked, checkpointing, compiled)
    assert expected[-1] < 0.7 * expected[0]  # something was learned
    assert max(abs(a - b) for a, b in zip(expected, found, strict=True)) < 2e-3
