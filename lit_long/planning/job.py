"""What is to be planned: a training run as far as its cost depends on it, and the layout of its ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lit_long.config import ModelConfig, UserError, nearest


@dataclass(frozen=True)
class Widths:
    """Bytes an element: of parameters, gradients and optimizer state; of the residual stream; of what matrix products take."""

    parameter: int
    stream: int
    computed: int


PRECISIONS = {"32-true": Widths(4, 4, 4), "bf16-mixed": Widths(4, 4, 2), "bf16-true": Widths(2, 2, 2)}
CHECKPOINTING = ("none", "selective", "full")  # from the fastest to the most frugal


@dataclass(frozen=True)
class Layout:
    """The device mesh: copies of the model, ranks that a copy is sharded over, that share a sequence, that share each matrix."""

    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1

    @property
    def ranks(self) -> int:
        return self.replicate * self.shard * self.context * self.tensor

    @property
    def data(self) -> int:
        """Ranks, or groups of them, that train on sequences of their own."""
        return self.replicate * self.shard

    @property
    def sharded(self) -> int:
        """Ranks that FSDP2 spreads each parameter over."""
        return self.shard * self.context

    def __str__(self) -> str:
        named = {"replicate": self.replicate, "shard": self.shard, "context": self.context, "tensor": self.tensor}
        return " × ".join(f"{name} {size}" for name, size in named.items() if size > 1) or "one GPU"


@dataclass(frozen=True)
class Job:
    """A training run.

    tokens             of the whole run
    rows               sequences of a micro-batch, of each data rank
    phases             (share of the tokens, context) of a curriculum; empty: all at ``context``
    accumulate         what micro-batches add up under FSDP: ``whole`` gradients, reduced once an update, or their ``sharded`` parts
    kernels            cuda · cpu: whose attention and norms, which keep different tensors for backward
    """

    model: ModelConfig
    context: int
    tokens_per_update: int
    tokens: int
    layout: Layout = Layout()
    rows: int = 1
    precision: str = "bf16-mixed"
    checkpointing: str = "full"
    accumulate: str = "whole"
    loss_memory: int = 2**29
    phases: tuple[tuple[float, int], ...] = ()
    kernels: str = "cuda"

    @property
    def widths(self) -> Widths:
        return PRECISIONS[self.precision]

    @property
    def fsdp(self) -> bool:
        return self.layout.ranks > 1

    @property
    def rank_rows(self) -> int:
        """Sequences of an update that each data rank trains on."""
        return max(1, self.tokens_per_update // self.context // self.layout.data)

    @property
    def micro_batches(self) -> int:
        return -(-self.rank_rows // self.rows)

    @property
    def local_tokens(self) -> int:
        """Tokens of a micro-batch on one GPU."""
        return min(self.rows, self.rank_rows) * self.context // self.layout.context

    def with_layout(self, **sizes: int) -> Job:
        return replace(self, layout=replace(self.layout, **sizes))


def why_not(job: Job) -> str:
    """Empty when the job can run at all; else the reason that it cannot, with the keys to change."""
    model, layout = job.model, job.layout
    sequences = job.tokens_per_update // job.context
    if job.tokens_per_update % job.context:
        return f"tokens_per_update={job.tokens_per_update} is no multiple of context={job.context}"
    if sequences % layout.data:
        return (
            f"an update has {sequences} sequences, which {layout.data} data ranks (replicate · shard) cannot share equally: change "
            f"tokens_per_update, or let context_parallel or tensor_parallel take more of the GPUs"
        )
    if job.context % (2 * layout.context) and layout.context > 1:
        return f"context={job.context} must be divisible by 2 · context_parallel={layout.context}"
    for name in ("n_heads", "n_kv_heads", "d_ffn", "vocab_size"):
        if getattr(model, name) % layout.tensor:
            return f"model.{name}={getattr(model, name)} is no multiple of tensor_parallel={layout.tensor}"
    return ""


def check(job: Job) -> None:
    """Raise a UserError for settings that make no job."""
    for key, value, known in (
        ("precision", job.precision, PRECISIONS),
        ("checkpointing", job.checkpointing, CHECKPOINTING),
        ("accumulate", job.accumulate, ("whole", "sharded")),
    ):
        if value not in known:
            raise UserError(f"{key}={value}: no such way{nearest(value, known)}")
    if reason := why_not(job):
        raise UserError(f"this cannot run: {reason}")
