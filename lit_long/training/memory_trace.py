"""One update of the real model, made ready for training as in a stage, under torch's own memory tracker: the bytes of all tensors, to hold the
formulas of planning/memory.py against.

Without data, tensors are only shapes (FakeTensor) and the other ranks need not exist (torch's fake process group): a 7B model on 64 ranks
runs here, in the memory of a laptop. What runs are a CPU's operations, so the formulas are asked for kernels=cpu. Kernels' scratch memory,
which is in no tensor, is not seen, nor is the allocator's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import AdamW, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from lit_long.batch import Batch
from lit_long.config import UserError
from lit_long.model.llama import Llama
from lit_long.model.loss import chunk_tokens
from lit_long.planning.job import Job
from lit_long.planning.memory import peak
from lit_long.positions import build
from lit_long.positions.layers import LayerGroup, LayerPattern
from lit_long.training.parallel import clip_gradients, make_mesh, parallelize
from lit_long.training.precision import ROUNDED

DTYPES = {"bf16-true": torch.bfloat16}


@dataclass(frozen=True)
class Traced:
    """Bytes of tensors at the moment of the most memory: in all, and by torch's kinds."""

    total: int
    kinds: dict[str, int]


def trace(job: Job) -> Traced:
    """An update of ``job``, not the first, on its first rank, without data.

    Raises:
        UserError: this process is one of several already, or the job shares sequences among ranks, which cannot be traced.
    """
    if job.mesh.context > 1:
        raise UserError("trace=true cannot run context parallelism: leave trace out, or set context_parallel=1")
    with fake_ranks(job) as mesh:
        return track(job, mesh, FakeTensorMode(allow_non_fake_inputs=True), NoData())


def compare(job: Job) -> tuple[float, int, dict[str, int]]:
    """Bytes of a GPU by formula and by tracing, both with a CPU's operations, and the latter's kinds."""
    job = replace(job, kernels="cpu")
    found = trace(job)
    return peak(job).total, found.total, found.kinds


def track(job: Job, mesh: DeviceMesh | None = None, *modes: TorchDispatchMode) -> Traced:
    """An update of ``job`` that is not the first: AdamW has its moments. All tensors are made under ``modes``."""
    model, optimizer, batch = prepare(job, mesh, *modes)
    with enter(modes):
        tracker = FSDPMemTracker(model, optimizer) if mesh is not None else MemTracker()
        if isinstance(tracker, FSDPMemTracker):
            tracker.track_inputs(tuple(batch[:4]))
        else:
            tracker.track_external(model, optimizer, *batch[:4])
        with tracker:
            update(model, optimizer, batch, job, tracker)
    (found,) = tracker.get_tracker_snapshot("peak").values()
    return Traced(found.pop("Total"), {str(kind.value): size for kind, size in found.items() if size})


def prepare(job: Job, mesh: DeviceMesh | None, *modes: TorchDispatchMode) -> tuple[Llama, Optimizer, Batch]:
    """The model as it is trained, its optimizer after a step, and the rank's sequences of an update."""
    with enter(modes):
        model = build_model(job)
    policy = ROUNDED if job.fsdp and job.precision == "bf16-mixed" else None
    parallelize(
        model, mesh, job.checkpointing, policy=policy
    )  # under no mode: meshes are made of tensors, too, whose data are needed
    with enter(modes):
        optimizer, batch = AdamW(model.parameters(), lr=1e-5, fused=True), make_batch(job)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if job.mesh.tensor > 1:  # what DTensor asks once about the shapes of whole matrices would be counted
            update(model, optimizer, batch, job)
    return model, optimizer, batch


@contextmanager
def enter(modes: tuple[TorchDispatchMode, ...]) -> Iterator[None]:
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield


def build_model(job: Job) -> Llama:
    """In the precision of its parameters; weights are whatever they are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES.get(job.precision, torch.float32))
    try:
        return Llama(job.model, build_pattern(job), chunk_tokens(job.model.vocab_size, job.loss_memory))
    finally:
        torch.set_default_dtype(before)


def build_pattern(job: Job) -> LayerPattern:
    """The job's groups, each with a rotation of its own."""
    groups = list(dict.fromkeys(job.layers)) or [("all", None)]
    encoders = [build({"scheme": "rope", "base": 10_000.0 + number}, job.model.head_dim) for number in range(len(groups))]
    made = tuple(LayerGroup(encoder, window) for encoder, (_, window) in zip(encoders, groups, strict=True))
    return LayerPattern(made, tuple(groups.index(layer) for layer in job.layers) or (0,))


def update(model: Llama, optimizer: Optimizer, batch: Batch, job: Job, tracker: MemTracker | None = None) -> None:
    """What `LongContextModule.training_step` does."""
    rows = -(-len(batch.tokens) // job.micro_batches)
    starts = range(0, len(batch.tokens), rows)
    for start in starts:
        if tracker is not None:
            tracker.reset_mod_stats()
        if hasattr(model, "set_requires_gradient_sync"):
            model.set_requires_gradient_sync(start == starts[-1] or job.accumulate == "sharded")
        with autocast(job):
            nats, _ = model(batch.rows(start, start + rows))
            nats.backward()
    clip_gradients(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def autocast(job: Job) -> AbstractContextManager[Any]:
    """As Lightning's precision plugin has it, and our own where parameters are sharded (precision.py)."""
    mixed = job.precision == "bf16-mixed" and not job.fsdp
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if mixed else nullcontext()


def make_batch(job: Job) -> Batch:
    """The rank's sequences of an update, one document each."""
    shape = (job.rank_rows, job.context)
    tokens, ids = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    positions = torch.arange(job.context).repeat(job.rank_rows, 1)
    return Batch(tokens, torch.zeros(shape, dtype=torch.int64), ids, positions, mask_documents=False)


@contextmanager
def fake_ranks(job: Job) -> Iterator[DeviceMesh | None]:
    """The mesh of a process group whose collectives do nothing; None for one GPU."""
    if not job.fsdp:
        yield None
        return
    if dist.is_initialized():
        raise UserError("trace=true runs alone, not as one of several ranks")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=job.mesh.ranks)
    try:
        yield make_mesh("cpu", job.mesh)
    finally:
        dist.destroy_process_group()


class NoData(TorchDispatchMode):
    """Answers questions for a tensor's values, which a tensor without data cannot. Is there a target without a loss? No. Which words of the
    batch are on other tensor ranks? As many as can be."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            return False
        if function is torch.ops.aten.nonzero.default:
            return torch.empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
        return function(*args, **(kwargs or {}))
