"""The chunked loss against torch's own, value and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lit_long.model.batch import NO_LOSS
from lit_long.model.loss import summed_nats


@pytest.mark.parametrize("chunk", [1, 7, 30, 60, 1000])
def test_value_and_gradients_are_torchs(chunk):
    torch.manual_seed(0)
    hidden = torch.randn(3, 20, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(50, (3, 20))
    targets[1, 5:] = NO_LOSS
    nats, tokens = summed_nats(hidden, targets, lambda h: F.linear(h, weight), chunk)
    ours = torch.autograd.grad(nats, (hidden, weight))
    plain = F.cross_entropy(F.linear(hidden, weight).flatten(0, 1), targets.flatten(), ignore_index=NO_LOSS, reduction="sum")
    theirs = torch.autograd.grad(plain, (hidden, weight))
    assert int(tokens) == 45
    torch.testing.assert_close(nats, plain)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_only_one_chunk_of_logits_exists_at_once():
    """What forward keeps for backward grows with the hidden states, not with tokens × vocabulary."""
    hidden, weight = torch.randn(1, 512, 8, requires_grad=True), torch.randn(4096, 8, requires_grad=True)
    kept = 0

    def pack(tensor):
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        summed_nats(hidden, torch.zeros(1, 512, dtype=torch.int64), lambda h: F.linear(h, weight), 64)
    assert kept < 512 * 4096 / 4


def test_no_target_no_loss():
    nats, tokens = summed_nats(torch.randn(1, 4, 8), torch.full((1, 4), NO_LOSS), lambda h: h, 2)
    assert float(nats) == 0 and int(tokens) == 0
