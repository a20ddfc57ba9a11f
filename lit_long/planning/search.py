"""The fastest way to run a job that fits, among a few thousand; and when one does not fit, the cheapest change that makes it fit.

Looked through are 1 to 8 tensor ranks inside a machine, 1 to 16 context ranks, 1 to 8 copies, 1 to 8 sequences a micro-batch, the four ways
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

NEAR = 1.05  # a plan's times are no better than this: of those so near the fastest, the mesh with least context and tensor ranks is taken


@dataclass(frozen=True)
class Machines:
    """What there is to run on. ``efficiency``: share of the peak, or 0 for the GPU's assumed one."""

    gpu: Gpu
    gpus: int
    in_machine: int = 8
    efficiency: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """A job with what it costs."""

    job: Job
    memory: Moment
    speed: Speed
    free: float  # bytes that are left; negative when it does not fit

    @property
    def fits(self) -> bool:
        return self.free >= 0


def estimate(job: Job, machines: Machines, memory: Moment | None = None) -> Estimate:
    """What the job costs. ``memory``: its peak, where that is known."""
    memory = memory or peak(job)
    return Estimate(
        job, memory, speed(job, machines.gpu, machines.in_machine, machines.efficiency), usable(machines.gpu) - memory.total
    )


def search(job: Job, machines: Machines, said: frozenset[str]) -> Estimate | None:
    """The fastest plan that fits, or a simpler one that is nearly as fast, else the one with the least memory; None when no layout can run at all.

    Args:
        said: keys that the user has fixed: replicate, context_parallel, tensor_parallel, micro_batch_tokens, checkpointing, accumulate.
    """
    found = [(each, peak(each)) for each in candidates(job, machines, said)]
    fitting = [estimate(each, machines, memory) for each, memory in found if memory.total <= usable(machines.gpu)]
    if fitting:
        near = NEAR * min(each.speed.update for each in fitting)
        return min(
            (p for p in fitting if p.speed.update <= near), key=lambda p: (p.job.mesh.context * p.job.mesh.tensor, p.speed.update)
        )
    return estimate(min(found, key=lambda pair: pair[1].total)[0], machines) if found else None


def candidates(job: Job, machines: Machines, said: frozenset[str]) -> Iterator[Job]:
    """All that can run."""

    def sizes(name: str, most: int) -> list[int]:
        if name in said:
            return [getattr(job.mesh, name.removesuffix("_parallel"))]
        return [2**i for i in range(most.bit_length()) if 2**i <= most]

    ways = [job.checkpointing] if "checkpointing" in said else CHECKPOINTING
    for copies, context, tensor in itertools.product(
        sizes("replicate", 8), sizes("context_parallel", 16), sizes("tensor_parallel", min(8, machines.in_machine))
    ):
        shard, rest = divmod(machines.gpus, copies * context * tensor)
        if rest or not shard or (copies > 1 and shard * context * tensor < machines.in_machine):
            continue  # copies are for more than one machine each
        placed = replace(job, mesh=Mesh(copies, shard, context, tensor))
        if why_not(placed):
            continue
        batches = [placed] if "micro_batch_tokens" in said else map(placed.with_rows, sizes("rows", min(8, placed.rank_rows)))
        for batch, way in itertools.product(batches, ways):
            each = replace(batch, checkpointing=way)
            sums = (
                ("whole", "sharded") if each.fsdp and each.micro_batches > 1 and "accumulate" not in said else (job.accumulate,)
            )
            yield from (replace(each, accumulate=way) for way in sums)


def remedy(estimate: Estimate, machines: Machines) -> str:
    """The cheapest single change that makes the job fit, or, where none does, the first few that do together; "" when nothing helps."""
    for alone in (True, False):
        job, made = estimate.job, {}
        for step in STEPS:
            if alone:
                job, made = estimate.job, {}
            for _ in range(DOUBLINGS):
                taken = step(job)
                if taken is None or why_not(taken[1]) or (needed := peak(taken[1]).total) >= peak(job).total:
                    break
                made, job = made | taken[0], taken[1]
                if needed <= usable(machines.gpu):
                    return f"{' and '.join(f'{key}={value}' for key, value in made.items())} ({needed / GIB:.1f} GiB)"
    return ""


Keys = dict[str, int | str]  # what one says to the command, and its values
Step = Callable[[Job], tuple[Keys, Job] | None]
DOUBLINGS = 6


def checkpoint_more(job: Job) -> tuple[Keys, Job] | None:
    if job.checkpointing == CHECKPOINTING[-1]:
        return None
    way = CHECKPOINTING[CHECKPOINTING.index(job.checkpointing) + 1]
    return {"checkpointing": way}, replace(job, checkpointing=way)


def one_sequence(job: Job) -> tuple[Keys, Job] | None:
    one = job.with_rows(1)
    return ({"micro_batch_tokens": one.micro_batch_tokens}, one) if job.rows > 1 else None


def shard_sums(job: Job) -> tuple[Keys, Job] | None:
    return ({"accumulate": "sharded"}, replace(job, accumulate="sharded")) if job.fsdp else None


def one_copy(job: Job) -> tuple[Keys, Job] | None:
    return ({"replicate": 1}, job.on(replicate=1, shard=job.mesh.shard * job.mesh.replicate)) if job.mesh.replicate > 1 else None


def share_tokens(job: Job) -> tuple[Keys, Job] | None:
    if job.mesh.shard % 2:
        return None
    shared = job.on(context=2 * job.mesh.context, shard=job.mesh.shard // 2)
    keys = {"context_parallel": shared.mesh.context}
    if shared.rows == job.rows:
        return keys, shared
    fewer = shared.with_rows(job.rows)  # else each GPU would have as many tokens as before, of more sequences
    return keys | {"micro_batch_tokens": fewer.micro_batch_tokens}, fewer


def share_matrices(job: Job) -> tuple[Keys, Job] | None:
    if job.mesh.shard % 2 or job.mesh.tensor >= 8:
        return None
    return {"tensor_parallel": 2 * job.mesh.tensor}, job.on(tensor=2 * job.mesh.tensor, shard=job.mesh.shard // 2)


def more_gpus(job: Job) -> tuple[Keys, Job] | None:
    return {"gpus": 2 * job.mesh.ranks}, job.on(shard=2 * job.mesh.shard)


def pure_bf16(job: Job) -> tuple[Keys, Job] | None:
    return (
        (
            {"precision": "bf16-true, which changes results: norms, and at low rates most weights, stay as they are"},
            replace(job, precision="bf16-true"),
        )
        if job.precision != "bf16-true"
        else None
    )


STEPS: tuple[Step, ...] = (  # from the cheapest to the dearest
    checkpoint_more,
    one_sequence,
    shard_sums,
    one_copy,
    share_tokens,
    share_matrices,
    more_gpus,
    pure_bf16,
)


def describe_way(job: Job) -> str:
    """Mesh, checkpointing and micro-batches, as a reader of the table needs them."""
    batches = f"{job.micro_batches} × {-(-job.rank_rows // job.micro_batches)}"
    sums = f", {job.accumulate} sums" if job.fsdp and job.micro_batches > 1 else ""
    tokens = f" (micro_batch_tokens={job.micro_batch_tokens})" if job.mesh.context > 1 else ""
    return f"{describe(job.mesh)}; checkpointing {job.checkpointing}; {batches} sequences{tokens}{sums}"
