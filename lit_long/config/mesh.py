"""The ranks that a stage trains on as a mesh of four dimensions, from its keys alone, so that a sweep can check it before anything
starts. Nothing here imports torch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from lit_long.config.schema import StageConfig, TrainerConfig
from lit_long.config.typed import UserError, nearest

STRATEGIES = ("single", "fsdp")
ACCUMULATE = ("whole", "sharded")
SIZES = ("nodes", "devices", "replicate", "context_parallel", "tensor_parallel")
SHARED = ("n_heads", "n_kv_heads", "d_ffn", "vocab_size")  # of a model, that tensor-parallel ranks share equally
# Of training in bf16-true, for plans and logs. Half of the way from a number to the next one in bf16 is 1/512 to 1/256 of it.
ROUNDED_UPDATES = (
    "bf16-true rounds weights after every update, and a change of less than 1/512 of a weight is lost: norms do not train at rates below 2e-3, "
    "and at rates of some 1e-5 most weights do not; bf16-mixed keeps weights in fp32"
)


class Mesh(NamedTuple):
    """Sizes of the dimensions, outermost first: neighbouring ranks, which share a machine, differ in the last ones.

    replicate  copies of the sharded model, between which gradients alone travel (HSDP)
    shard      ranks among which weights, gradients and optimizer are dealt (FSDP2)
    context    ranks that share the tokens of each sequence; FSDP2 deals weights among them, too
    tensor     ranks that share each matrix product
    """

    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1

    @property
    def ranks(self) -> int:
        """All of them."""
        return math.prod(self)

    @property
    def data_ranks(self) -> int:
        """Ranks with rows of their own. The context × tensor ranks of a group read the same ones."""
        return self.replicate * self.shard

    @property
    def token_ranks(self) -> int:
        """Ranks with tokens of their own. Those of a tensor group compute the same losses."""
        return self.data_ranks * self.context


def gathers_rounded(trainer: TrainerConfig) -> bool:
    """Whether sharded parameters, kept in fp32, are rounded to bf16 before they are gathered (training/precision.py). It changes the rounding of what
    is computed, and so a stage's identity."""
    return trainer.precision == "bf16-mixed" and trainer.strategy == "fsdp" and trainer.accelerator != "cpu"


def mesh_of(trainer: TrainerConfig) -> Mesh:
    """The mesh of ``trainer.*``: shard is what the other dimensions leave of nodes · devices.

    Raises:
        UserError: names the key and what would be right.
    """
    if trainer.strategy not in STRATEGIES:
        raise UserError(
            f"trainer.strategy must be single or fsdp, not {trainer.strategy!r}{nearest(trainer.strategy, STRATEGIES)}"
        )
    if trainer.accumulate not in ACCUMULATE:
        raise UserError(f"trainer.accumulate={trainer.accumulate}: no such way{nearest(trainer.accumulate, ACCUMULATE)}")
    if trainer.strategy == "single":
        if several := [f"trainer.{name}={getattr(trainer, name)}" for name in SIZES if getattr(trainer, name) != 1]:
            raise UserError(f"trainer.strategy=single runs on one device, not {' and '.join(several)}; use trainer=fsdp")
        return Mesh()
    ranks = trainer.nodes * trainer.devices
    others = trainer.replicate * trainer.context_parallel * trainer.tensor_parallel
    if ranks % others:
        raise UserError(
            f"trainer.nodes={trainer.nodes} · trainer.devices={trainer.devices} is {ranks} ranks, which is no multiple of "
            f"replicate={trainer.replicate} · context_parallel={trainer.context_parallel} · "
            f"tensor_parallel={trainer.tensor_parallel}, that is {others}; what is left would be sharded over"
        )
    return Mesh(trainer.replicate, ranks // others, trainer.context_parallel, trainer.tensor_parallel)


def evaluation_ranks(config: StageConfig) -> int:
    """The processes that share the model of an evaluate stage: as many of one machine's ``trainer.devices`` under ``trainer.strategy=fsdp`` as heads,
    hidden units and words can be dealt to equally (generation/sharded.py). The other dimensions of the mesh are for training."""
    if config.trainer.strategy == "single":
        return 1
    shared = math.gcd(*(getattr(config.model, name) for name in SHARED))
    return max(ranks for ranks in range(1, config.trainer.devices + 1) if shared % ranks == 0)


def check_mesh(config: StageConfig, where: str = "") -> Mesh:
    """The mesh of a training stage, if its model can be dealt to it.

    Args:
        where: file and stage, for messages.

    Raises:
        UserError: as `mesh_of`, or for a model that tensor_parallel ranks, or an update that data ranks, cannot share equally.
    """
    mesh, prefix = mesh_of(config.trainer), f"{where}: " if where else ""
    sequences = config.tokens_per_update // config.context
    if sequences % mesh.data_ranks:
        raise UserError(
            f"{prefix}an update of tokens_per_update={config.tokens_per_update} has {sequences} sequences of context={config.context}, which "
            f"{mesh.data_ranks} ranks (replicate · shard) cannot share equally; take fewer ranks, larger updates, or "
            f"trainer.context_parallel, whose ranks share sequences"
        )
    for name in SHARED:
        size = getattr(config.model, name)
        if size % mesh.tensor:
            raise UserError(
                f"{prefix}model.{name}={size} cannot be shared equally by trainer.tensor_parallel={mesh.tensor} ranks; "
                "choose a divisor of it"
            )
    if mesh.tensor > 1 and config.adapter.rank:
        raise UserError(
            f"{prefix}adapters are trained on whole matrices: use adapter=none with trainer.tensor_parallel={mesh.tensor}, "
            "or trainer.tensor_parallel=1, which shards them all the same"
        )
    if mesh.tensor > 1 and config.trainer.loss not in ("auto", "chunked"):
        raise UserError(
            f"{prefix}trainer.loss={config.trainer.loss} wants all words in one place; use trainer.loss=chunked with "
            f"trainer.tensor_parallel={mesh.tensor}"
        )
    return mesh
