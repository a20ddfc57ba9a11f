"""One of two ranks that read a folder into a sharded model. Run by test_stream.py as: ranks.py RANK FOLDER SOURCE DIMENSION; they meet in
FOLDER, and DIMENSION of the mesh is theirs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from lit_long.checkpoints.external import open_external
from lit_long.checkpoints.stream import load_external
from lit_long.config.mesh import Mesh
from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.training.parallel import make_mesh, parallelize


def check(rank: int, meeting: Path, source: str, device: str, mesh: Mesh) -> None:
    external = open_external(source)
    with torch.device(device):
        model = Llama(external.shape, build(external.position, external.shape.head_dim))
    parallelize(model, make_mesh("cpu", mesh))
    turn = meeting / f"rank 1 is through with {device}"
    while rank == 0 and not turn.exists():  # a collective would wait for this rank for ever
        time.sleep(0.01)
    load_external(model, external)
    turn.touch()

    expected = dict(external.tensors())
    for name, parameter in model.named_parameters():
        local = parameter.to_local()
        if not isinstance(parameter, DTensor) or not parameter.full_tensor().equal(expected.pop(name).float()):
            sys.exit(f"rank {rank}, {device}: {name} is wrong")
        if local.untyped_storage().nbytes() > parameter.nbytes * 0.6 + 4096:
            sys.exit(f"rank {rank}, {device}: keeps {local.untyped_storage().nbytes()} bytes of {name}")
    if expected:
        sys.exit(f"rank {rank}, {device}: {list(expected)} are missing")


if __name__ == "__main__":
    own_rank, place = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{place / 'store'}", rank=own_rank, world_size=2)
    for kind in ("meta", "cpu"):
        check(own_rank, place, sys.argv[3], kind, Mesh(**{sys.argv[4]: 2}))
    dist.destroy_process_group()
