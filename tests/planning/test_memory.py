"""Formulas of memory against torch's own tracker: of real updates on this machine, and of the real model on ranks that need not exist."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from lit_long.config import StageConfig, TrainerConfig, UserError
from lit_long.config.mesh import Mesh
from lit_long.planning.hardware import find_gpu, usable
from lit_long.planning.memory import moments, peak, states, weights
from lit_long.stages.costs import job_of
from lit_long.training.context_parallel import ContextShare
from lit_long.training.memory_trace import make_batch, trace, track
from lit_long.training.module import LongContextModule
from tests.planning.jobs import FIFTEEN, HEADS, LAYER, LLAMA_7B, LLAMA_70B, SMALL, job

WAYS = ("none", "selective", "attention", "full")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


def slow_except(quick, cases):
    """All ``cases``, those that are not in ``quick`` marked slow: torch's tracker looks at all tensors at each operation."""
    return [pytest.param(*case, marks=() if case in quick else pytest.mark.slow) for case in cases]


def off(each, found) -> float:
    """How far the formula is from what was found."""
    return peak(each).total / found.total - 1


@pytest.mark.parametrize(
    "way, precision", slow_except([*zip(WAYS, [*PRECISIONS, "bf16-mixed"], strict=True)], product(WAYS, PRECISIONS))
)
def test_real_updates_of_a_small_model(way, precision):
    """Every byte of tensors in a second update, activations the larger part: within 5 %."""
    each = job(SMALL, checkpointing=way, precision=precision, rows=4, sequences=4, loss_memory=2**21, kernels="cpu")
    assert abs(off(each, track(each))) < 0.05


def test_what_attention_checkpointing_keeps():
    """More than full: of a small model a few percent of all, which the tolerance above would hide."""
    more, full = (
        job(SMALL, checkpointing=way, precision="32-true", rows=4, sequences=4, loss_memory=2**21, kernels="cpu")
        for way in ("attention", "full")
    )
    assert peak(more).total - peak(full).total == pytest.approx(track(more).total - track(full).total, rel=0.02)


FAMILIES = {"heads": HEADS, "layer": LAYER}
SOME = [("heads", "selective", "bf16-true"), ("layer", "none", "32-true"), ("layer", "full", "bf16-mixed")]


@pytest.mark.parametrize("family, way, precision", slow_except(SOME, product(FAMILIES, WAYS, PRECISIONS)))
def test_real_updates_of_other_families(family, way, precision):
    """What a block of another family has besides, as the mesh's tests have it, too."""
    shape = replace(SMALL, **FAMILIES[family])
    each = job(shape, checkpointing=way, precision=precision, rows=4, sequences=4, loss_memory=2**21, kernels="cpu")
    assert abs(off(each, track(each))) < 0.05


def test_real_updates_of_layers_that_differ():
    """A rotation for each group of layers."""
    local = (("global", None), ("local", 32)) * 2
    each = job(SMALL, layers=local, rows=4, sequences=4, loss_memory=2**21, kernels="cpu", checkpointing="full")
    assert abs(off(each, track(each))) < 0.05


@pytest.mark.parametrize(
    "way, precision, rows, sequences",
    slow_except(
        [("none", "bf16-true", 8, 8)], [("none", "bf16-true", 8, 8), ("full", "32-true", 2, 6), ("selective", "bf16-mixed", 2, 6)]
    ),
)
def test_real_updates_of_other_micro_batches(way, precision, rows, sequences):
    """Larger ones, and several that are not equal."""
    each = job(SMALL, checkpointing=way, precision=precision, rows=rows, sequences=sequences, loss_memory=2**21, kernels="cpu")
    assert abs(off(each, track(each))) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_real_updates_of_15_million_parameters(way):
    each = job(FIFTEEN, checkpointing=way, precision="bf16-true", rows=4, sequences=4, loss_memory=2**24, kernels="cpu")
    assert abs(off(each, track(each))) < 0.05


@pytest.mark.parametrize("way", slow_except([("none",)], [("none",), ("full",)]))
def test_tensors_without_data_weigh_the_same(way):
    """The trace stands for a real run: same model, same bytes."""
    each = job(SMALL, checkpointing=way, rows=2, sequences=4, loss_memory=2**21, kernels="cpu", precision="32-true")
    assert trace(each).total == track(each).total


