"""The memory of an evaluation by formula, against the real model run on tensors without data, whose bytes are counted as they come and go.

A CPU's norm in bf16 is made of simple operations in fp32, which the formula, a GPU's, does not count: cases are such that something else is wider.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_long.batch import Batch
from lit_long.config import ModelConfig, UserError
from lit_long.generation import Sequences, decode, tables
from lit_long.generation.sharded import shard_weights, share_products
from lit_long.model.llama import Llama
from lit_long.model.loss import chunk_tokens
from lit_long.planning.inference import Reading, activations, cache_size, weights
from lit_long.planning.memory import BATCH
from lit_long.positions import build
from lit_long.stages.model import check_room

LLAMA_7B = ModelConfig(context=32_768)
GROUPED = ModelConfig(32_000, 1024, 4, 16, 4, 64, 2816, 1e-5, False, 32_768)
LOSS_MEMORY = 2**29
DTYPES = {4: torch.float32, 2: torch.bfloat16}


class Peak(TorchDispatchMode):
    """Bytes of all tensors that live, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.held: set[int] = set()

    def hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if (key := storage._cdata) not in self.held:
            self.held.add(key)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.release, key, storage.nbytes())

    def release(self, key: int, size: int) -> None:
        self.held.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, torch.Tensor):
                self.hold(each)
        return found


def traced(shape: ModelConfig, reading: Reading, width: int, mesh: DeviceMesh | None, same: bool = False) -> tuple[int, int]:
    """The most bytes while a model reads, and while it then adds tokens, if it does; ``mesh``: that shares it. ``same``: whether prompts share
    all tokens but the last."""
    peak = Peak()
    encoder, chunk = build({"scheme": "rope"}, shape.head_dim), chunk_tokens(shape.vocab_size, LOSS_MEMORY)
    with torch.device("meta"):
        model = Llama(shape, encoder, chunk).to(DTYPES[width]).requires_grad_(False)
    if mesh is not None:
        shard_weights(model, mesh)
        share_products(model, mesh)
    with FakeTensorMode(allow_non_fake_inputs=True), peak, torch.no_grad():
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                own = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                setattr(module, name, torch.nn.Parameter(own, requires_grad=False))
        tokens = torch.zeros(reading.rows, reading.length, dtype=torch.int64)
        positions = torch.arange(reading.length).repeat(reading.rows, 1)
        batch = Batch(tokens, tokens.clone(), torch.zeros_like(tokens), positions, mask_documents=False)
        if reading.cached:
            rest = [0] * (reading.length - 9)
            prompts = [[*rest, row] if same else [row, *rest] for row in range(reading.rows)]
            sequences = Sequences(model, prompts, 8)
            sequences.read()
            reading_most, peak.most = peak.most, peak.now
            with patch.object(FakeTensor, "tolist", lambda tokens: [0] * len(tokens)):  # there are no values
                for _ in range(3):
                    sequences.step(torch.zeros(reading.rows, dtype=torch.int64))
            return reading_most, peak.most
        model(batch, per_token=True)
    return peak.most, 0


@pytest.fixture
def mesh(request):
    """The mesh of so many ranks, of which the others do not exist; None for one."""
    if request.param == 1:
        yield None
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield DeviceMesh.from_group(dist.group.WORLD, "cpu")
    dist.destroy_process_group()


CASES = [
    pytest.param(LLAMA_7B, Reading(1, 32_768, False), 2, 1, marks=pytest.mark.slow),
    pytest.param(LLAMA_7B, Reading(1, 4096, True), 4, 1, marks=pytest.mark.slow),
    (GROUPED, Reading(1, 4096, False), 4, 1),
    (GROUPED, Reading(1, 8192, False), 2, 4),
    (GROUPED, Reading(8, 512, True), 2, 1),
    (GROUPED, Reading(8, 512, True), 2, 4),
    (GROUPED, Reading(1, 4096, False), 2, 2),
]


@pytest.mark.parametrize(("shape", "reading", "width", "mesh"), CASES, indirect=["mesh"])
def test_the_formula_is_what_the_model_takes(shape, reading, width, mesh, monkeypatch):
    monkeypatch.setattr(tables, "same_tables", lambda *_: True)  # which looks at values
    ranks = 1 if mesh is None else mesh.size()
    held = weights(shape, ranks, width)
    beside = cache_size(shape, reading, ranks, width) + activations(shape, reading, ranks, width, LOSS_MEMORY)
    beside += reading.rows * reading.length * BATCH
    found, adding = traced(shape, reading, width, mesh)
    if (
        reading.cached
    ):  # then there are the cache, the tables, and logits: each rank's, and the parts and the whole that are made of them
        logits = reading.rows * width * shape.vocab_size * (2 + 1 / ranks if ranks > 1 else 1)
        cached = cache_size(shape, reading, ranks, width) + logits + 6 * shape.head_dim * reading.length
        assert adding - held == pytest.approx(cached, rel=0.05)
    print(f"{(found - held) / 2**20:.1f} MiB beside the weights, {beside / 2**20:.1f} by formula")
    assert held + beside == pytest.approx(found, rel=0.02)
    assert beside == pytest.approx(found - held, rel=0.1)


@pytest.mark.parametrize("shape", [GROUPED, replace(GROUPED, n_kv_heads=16)], ids=["heads share keys", "each has its own"])
def test_a_shared_beginning_takes_no_more(shape, monkeypatch):
    """Than the formula counts, which knows nothing of it: a layer's keys and values of many rows are less than a chunk's hidden units."""
    monkeypatch.setattr(tables, "same_tables", lambda *_: True)
    reading = Reading(128, 512, True)
    found, _ = traced(shape, reading, 2, None, same=True)
    beside = cache_size(shape, reading, 1, 2) + activations(shape, reading, 1, 2, LOSS_MEMORY)
    assert found <= weights(shape, 1, 2) + beside
    monkeypatch.setattr(decode, "KEY_CHUNKS", 1000)
    assert traced(shape, reading, 2, None, same=True)[0] > weights(shape, 1, 2) + beside


def test_a_command_refuses_weights_that_a_gpu_cannot_hold():
    size = 6_738_415_616
    check_room(LLAMA_7B, torch.bfloat16, 2 * size)
    for dtype, free, remedy in (
        (torch.float32, 3 * size, "use dtype=bfloat16, device=cpu"),
        (torch.bfloat16, size, "use device=cpu"),
    ):
        with pytest.raises(
            UserError, match=f"{size * dtype.itemsize / 2**30:.1f} GiB in .* {free / 2**30:.1f} GiB free: {remedy}"
        ):
            check_room(LLAMA_7B, dtype, free)
