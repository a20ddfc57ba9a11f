"""The ranks of a training stage under Lightning: a mesh of four dimensions (config/mesh.py), over gloo on CPUs and NCCL on GPUs.

Who reads what: rows of an update are dealt to the data ranks (replicate × shard); the tokens of a row to the context ranks of a group;
the tensor ranks of a group all hold the same tokens and compute the same losses. So sums of nats and tokens are taken over token ranks
(replicate × shard × context), and counts of rows over data ranks.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh

from lit_long.config.mesh import Mesh
from lit_long.training.parallel import make_mesh
from lit_long.training.resume import ShardedPoints, Writer


class MeshStrategy(ShardedPoints, ModelParallelStrategy):
    """FSDP2, HSDP, context and tensor parallelism, as the module's `parallelize` makes them of the mesh.

    Args:
        sizes: of the mesh; their product is the number of ranks.
        writer: of checkpoints.
        patience: how long a rank waits for another in a collective.
    """

    def __init__(self, sizes: Mesh, writer: Writer | None = None, patience: timedelta | None = None) -> None:
        super().__init__(sizes.data_ranks, sizes.tensor, timeout=patience or default_pg_timeout)
        self.sizes, self.writer = sizes, writer or Writer()
        self._data: DeviceMesh | None = None
        self._tokens: DeviceMesh | None = None

    def setup_environment(self) -> None:
        """Join the other ranks. Done once: a validation after the fit goes on with the same groups."""
        if self._device_mesh is None:
            self._setup_distributed()
            self._device_mesh = make_mesh(self.root_device.type, self.sizes)
            self._data = self._device_mesh["replicate", "shard"]._flatten("data")
            self._tokens = self._device_mesh["replicate", "shard", "context"]._flatten("tokens")
        self.lightning_module._device_mesh = self._device_mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Lightning's name for it: this rank's number among those with rows of their own, and how many there are."""
        return {"num_replicas": self.sizes.data_ranks, "rank": self._data.get_local_rank()}

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Lightning's, without its copy to the device."""
        said = self.reduce(torch.full((), int(decision), device=self.root_device), reduce_op="sum")
        return bool(said == self.world_size) if all else bool(said)

    @property
    def data_group(self) -> ProcessGroup:
        """Ranks with rows of their own, this one among them."""
        return self._data.get_group()

    @property
    def token_group(self) -> ProcessGroup:
        """Ranks with tokens of their own, this one among them."""
        return self._tokens.get_group()


def token_group(strategy: Strategy) -> ProcessGroup | None:
    """The ranks to sum nats and tokens over, under any strategy; None: all."""
    return strategy.token_group if isinstance(strategy, MeshStrategy) else None


def token_ranks(strategy: Strategy) -> int:
    """How many ranks have tokens of their own: gradients are averaged over them."""
    return strategy.sizes.token_ranks if isinstance(strategy, MeshStrategy) else getattr(strategy, "world_size", 1)


def sum_of_tokens(strategy: Strategy, value: Tensor) -> Tensor:
    """The sum of what each rank found in its own tokens."""
    return strategy.reduce(value, group=token_group(strategy), reduce_op="sum")


def sum_of_rows(strategy: Strategy, value: Tensor) -> Tensor:
    """The sum of what each rank found in its own rows."""
    return strategy.reduce(value, group=strategy.data_group if isinstance(strategy, MeshStrategy) else None, reduce_op="sum")


def row_sharers(strategy: Strategy) -> int:
    """How many devices work on the rows of this rank: the whole batch's figures are divided by it to be those of a device."""
    return strategy.sizes.context * strategy.sizes.tensor if isinstance(strategy, MeshStrategy) else 1
