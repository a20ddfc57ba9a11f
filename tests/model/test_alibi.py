"""ALiBi against Bloom's slopes and a softmax written out; where nothing computes it, it is refused."""

from __future__ import annotations

import math
import re

import pytest
import torch

from lit_long.config import LayerGroupConfig, LayersConfig, UserError, read_command
from lit_long.generation.decode import generate, generate_in_turn
from lit_long.model.attention import attention, attention_masks, group_slopes
from lit_long.positions import build
from lit_long.positions.layers import as_pattern, build_layers
from lit_long.stages.plan import make_plan
from tests.generation.llamas import prompts, small
from tests.model.test_llama import batch_of

ALIBI = build({"scheme": "alibi"}, 16)
GROUPS = as_pattern(ALIBI).groups


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 14, 16, 20])
def test_slopes_are_blooms(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]  # slope × position 1
    torch.testing.assert_close(torch.tensor(ALIBI.score_slopes(heads)), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("documents", [False, True])
def test_against_a_written_out_softmax(documents, dtype):
    """Values and gradients, of heads that share keys, of documents whose positions begin anew; 700 tokens are more than one piece."""
    T, ids = 700, torch.zeros(2, 700, dtype=torch.int64)
    if documents:
        ids[0, 300:], ids[0, 303:], ids[1, 7:] = 1, 2, 3
    batch = batch_of(ids, ids, documents)
    generator = torch.Generator().manual_seed(0)
    q, k, v, weight = (torch.randn(2, T, h, 16, generator=generator).transpose(1, 2).to(dtype) for h in (4, 2, 2, 4))
    (slopes,) = group_slopes(GROUPS, 4, torch.device("cpu"))
    (mask,) = attention_masks(batch, dtype, 16, [None], [slopes])
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    back = torch.arange(T)[:, None] - torch.arange(T)
    seen = (back >= 0) & (ids[:, :, None] == ids[:, None, :])
    keys, values = (x.repeat_interleave(2, dim=1) for x in exact[1:])
    scores = exact[0] @ keys.transpose(2, 3) / 4 - slopes.double()[:, None, None] * back
    truth = scores.masked_fill(~seen[:, None], -math.inf).softmax(-1) @ values
    truth = truth, *torch.autograd.grad((truth * weight).sum(), exact)
    ours = [x.clone().requires_grad_() for x in (q, k, v)]
    found = attention(*ours, mask)
    assert found.dtype == dtype
    for one, other in zip((found, *torch.autograd.grad((found * weight).sum(), ours)), truth, strict=True):
        error = (one.double() - other).norm() / other.norm()
        assert error < (2e-5 if dtype == torch.float32 else 2e-2)


def test_prompts_that_share_a_beginning_are_read_from_where_they_differ():
    model = small(scheme="alibi")
    first, second = prompts(30, 9)
    rows = [first, first[:20] + second, first[:20]]
    assert generate_in_turn(model, rows, 8) == [generate(model, [row], 8)[0] for row in rows]


def test_positions_matter_and_distance_alone():
    model, nope = small(scheme="alibi"), small(scheme="nope")
    tokens = torch.tensor(prompts(40))
    batch = batch_of(tokens, torch.zeros_like(tokens), False)
    with torch.no_grad():
        found = model.logits(batch)
        assert (found - nope.logits(batch)).abs().max() > 0.1
        torch.testing.assert_close(model.logits(batch._replace(positions=batch.positions + 1000)), found, rtol=1e-3, atol=1e-3)


def test_what_does_not_compute_it_says_so():
    with pytest.raises(UserError, match="on CPUs only, not on cuda"):
        group_slopes(GROUPS, 4, torch.device("cuda"))
    with pytest.raises(UserError, match="65,536 tokens, not 131,072"):
        build({"scheme": "alibi"}, 16, length=2**17)
    with pytest.raises(UserError, match=re.escape("layers.groups.local.window: a group whose scores fall with distance (ALiBi)")):
        build_layers(LayersConfig({"local": LayerGroupConfig(window=8)}, ["local"]), {"scheme": "alibi"}, 16)
    mask = attention_masks(
        batch_of(torch.zeros(1, 8, dtype=torch.int64), torch.zeros(1, 8, dtype=torch.int64), False), torch.float32, 16, [None]
    )[0]
    q, k, v = (torch.randn(1, heads, 8, 16) for heads in (2, 1, 1))
    with pytest.raises(UserError, match="ranks cannot share them"):
        attention(q, k, v, mask._replace(slopes=group_slopes(GROUPS, 4, torch.device("cpu"))[0]))


@pytest.mark.parametrize(
    "words",
    [
        ["trainer=gpu"],
        ["trainer=fsdp", "trainer.context_parallel=2", "stages.base.optim.name=adamw"],
        ["trainer=fsdp", "trainer.devices=2", "trainer.tensor_parallel=2", "model.n_heads=4", "stages.base.optim.name=adamw"],
    ],
    ids=["gpu", "context", "tensor"],
)
def test_a_plan_refuses_it(words):
    plan = ["base=train", "dry_run=true", "grid.position=[rope,nope,alibi]", "seed=0"]
    assert [trial.variant for trial in make_plan(read_command(plan)).trials] == ["rope", "nope", "alibi"]
    with pytest.raises(UserError, match="alibi: its scores are computed on CPUs only"):
        make_plan(read_command([*plan, *words]))