SHALLOW = replace(LLAMA_7B, n_layers=3)
MESHES = {
    "fsdp": (Mesh(shard=8), 8, {"precision": "bf16-true"}),
    "mixed": (Mesh(shard=64), 64, {"precision": "bf16-mixed"}),
    "mixed-whole": (Mesh(shard=8), 24, {"precision": "bf16-mixed", "accumulate": "whole"}),
    "mixed-sharded": (Mesh(shard=8), 24, {"precision": "bf16-mixed", "accumulate": "sharded"}),
    "copies": (Mesh(replicate=2, shard=4), 8, {"precision": "bf16-true"}),
    "whole-sums": (Mesh(shard=8), 24, {"precision": "bf16-true", "accumulate": "whole"}),
    "sharded-sums": (Mesh(shard=8), 16, {"precision": "bf16-true", "accumulate": "sharded"}),
    "tensor": (Mesh(shard=2, tensor=4), 2, {"precision": "bf16-true"}),
    "tensor-layer": (Mesh(shard=2, tensor=4), 2, {"precision": "bf16-true", "switches": LAYER}),
    "tensor-alone": (Mesh(tensor=2), 1, {"precision": "bf16-true"}),
    "tensor-mixed": (Mesh(shard=4, tensor=2), 4, {"precision": "bf16-mixed"}),
}
QUICK = [
    ("copies", "selective", 4096),
    ("tensor-mixed", "none", 4096),
    ("tensor-layer", "none", 4096),
]  # three cover copies, shards, shared matrices, mixed precision


@pytest.mark.parametrize("name, way, context", slow_except(QUICK, product(MESHES, WAYS, (4096, 32_768))))
def test_updates_on_ranks_that_need_not_exist(name, way, context):
    """Blocks of Llama 2 7B, three of them: what FSDP2 gathers and reduces, copies, whole and sharded sums, shared matrices."""
    mesh, sequences, settings = MESHES[name]
    settings = dict(settings)
    shape = replace(SHALLOW, **settings.pop("switches", {}))
    each = job(shape, mesh=mesh, sequences=sequences, context=context, checkpointing=way, kernels="cpu", **settings)
    assert abs(off(each, trace(each))) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("context, gpus", [(4096, 8), (16_384, 32), (32_768, 64)])
def test_all_of_7b(context, gpus):
    each = job(LLAMA_7B, mesh=Mesh(shard=gpus), context=context, checkpointing="full", precision="bf16-mixed", kernels="cpu")
    assert abs(off(each, trace(each))) < 0.05


GPU_CASES = [
    ("7B, one GPU", LLAMA_7B, 32_768, {"precision": "bf16-true"}, 64.4, True),
    ("7B, one GPU, mixed", LLAMA_7B, 32_768, {"precision": "bf16-mixed"}, 124.3, False),
    ("70B, 64 GPUs", LLAMA_70B, 16_384, {"strategy": "fsdp", "nodes": 8, "devices": 8}, 77.5, False),
    (
        "70B, 64 GPUs, 16k",
        LLAMA_70B,
        16_384,
        {"strategy": "fsdp", "nodes": 8, "devices": 8, "micro_batch_tokens": 16_384},
        50.9,
        True,
    ),
]


def gpu_job(model, context, settings):
    """With ``trainer=gpu`` and full checkpointing, four sequences an update and rank."""
    trainer = {
        "accelerator": "gpu",
        "precision": "bf16-mixed",
        "compile": True,
        "micro_batch_tokens": 32_768,
        "accumulate": "sharded",
    }
    trainer = TrainerConfig(
        **trainer | {"checkpointing": "full"} | settings
    )  # as tests/config/test_compose.py holds configs/trainer/gpu.yaml to
    size = 4 * context * trainer.nodes * trainer.devices
    return job_of(StageConfig(context=context, tokens=size, tokens_per_update=size, model=model, trainer=trainer), "stage.yaml")


@pytest.mark.parametrize(
    ("model", "context", "settings", "gib", "fits"), [case[1:] for case in GPU_CASES], ids=[case[0] for case in GPU_CASES]
)
def test_large_models_by_the_defaults_of_gpus(model, context, settings, gib, fits):
    """On H100s. A micro-batch of 70B is one sequence of 16k, not two."""
    needed = peak(gpu_job(model, context, settings)).total
    assert needed / 2**30 == pytest.approx(gib, abs=0.1)
    assert (needed <= usable(find_gpu("h100"))) is fits


