"""Activation checkpointing and compilation change nothing but memory and speed."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn.utils import get_total_norm
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from lit_long.batch import PADDING
from lit_long.config import UserError
from lit_long.training.parallel import clip_gradients, parallelize
from tests.model.test_llama import batch_of, small

DOCUMENTS = torch.tensor([[0] * 13 + [1] * 19, [2] * 5 + [3] * 20 + [PADDING] * 7])


class Operations(TorchDispatchMode):
    """Collects the names of what torch dispatches."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def gradients(model, masked):
    tokens = torch.randint(97, (2, 32), generator=torch.Generator().manual_seed(3))
    nats, _ = model(batch_of(tokens, DOCUMENTS, masked))
    nats.backward()
    return nats.detach(), {name: p.grad for name, p in model.named_parameters()}


def bytes_kept(model):
    """What autograd holds between forward and backward, parameters and doubles left out."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(batch_of(torch.zeros(2, 32, dtype=torch.int64), DOCUMENTS, True))
    assert out[0].requires_grad
    return sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("way", ["selective", "attention", "full"])
def test_checkpointing_gives_the_same_gradients(way, masked):
    nats, expected = gradients(small(), masked)
    found_nats, found = gradients(parallelize(small(), None, way), masked)
    assert torch.equal(nats, found_nats) and expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5)


def test_full_checkpointing_keeps_less():
    assert bytes_kept(parallelize(small(), None, "full")) < 0.5 * bytes_kept(small())


def test_what_is_computed_again():
    """Operations of forward and backward, as torch dispatches them."""

    def count(way):
        model = parallelize(small(), None, way)
        with Operations() as found:
            gradients(model, True)
        return sum("attend_documents.default" in c for c in found.names), found.names.count("aten.mm.default")

    (attention, products), (again, more), (all_again, most) = count("none"), count("selective"), count("full")
    assert attention == again == 2 and all_again == 4
    assert count("attention") == (attention, most)
    # torch ends computing again with the last tensor that backward wants: the down projection's product it never needs.
    assert most - products == 2 * 6 and more - products == 2 * 3  # layers × matrices: k, o and up of q k v o gate up


def test_clipping_takes_sharded_gradients_together(monkeypatch):
    """Off the CPU the number of operations does not grow with that of the parameters: torch knows DTensors in its clipping by itself."""
    monkeypatch.setattr("torch.utils._foreach_utils._get_foreach_kernels_supported_devices", lambda: ["meta"])
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))

        def operations(number: int) -> int:
            def sharded():
                return DTensor.from_local(torch.empty(4, 4, device="meta"), mesh, [Shard(0)], run_check=False)

            parameters = [torch.nn.Parameter(sharded()) for _ in range(number)]
            for parameter in parameters:
                parameter.grad = sharded()
            with Operations() as found:
                clip_gradients(parameters, 1.0)
            return len(found.names)

        assert operations(40) == operations(4)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_gradients_is_in_fp32_whatever_they_are(dtype):
    """In bf16 it would be off by up to 0.4 %, and so would clipping. Of fp32 it is torch's own, to the bit."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((100, 100), (37,), (513, 64), (1,)) * 4]
    for parameter in parameters:
        parameter.grad = (0.01 * torch.randn(parameter.shape, generator=generator)).to(dtype)
    gradients = [parameter.grad.clone() for parameter in parameters]
    norm = clip_gradients(parameters, 1.0)
    assert norm.dtype == torch.float32
    assert float(norm) == pytest.approx(math.sqrt(sum(float(g.double().square().sum()) for g in gradients)), rel=1e-5)
    if dtype == torch.float32:
        assert torch.equal(norm, get_total_norm(gradients))
    for parameter, before in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, before / norm, check_dtype=False)
        assert parameter.grad.dtype == dtype


def test_unknown_ways_are_refused():
    with pytest.raises(UserError, match="did you mean 'selective'"):
        parallelize(small(), None, "selectiv")


@pytest.mark.parametrize(
    "way", ["none", pytest.param("full", marks=pytest.mark.slow), pytest.param("selective", marks=pytest.mark.slow)]
)
def test_compiled_blocks_are_the_same_and_compiled_once_for_each_length(way):
    """Documents of every number and length, and two lengths: two compilations, as torch counts them."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    plain, compiled = small(), parallelize(small(), None, way, compiled=True)
    generator = torch.Generator().manual_seed(0)
    for length, documents in ((32, 3), (32, 5), (32, 9), (48, 2), (48, 7)):
        tokens = torch.randint(97, (2, length), generator=generator)
        ids = torch.randint(documents, (2, length), generator=generator).sort(dim=1).values
        batch = batch_of(tokens, ids, True)
        values = []
        for model in (plain, compiled):
            model.zero_grad()
            nats, _ = model(batch)
            nats.backward()
            values.append((nats.detach(), model.layers[0].mlp.up_proj.weight.grad, model.layers[1].self_attn.k_proj.weight.grad))
        for ours, theirs in zip(*values, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
