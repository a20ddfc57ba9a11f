"""What one says to `python -m lit_long.plan`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lit_long.config import ModelConfig, UserError
from lit_long.config.mesh import Mesh
from lit_long.planning.hardware import find_gpu
from lit_long.planning.job import Job, check_words
from lit_long.planning.search import Machines

SETTLED = {
    "context_parallel": "context",
    "tensor_parallel": "tensor",
    "micro_batch_tokens": "rows",
}  # keys as the search has them


@dataclass
class MachinesConfig:
    """The GPUs. ``efficiency``: the share of their peak to assume instead of the table's."""

    gpu: str = "h100"
    gpus: int = 8
    gpus_per_machine: int = 8
    efficiency: float = 0.0


@dataclass
class PlanConfig(MachinesConfig):
    """The GPUs and a run; names and defaults as in a stage and its trainer where they are the same."""

    model: dict[str, Any] = field(default_factory=dict)
    context: int | None = None
    tokens_per_update: int = 4 * 2**20
    tokens: int = 400_000_000_000
    precision: str = "bf16-mixed"
    checkpointing: str = "full"
    accumulate: str = "whole"
    loss_memory: int = 2**29
    replicate: int = 1
    context_parallel: int = 1
    tensor_parallel: int = 1
    micro_batch_tokens: int = 0
    trace: bool = False
    paper: bool = False


def machines_of(config: MachinesConfig) -> Machines:
    """Raises UserError for numbers that make no machines."""
    for name in ("gpus", "gpus_per_machine"):
        if getattr(config, name) < 1:
            raise UserError(f"command line: {name} must be at least 1, not {getattr(config, name)}")
    if not 0 <= config.efficiency <= 1:
        raise UserError(f"command line: efficiency must lie between 0 and 1, not {config.efficiency}")
    return Machines(find_gpu(config.gpu), config.gpus, config.gpus_per_machine, config.efficiency)


def job_of(config: PlanConfig, model: ModelConfig, context: int) -> Job:
    """The job, its mesh as far as it was said. Raises UserError for settings that make none."""
    for name in ("tokens", "tokens_per_update", "replicate", "context_parallel", "tensor_parallel", "loss_memory"):
        if getattr(config, name) < 1:
            raise UserError(f"command line: {name} must be at least 1, not {getattr(config, name)}")
    job = Job(
        model=model,
        context=context,
        tokens_per_update=config.tokens_per_update,
        tokens=config.tokens,
        mesh=Mesh(config.replicate, 1, config.context_parallel, config.tensor_parallel),
        rows=max(1, config.micro_batch_tokens // context),
        precision=config.precision,
        checkpointing=config.checkpointing,
        accumulate=config.accumulate,
        loss_memory=config.loss_memory,
    )
    check_words(job)
    return job