@pytest.mark.slow
@pytest.mark.parametrize(("model", "context", "settings"), [case[1:4] for case in GPU_CASES if "mixed" not in case[0]])
def test_their_blocks_are_as_planned(model, context, settings):
    """Two of them; all of 7B on one GPU, once: 57.73 GiB by formula, 57.73 counted."""
    each = replace(gpu_job(replace(model, n_layers=2), context, settings), kernels="cpu")
    assert abs(off(each, trace(each))) < 0.05


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 40, 64, 100, 10_000])
def test_micro_batches_are_those_of_training(ranks, tokens):
    """Also where ranks share sequences: each has room for more of them."""
    trainer = TrainerConfig(strategy="fsdp", devices=2 * ranks, context_parallel=ranks, micro_batch_tokens=tokens)
    config = StageConfig(context=64, tokens=1280, tokens_per_update=1280, model=SMALL, trainer=trainer)
    planned = job_of(config, "stage.yaml")
    module = LongContextModule(SMALL, {"scheme": "rope"}, config.optim, updates=1, micro_batch_tokens=tokens)
    if ranks > 1:
        group = SimpleNamespace(group_name="none")
        module.share = ContextShare(SimpleNamespace(get_local_rank=lambda: 0, size=lambda: ranks, get_group=lambda: group))
    pieces = module.micro_batches(module.own_tokens(make_batch(planned)))
    assert planned.micro_batches == len(pieces) and planned.local_tokens == max(piece.tokens.numel() for piece in pieces)
    assert planned.local_tokens <= max(tokens, 64 // ranks)


def test_context_parallelism_is_not_traced():
    with pytest.raises(UserError, match="context_parallel=1"):
        trace(job(SMALL, mesh=Mesh(context=2)))


# ------------------------------------------------------------------------------------------------- closed forms


def test_states_are_what_everyone_counts():
    """Rajbhandari et al. 2020: 16 bytes a parameter in mixed precision with fp32 gradients, here 4 + 4 + 8; pure bf16 takes half."""
    mixed, half = job(LLAMA_7B, precision="bf16-mixed"), job(LLAMA_7B, precision="bf16-true")
    assert sum(states(mixed).values()) == pytest.approx(12 * 6_738_415_616) == 2 * sum(states(half).values())
    spread = job(LLAMA_7B, mesh=Mesh(shard=16), precision="bf16-mixed")
    assert sum(states(spread).values()) == pytest.approx(12 * 6_738_415_616 / 16)


def test_a_mesh_divides_what_it_should():
    """Copies save nothing, shards save states, tensor ranks the matrices and what lies between them."""
    alone = weights(job(LLAMA_70B))
    cut = weights(job(LLAMA_70B, mesh=Mesh(tensor=8)))
    assert alone.all == pytest.approx(68_976_648_192)
    assert cut.products * 8 == alone.products and cut.head * 8 == alone.head
    copies = job(LLAMA_70B, mesh=Mesh(replicate=4, shard=8), sequences=32)
    assert states(copies) == states(job(LLAMA_70B, mesh=Mesh(shard=8)))


def test_context_ranks_share_activations_but_not_keys():
    """Twice the context ranks halve everything that a token has but the keys and values of the whole sequence."""
    alone, shared = (job(LLAMA_70B, mesh=Mesh(context=size), context=65_536, checkpointing="none") for size in (2, 4))
    from lit_long.planning.activations import pieces

    one, two = pieces(alone), pieces(shared)
    assert two["keys and values"] * shared.local_tokens == one["keys and values"] * alone.local_tokens
    assert all(one[name] == two[name] for name in one if name != "keys and values")
    assert peak(shared).activations < 0.6 * peak(alone).activations


def test_checkpointing_saves_memory():
    sizes = [peak(job(LLAMA_7B, mesh=Mesh(shard=8), context=32_768, checkpointing=way)).total for way in WAYS]
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < sizes[0] / 3


def test_the_peak_is_a_moment():
    each = job(LLAMA_7B, mesh=Mesh(shard=8))
    assert peak(each) in moments(each) and peak(each).total == max(moment.total for moment in moments(each))


@pytest.mark.gpu
@pytest.mark.parametrize("way", WAYS)
def test_a_gpu_allocates_what_the_formula_says(way):
    """max_memory_allocated of a second update of 0.2 billion parameters in bf16, within 10 %."""
    from torch.optim import AdamW

    from lit_long.config import ModelConfig
    from lit_long.model.llama import Llama
    from lit_long.model.loss import chunk_tokens
    from lit_long.positions import build
    from lit_long.training.memory_trace import make_batch, update
    from lit_long.training.parallel import parallelize

    shape = ModelConfig(32_000, 1024, 12, 16, 16, 64, 2816, 1e-5, False, 4096, 10_000.0)
    each = job(shape, checkpointing=way, precision="bf16-true", rows=2, sequences=2)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = Llama(shape, build({"scheme": "rope"}, shape.head_dim), chunk_tokens(shape.vocab_size, each.loss_memory))
    finally:
        torch.set_default_dtype(torch.float32)
    parallelize(model, None, way)
    optimizer = AdamW(model.parameters(), lr=1e-5, fused=True)
    batch = make_batch(each).to(torch.device("cuda"))
    update(model, optimizer, batch, each)
    torch.cuda.reset_peak_memory_stats()
    update(model, optimizer, batch, each)
    assert torch.cuda.max_memory_allocated() == pytest.approx(peak(each).total, rel=0.1)
