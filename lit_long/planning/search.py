"""The fastest way to run a job that fits, among a few thousand; and when one does not fit, the cheapest change that makes it fit.

Looked through are 1 to 8 tensor ranks inside a machine, 1 to 16 context ranks, 1 to 8 copies, 1 to 8 sequences a micro-batch, the three ways
of checkpointing, and whole or sharded sums of gradients; whatever the user has said stays as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from lit_long.config.mesh import Mesh
from lit_long.planning.hardware import GIB, Gpu, usable
from lit_long.planning.job import CHECKPOINTING, Job, describe, why_not
from lit_long.planning.memory import Moment, peak
from lit_long.planning.speed import Speed, speed


@dataclass(frozen=True)
class Machines:
    """What there is to run on. ``efficiency``: share of the peak, or 0 for the GPU's assumed one."""

    gpu: Gpu
    gpus: int
    in_machine: int = 8
    efficiency: float = 0.0


@dataclass(frozen=True)
class Planned:
    """A job with what it costs."""

    job: Job
    memory: Moment
    speed: Speed
    room: float  # bytes that are left; negative when it does not fit

    @property
    def fits(self) -> bool:
        return self.room >= 0


def plan(job: Job, machines: Machines) -> Planned:
    memory = peak(job)
    return Planned(
        job, memory, speed(job, machines.gpu, machines.in_machine, machines.efficiency), usable(machines.gpu) - memory.total
    )


def search(job: Job, machines: Machines, said: frozenset[str]) -> Planned | None:
    """The fastest plan that fits, else the one with the least memory; None when no layout can run at all.

    Args:
        said: what the user has settled: replicate, context, tensor, rows, checkpointing, accumulate.
    """
    plans = [plan(each, machines) for each in candidates(job, machines, said) if not why_not(each)]
    if fitting := [each for each in plans if each.fits]:
        # Of equally fast ones, the one that needs less machinery, then less memory.
        return min(fitting, key=lambda p: (round(p.speed.update, 3), p.job.mesh.context * p.job.mesh.tensor, p.memory.total))
    return max(plans, key=lambda p: p.room, default=None)


def candidates(job: Job, machines: Machines, said: frozenset[str]) -> Iterator[Job]:
    def sizes(name: str, most: int) -> list[int]:
        own = job.rows if name == "rows" else getattr(job.mesh, name, 1)
        return [own] if name in said else [2**i for i in range(most.bit_length()) if 2**i <= most]

    ways = [job.checkpointing] if "checkpointing" in said else CHECKPOINTING
    for copies, context, tensor in itertools.product(
        sizes("replicate", 8), sizes("context", 16), sizes("tensor", min(8, machines.in_machine))
    ):
        shard, rest = divmod(machines.gpus, copies * context * tensor)
        if rest or not shard or (copies > 1 and shard * context * tensor < machines.in_machine):
            continue  # copies are for more than one machine each
        placed = replace(job, mesh=Mesh(copies, shard, context, tensor))
        for rows, way in itertools.product(sizes("rows", min(8, placed.rank_rows)), ways):
            each = replace(placed, rows=rows, checkpointing=way)
            sums = (
                ("whole", "sharded") if each.fsdp and each.micro_batches > 1 and "accumulate" not in said else (job.accumulate,)
            )
            yield from (replace(each, accumulate=way) for way in sums)


def remedy(planned: Planned, machines: Machines) -> str:
    """The cheapest single change that makes the job fit, or, where none does, the first few that do together; "" when nothing helps."""
    job, together = planned.job, []
    for name, change in changes(planned.job):
        if (changed := fitting(change(planned.job), machines)) is not None:
            return f"{name} ({changed / GIB:.1f} GiB)"
    for name, change in changes(planned.job):
        if not why_not(change(job)) and peak(change(job)).total < peak(job).total:
            job, together = change(job), [*together, name]
            if (changed := fitting(job, machines)) is not None:
                return f"{' and '.join(together)} ({changed / GIB:.1f} GiB)"
    return ""


def fitting(job: Job, machines: Machines) -> float | None:
    """Bytes of the job, if it runs and fits."""
    if why_not(job):
        return None
    needed = peak(job).total
    return needed if needed <= usable(machines.gpu) else None


def changes(job: Job) -> list[tuple[str, Callable[[Job], Job]]]:
    """From the cheapest to the dearest."""
    found: list[tuple[str, Callable[[Job], Job]]] = []
    for way in CHECKPOINTING[CHECKPOINTING.index(job.checkpointing) + 1 :]:
        found.append((f"checkpointing={way}", lambda job, way=way: replace(job, checkpointing=way)))
    if job.rows > 1:
        found.append((f"micro_batch_tokens={job.context}", lambda job: replace(job, rows=1)))
    if job.fsdp and job.accumulate == "whole":
        found.append(("accumulate=sharded", lambda job: replace(job, accumulate="sharded")))
    if job.mesh.replicate > 1:
        found.append(("replicate=1", lambda job: job.on(replicate=1, shard=job.mesh.shard * job.mesh.replicate)))
    for name, key in (("context", "context_parallel"), ("tensor", "tensor_parallel")):
        for factor in (2, 4, 8):
            size = getattr(job.mesh, name) * factor
            if size <= 8 and job.mesh.shard % factor == 0:
                found.append(
                    (
                        f"{key}={size}",
                        lambda job, name=name, size=size, factor=factor: job.on(
                            **{name: size, "shard": job.mesh.shard // factor}
                        ),
                    )
                )
    for factor in (2, 4, 8, 16):
        text = f"gpus={job.mesh.ranks * factor}"
        found.append((text, lambda job, factor=factor: job.on(shard=job.mesh.shard * factor)))
    if job.precision != "bf16-true":
        found.append(("precision=bf16-true, which changes results", lambda job: replace(job, precision="bf16-true")))
    return found


def describe_way(job: Job) -> str:
    """Mesh, checkpointing and micro-batches, as a reader of the table needs them."""
    batches = f"{job.micro_batches} × {-(-job.rank_rows // job.micro_batches)}"
    sums = f", {job.accumulate} sums" if job.fsdp and job.micro_batches > 1 else ""
    return f"{describe(job.mesh)}; checkpointing {job.checkpointing}; {batches} sequences{sums}"
