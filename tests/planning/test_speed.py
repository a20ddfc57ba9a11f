"""Bytes between GPUs against those that FSDP2 really moves, and speeds against published ones."""

from __future__ import annotations

import pytest

from lit_long.config.mesh import Mesh
from lit_long.planning.communication import speed as bandwidth
from lit_long.planning.communication import transfers
from lit_long.planning.flops import parameters
from lit_long.planning.hardware import BUS, GPUS
from lit_long.planning.speed import speed
from tests.planning.jobs import LLAMA3_8B, LLAMA_7B, LLAMA_70B, SMALL, job


def sent(each) -> dict[str, float]:
    """Bytes by the first word of the collective's name."""
    return {transfer.name.partition(" (")[0]: transfer.bytes for transfer in transfers(each, GPUS["H100"], 8)}


@pytest.mark.parametrize("accumulate", ["whole", "sharded"])
def test_fsdp_moves_what_it_moves(accumulate):
    """Bytes of the collectives that FSDP2 calls in an update of three micro-batches, on a rank of eight."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    from lit_long.training.memory_trace import NoData, enter, fake_ranks, prepare, update

    moved = {"gather": 0, "scatter": 0}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            for word, tensor in (("gather", 0), ("scatter", 1)):
                if function.namespace == "c10d" and word in function.name():
                    moved[word] += args[tensor].nbytes
            return function(*args, **(kwargs or {}))

    each = job(SMALL, mesh=Mesh(shard=8), sequences=24, precision="32-true", accumulate=accumulate, checkpointing="none")
    modes = FakeTensorMode(allow_non_fake_inputs=True), NoData()
    with fake_ranks(each) as mesh:
        model, optimizer, batch = prepare(each, mesh, *modes)
        with enter((*modes, Watch())):
            update(model, optimizer, batch, each)
    found = sent(each)
    assert found["all-gather of parameters"] == moved["gather"] * 7 / 8
    assert found["reduce-scatter of gradients"] == moved["scatter"] * 7 / 8


def test_volumes_are_the_known_ones():
    """ZeRO-3 sends three times the parameters (Rajbhandari et al. 2020), here less the root, which is gathered once; tensor parallelism four
    all-reduces a layer (Shoeybi et al. 2019), one more where a block is computed again."""
    each = job(LLAMA_7B, mesh=Mesh(shard=64), checkpointing="none", precision="bf16-true")
    root = 2 * 32_000 * 4096 + 4096
    assert sum(sent(each).values()) == pytest.approx(2 * (3 * parameters(LLAMA_7B) - root) * 63 / 64)
    shared = job(LLAMA_70B, mesh=Mesh(tensor=8), checkpointing="none", precision="bf16-true")
    stream = 2 * 4096 * 8192
    assert sent(shared) == {"all-reduce of the stream": pytest.approx((4 * 80 + 2) * stream * 2 * 7 / 8)}


def test_keys_and_values_of_grouped_queries_are_cheap():
    each = job(LLAMA_70B, mesh=Mesh(context=4), context=32_768, checkpointing="none", precision="bf16-true")
    gathered = 80 * 2 * 8 * 128 * 2 * 32_768  # layers · (k, v) · heads · components · bytes · tokens of the whole sequence
    assert sent(each)["all-gather of keys and values"] == pytest.approx(2 * gathered * 3 / 4)


def test_rings_run_at_the_speed_of_their_slowest_link():
    h100 = GPUS["H100"]
    assert bandwidth(h100, 8, 1, 8) == h100.in_machine * BUS
    assert bandwidth(h100, 64, 1, 8) == 8 * h100.between_machines * BUS  # eight adapters a machine work for the ring
    assert bandwidth(h100, 8, 8, 8) == h100.between_machines * BUS  # one GPU of each machine


# Assumed efficiency was taken from the first two; the others are their test. Sources: hardware.py; torchtitan benchmarks/llama3_h100_202412.
PUBLISHED = [
    ("H100", LLAMA_7B, 128, 4096, 2, "none", 9600, 0.1),
    ("A100", LLAMA_7B, 128, 4096, 1, "none", 3700, 0.1),
    ("H100", LLAMA3_8B, 8, 8192, 2, "selective", 6667, 0.2),
    ("H100", LLAMA3_8B, 8, 8192, 2, "selective", 5762, 0.3),  # the same without torch.compile
]


@pytest.mark.parametrize("gpu, model, gpus, context, rows, way, published, tolerance", PUBLISHED)
def test_published_speeds(gpu, model, gpus, context, rows, way, published, tolerance):
    each = job(
        model, mesh=Mesh(shard=gpus), context=context, rows=rows, sequences=rows * gpus, checkpointing=way, precision="bf16-true"
    )
    assert speed(each, GPUS[gpu], 8).tokens_per_second == pytest.approx(published, rel=tolerance)


def test_time_is_the_longer_of_computing_and_moving_then_what_is_waited_for():
    each = job(LLAMA_7B, mesh=Mesh(shard=8, tensor=8), checkpointing="none")
    fast, slow = (speed(each, GPUS["H100"], 8, efficiency) for efficiency in (1.0, 0.01))
    beside = sum(t.seconds for t in fast.transfers if t.hidden)
    after = sum(t.seconds for t in fast.transfers if not t.hidden)
    assert fast.update == pytest.approx(max(fast.computing, beside) + after) and beside > fast.computing
    assert slow.update == pytest.approx(slow.computing + after)
    assert slow.hours == pytest.approx(slow.update * 100 / 3600) and slow.gpu_hours == pytest.approx(64 * slow.hours)
    assert slow.tokens_per_second == pytest.approx(each.tokens_per_update / slow.update / 64)
