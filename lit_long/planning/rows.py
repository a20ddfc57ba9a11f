"""Plans as rows of text, for the terminal and for Markdown."""

from __future__ import annotations

from lit_long.config.mesh import ROUNDED_UPDATES
from lit_long.planning.flops import parameters
from lit_long.planning.hardware import GIB, usable
from lit_long.planning.job import describe
from lit_long.planning.memory import PARTS
from lit_long.planning.search import Estimate, Machines, describe_way, remedy

RUN_HEADER = [
    *("run", "FLOPs", "GPUs", "GiB a\nGPU", "fits", "tokens/s\na GPU", "GPU\nhours", "days"),
    *("mesh", "check-\npointing", "micro-batches\n× sequences"),
]
FIRST_GROUP = 8  # columns, in a terminal
FLOPS_HEADER = ["run", "FLOPs, printed\nin Table 10", "by the\npaper's formula", "causal,\nas mfu_causal counts"]


def gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def memory_rows(estimate: Estimate) -> list[list[str]]:
    """GiB a GPU at the moment of the most memory, kind by kind."""
    rows = [[part, gib(getattr(estimate.memory, part))] for part in PARTS]
    return [*rows, ["total", gib(estimate.memory.total)]]


def transfer_rows(estimate: Estimate) -> list[list[str]]:
    """What each GPU sends in an update."""
    return [
        [each.name, gib(each.bytes), f"{each.seconds:.2f}", "meanwhile" if each.hidden else "waits"]
        for each in estimate.speed.transfers
    ]


def run_row(name: str, estimate: Estimate) -> list[str]:
    """One run in one line."""
    job, speed = estimate.job, estimate.speed
    sums = f", {job.accumulate}" if job.fsdp and job.micro_batches > 1 else ""
    return [
        name,
        f"{speed.flops:.2e}",
        f"{job.mesh.ranks:,}",
        f"{estimate.memory.total / GIB:.1f}",
        "yes" if estimate.fits else "no",
        f"{speed.tokens_per_second:,.0f}",
        f"{speed.gpu_hours:,.0f}",
        f"{speed.hours / 24:,.1f}",
        describe(job.mesh),
        job.checkpointing,
        f"{job.micro_batches} × {-(-job.rank_rows // job.micro_batches)}{sums}",
    ]


def in_groups(row: list[str]) -> list[str]:
    """A row, or the header, in two groups of columns, for a terminal."""
    return [*row[:FIRST_GROUP], "", *row[FIRST_GROUP:]]


def sentences(estimate: Estimate, machines: Machines) -> list[str]:
    """What the tables do not say."""
    job, speed, gpu = estimate.job, estimate.speed, machines.gpu
    own = f"{usable(gpu) / GIB:.1f} GiB of one {gpu.name} are for tensors"
    lines = [f"{parameters(job.model):,} parameters, {job.precision}; {describe_way(job)}"]
    if estimate.fits:
        lines.append(f"fits: {own}, {estimate.free / GIB:.1f} GiB are left at its fullest moment ({estimate.memory.name})")
    else:
        helps = remedy(estimate, machines)
        cure = (
            f"; the cheapest remedy: {helps}" if helps else "; nothing that a plan knows helps: fewer parameters, or larger GPUs"
        )
        lines.append(f"does not fit: {own}, {-estimate.free / GIB:.1f} GiB are missing ({estimate.memory.name}){cure}")
    if job.precision == "bf16-true":
        lines.append(ROUNDED_UPDATES)
    assumed = machines.efficiency or gpu.efficiency
    lines.append(
        f"{speed.flops:.4g} FLOPs (causal); assuming {assumed:.0%} of {gpu.name}'s peak: {speed.update:.1f} s an update, "
        f"{speed.tokens_per_second:,.0f} tokens/s a GPU, mfu_causal {speed.mfu_causal:.2f}"
    )
    lines.append(f"{job.tokens:,} tokens: {speed.gpu_hours:,.0f} GPU-hours, {speed.hours:,.1f} hours on {machines.gpus} GPUs")
    return lines


def trace_sentence(formula: float, found: float, kinds: dict[str, int]) -> str:
    """The formula beside what torch counted."""
    parts = ", ".join(f"{kind.lower()} {gib(size)}" for kind, size in kinds.items())
    return (
        f"with a CPU's operations: {gib(formula)} GiB by formula, {gib(found)} GiB by running the model without data "
        f"({found / formula - 1:+.1%}): {parts}"
    )
