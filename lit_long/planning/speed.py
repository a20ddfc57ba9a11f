"""How long a job takes: FLOPs by their formula, a GPU's peak, an assumed efficiency (hardware.py), and the transfers' time.

An update takes the longer of computing and of what FSDP2 sends meanwhile, and then what is waited for. Data loading, validation, checkpoints and
failures are not counted, nor the imbalance of documents' lengths: a plan is what a good day looks like.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_long.planning.communication import Transfer, transfers
from lit_long.planning.flops import block_weights, seen, training_flops
from lit_long.planning.hardware import Gpu
from lit_long.planning.job import Job


@dataclass(frozen=True)
class Speed:
    """Of one update and of the whole run. ``flops`` are the run's, causal, without what is computed again; so is ``mfu_causal``."""

    flops: float
    update: float  # seconds
    computing: float
    transfers: list[Transfer]
    tokens_per_second: float
    gpu_hours: float
    hours: float
    mfu_causal: float


def speed(job: Job, gpu: Gpu, in_machine: int, efficiency: float = 0.0) -> Speed:
    """Args:
    in_machine: GPUs of one machine.
    efficiency: share of the peak, instead of the GPU's assumed one.
    """
    ranks = job.mesh.ranks
    own, again = run_flops(job) * job.tokens_per_update / job.tokens, computed_again(job) * job.tokens_per_update
    computing = (own + again) / ranks / (peak(gpu, job) * (efficiency or gpu.efficiency))
    moved = transfers(job, gpu, in_machine)
    beside = sum(each.seconds for each in moved if each.hidden)
    update = max(computing, beside) + sum(each.seconds for each in moved if not each.hidden)
    hours = update * job.tokens / job.tokens_per_update / 3600
    return Speed(
        flops=run_flops(job),
        update=update,
        computing=computing,
        transfers=moved,
        tokens_per_second=job.tokens_per_update / update / ranks,
        gpu_hours=hours * ranks,
        hours=hours,
        mfu_causal=own / update / ranks / peak(gpu, job),
    )


def peak(gpu: Gpu, job: Job) -> float:
    """FLOP/s at the job's precision; torch multiplies fp32 matrices in fp32 unless it is told to round them to TF32."""
    return gpu.peak if job.widths.computed == 2 else gpu.peak_fp32


def parts(job: Job) -> tuple[tuple[float, int], ...]:
    """(Share of the tokens, context) of each phase."""
    return job.phases or ((1.0, job.context),)


def run_flops(job: Job) -> float:
    """Causal FLOPs of the whole run."""
    return sum(
        training_flops(job.model, share * job.tokens, share * job.tokens * seen(context, job.windows))
        for share, context in parts(job)
    )


def computed_again(job: Job) -> float:
    """FLOPs per token that activation checkpointing adds, averaged over the phases (training/parallel.py)."""
    model = job.model
    down = model.d_model * model.d_ffn  # torch ends computing again with the last tensor that backward wants
    if job.checkpointing in ("attention", "full"):
        seen_tokens = sum(share * seen(context, job.windows) for share, context in parts(job))
        attention = 4 * model.n_heads * model.head_dim * seen_tokens if job.checkpointing == "full" else 0.0
        return model.n_layers * (2 * (block_weights(model) - down) + attention)
    if job.checkpointing == "selective":
        return model.n_layers * 2 * model.d_model * (model.head_dim * (model.n_kv_heads + model.n_heads) + model.d_ffn)
    return 0.0
