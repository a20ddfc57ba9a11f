"""Parallelism, applied to the model from outside, in one visible order."""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from lit_long.model.llama import Llama


def parallelize(model: Llama, mesh: DeviceMesh) -> Llama:
    """Shard every block, then the rest (embedding, final norm, head) as the root, over the mesh's data-parallel ranks (FSDP2)."""
    data_parallel = mesh["data_parallel"]
    for block in model.layers:
        fully_shard(block, mesh=data_parallel)
    # The root's weights serve the head right after the last block and its backward begins there: keep them gathered.
    fully_shard(model, mesh=data_parallel, reshard_after_forward=False)
    return model
