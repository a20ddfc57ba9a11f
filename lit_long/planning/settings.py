"""What one says to `python -m lit_long.plan`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lit_long.config import StageConfig
from lit_long.config.mesh import Mesh
from lit_long.config.ranges import Count, CountOrNone, Share
from lit_long.config.updates import check_whole_sequences
from lit_long.planning.hardware import find_gpu
from lit_long.planning.job import Job, check_words, job_layers
from lit_long.planning.search import Machines


@dataclass
class MachinesConfig:
    """The GPUs. ``efficiency``: the share of their peak to assume instead of the table's."""

    gpu: str = "h100"
    gpus: Count = 8
    gpus_per_machine: Count = 8
    efficiency: Share = 0.0


@dataclass
class PlanConfig(MachinesConfig):
    """The GPUs and a run; names and defaults as in a stage and its trainer where they are the same."""

    model: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    context: Count | None = None
    tokens_per_update: Count = 4 * 2**20
    tokens: Count = 400_000_000_000
    precision: str = "bf16-mixed"
    checkpointing: str = "full"
    accumulate: str = "whole"
    loss_memory: Count = 2**29
    replicate: Count = 1
    context_parallel: Count = 1
    tensor_parallel: Count = 1
    micro_batch_tokens: CountOrNone = 0
    trace: bool = False
    paper: bool = False


def machines_of(config: MachinesConfig) -> Machines:
    """Raises UserError for a GPU that is not known."""
    return Machines(find_gpu(config.gpu), config.gpus, config.gpus_per_machine, config.efficiency)


def job_of(config: PlanConfig, named: StageConfig) -> Job:
    """The job of the model, layers and context that are ``named``, its mesh as far as it was said. Raises UserError for settings that make none."""
    note = " (the default)" if config.tokens_per_update == PlanConfig.tokens_per_update else ""
    check_whole_sequences(config.tokens_per_update, named.context, "command line", note=note)
    job = Job(
        model=named.model,
        context=named.context,
        tokens_per_update=config.tokens_per_update,
        tokens=config.tokens,
        mesh=Mesh(config.replicate, 1, config.context_parallel, config.tensor_parallel),
        micro_batch_tokens=config.micro_batch_tokens,
        precision=config.precision,
        checkpointing=config.checkpointing,
        accumulate=config.accumulate,
        loss_memory=config.loss_memory,
        layers=job_layers(named.layers, named.model.n_layers),
    )
    check_words(job)
    return job
