"""What is to be planned: a training run as far as its cost depends on it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from lit_long.config import LayersConfig, ModelConfig, UserError, nearest
from lit_long.config.mesh import ACCUMULATE, Mesh


@dataclass(frozen=True)
class Widths:
    """Bytes an element: of parameters, summed gradients and optimizer state; of the residual stream; of what matrix products take; of parameters as a
    block has them, and their gradients."""

    parameter: int
    stream: int
    computed: int
    gathered: int


PRECISIONS = {"32-true": Widths(4, 4, 4, 4), "bf16-mixed": Widths(4, 4, 2, 4), "bf16-true": Widths(2, 2, 2, 2)}
SHARDED_MIXED = Widths(4, 2, 2, 2)  # FSDP2 gathers rounded parameters (training/precision.py)
CHECKPOINTING = ("none", "selective", "attention", "full")  # from the fastest to the most frugal


def job_layers(layers: LayersConfig, n_layers: int) -> tuple[tuple[str, int | None], ...]:
    """`Job.layers` of a model."""
    names = [layers.pattern[number % len(layers.pattern)] for number in range(n_layers)] if layers.pattern else []
    return tuple((name, layers.groups[name].window) for name in names)


def describe(mesh: Mesh) -> str:
    """``shard 8 × tensor 2``: the dimensions with more than one rank."""
    return " × ".join(f"{name} {size}" for name, size in mesh._asdict().items() if size > 1) or "one GPU"


@dataclass(frozen=True)
class Job:
    """A training run.

    tokens             of the whole run
    micro_batch_tokens tokens of a micro-batch, of each GPU: at least one sequence, or its share of one
    phases             (share of the tokens, context) of a curriculum; empty: all at ``context``
    layers             (group, window) of each layer; empty: all are alike, and without a window
    accumulate         what micro-batches add up under FSDP: ``whole`` gradients, reduced once an update, or their ``sharded`` parts
    kernels            cuda · cpu: whose attention and norms, which keep different tensors for backward
    """

    model: ModelConfig
    context: int
    tokens_per_update: int
    tokens: int
    mesh: Mesh = field(default_factory=Mesh)
    micro_batch_tokens: int = 0
    precision: str = "bf16-mixed"
    checkpointing: str = "full"
    accumulate: str = "whole"
    loss_memory: int = 2**29
    phases: tuple[tuple[float, int], ...] = ()
    layers: tuple[tuple[str, int | None], ...] = ()
    kernels: str = "cuda"

    @cached_property
    def widths(self) -> Widths:
        return SHARDED_MIXED if self.fsdp and self.precision == "bf16-mixed" else PRECISIONS[self.precision]

    @cached_property
    def windows(self) -> list[int | None]:
        return [window for _, window in self.layers]

    @cached_property
    def fsdp(self) -> bool:
        return self.mesh.ranks > 1

    @cached_property
    def rank_rows(self) -> int:
        """Sequences of an update that each data rank trains on."""
        return max(1, self.tokens_per_update // self.context // self.mesh.data_ranks)

    @cached_property
    def rows(self) -> int:
        """Sequences of a micro-batch. GPUs that share sequences have room for more of them (`LongContextModule.micro_batches`)."""
        return max(1, self.micro_batch_tokens * self.mesh.context // self.context)

    @cached_property
    def micro_batches(self) -> int:
        return -(-self.rank_rows // self.rows)

    @cached_property
    def local_tokens(self) -> int:
        """Tokens of the largest micro-batch on one GPU. Micro-batches are as equal as they can be."""
        return -(-self.rank_rows // self.micro_batches) * self.context // self.mesh.context

    @cached_property
    def sharded(self) -> int:
        """Ranks that FSDP2 spreads each parameter over."""
        return self.mesh.shard * self.mesh.context

    def with_rows(self, rows: int) -> Job:
        """The same job with so many sequences a micro-batch."""
        return replace(self, micro_batch_tokens=rows * self.context // self.mesh.context)

    def on(self, **sizes: int) -> Job:
        """The same job on a mesh with these sizes changed."""
        return replace(self, mesh=self.mesh._replace(**sizes))


def why_not(job: Job) -> str:
    """Empty when the job can run at all; else the reason that it cannot, with the keys to change."""
    model, mesh = job.model, job.mesh
    for name in ("n_heads", "n_kv_heads", "d_ffn", "vocab_size"):
        if getattr(model, name) % mesh.tensor:
            return f"model.{name}={getattr(model, name)} is no multiple of tensor_parallel={mesh.tensor}"
    for context in dict.fromkeys((job.context, *(length for _, length in job.phases))):
        if context % (2 * mesh.context) and mesh.context > 1:
            return f"context={context} must be divisible by 2 · context_parallel={mesh.context}"
        if job.tokens_per_update % context:
            return f"tokens_per_update={job.tokens_per_update} is no multiple of context={context}"
        if (sequences := job.tokens_per_update // context) % mesh.data_ranks:
            return (
                f"an update has {sequences} sequences of {context} tokens, which {mesh.data_ranks} data ranks (replicate · shard) cannot share "
                f"equally: change tokens_per_update, or let context_parallel or tensor_parallel take more of the GPUs"
            )
    return ""


def check_words(job: Job) -> None:
    """Raise a UserError for a word that is none of those known."""
    for key, value, known in (
        ("precision", job.precision, PRECISIONS),
        ("checkpointing", job.checkpointing, CHECKPOINTING),
        ("accumulate", job.accumulate, ACCUMULATE),
    ):
        if value not in known:
            raise UserError(f"command line: {key}={value}: no such way{nearest(value, known)}")
