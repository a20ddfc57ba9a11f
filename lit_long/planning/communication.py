"""What a GPU sends in an update, by collective, and how long that takes.

A ring moves (n − 1)/n of the tensor through each of its n GPUs for all-gather and reduce-scatter, twice that for all-reduce. Inside a machine a
ring runs at NVLink's speed; across machines at that of the network adapters that its GPUs have together in one of them. Both are the
vendor's figures times a share that is assumed (hardware.BUS). FSDP2's transfers run beside the computation; those of tensor and context
parallelism are waited for.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_long.planning.hardware import BUS, Gpu
from lit_long.planning.job import Job
from lit_long.planning.memory import weights


@dataclass(frozen=True)
class Transfer:
    """Bytes that each GPU sends in an update, the seconds they take, and whether the GPU computes meanwhile."""

    name: str
    bytes: float
    seconds: float
    hidden: bool


def transfers(job: Job, gpu: Gpu, in_machine: int) -> list[Transfer]:
    """All collectives of an update. ``in_machine``: GPUs of one machine."""
    mesh, per_update = job.mesh, job.micro_batches
    inner = mesh.context * mesh.tensor
    found = []

    def add(name: str, tensor: float, ranks: int, stride: int, hidden: bool, passes: int = 1) -> None:
        if ranks > 1 and tensor:
            sent = tensor * passes * (ranks - 1) / ranks
            found.append(Transfer(name, sent, sent / speed(gpu, ranks, stride, in_machine), hidden))

    size, width = weights(job), job.widths.parameter
    gathered = (2 * size.layers * size.block + size.root) * job.widths.gathered * per_update  # forth and back; the root stays
    reduced = size.all * width * (per_update if job.accumulate == "sharded" else 1)
    add("all-gather of parameters (FSDP)", gathered, job.sharded, mesh.tensor, True)
    add("reduce-scatter of gradients (FSDP)", reduced, job.sharded, mesh.tensor, True)
    add("all-reduce of gradients (HSDP)", size.all * width / job.sharded, mesh.replicate, mesh.shard * inner, True, passes=2)
    add("all-reduce of the stream (tensor parallel)", stream(job) * per_update, mesh.tensor, 1, False, passes=2)
    add("all-gather of keys and values (context parallel)", keys(job) * per_update, mesh.context, mesh.tensor, False)
    return found


def stream(job: Job) -> float:
    """Bytes that tensor ranks sum in a micro-batch: in each block after attention and feed-forward, and their gradients before them; once more
    after attention where a block is computed again; and for embedding and head."""
    again = 0 if job.checkpointing == "none" else 1
    return (job.model.n_layers * (4 + again) + 2) * job.local_tokens * job.model.d_model * job.widths.computed


def keys(job: Job) -> float:
    """Bytes of gathered keys and values in a micro-batch: forth, their gradients back, and forth again where a block is computed again."""
    model, times = job.model, 2 if job.checkpointing == "none" else 3
    whole = 2 * model.n_kv_heads * model.head_dim / job.mesh.tensor * job.widths.computed * job.local_tokens * job.mesh.context
    return times * model.n_layers * whole


def speed(gpu: Gpu, ranks: int, stride: int, in_machine: int) -> float:
    """Bytes/s that each GPU of a ring sends, when its neighbours' numbers differ by ``stride``."""
    together = max(1, in_machine // stride)  # of the ring's GPUs, in one machine
    if ranks <= together:
        return gpu.in_machine * BUS
    return min(gpu.in_machine, together * gpu.between_machines) * BUS
