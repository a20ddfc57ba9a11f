"""One of two ranks that read a folder into a sharded model. Run by test_weights.py as: ranks.py FOLDER SOURCE DIMENSION. They write into FOLDER, and
DIMENSION of the mesh is theirs.
"""

from __future__ import annotations

import sys
import time
import weakref
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from lit_long.config.mesh import Mesh
from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.weights import load_pretrained, save_weights
from lit_long.training.parallel import make_mesh, parallelize


def check(rank: int, meeting: Path, source: str, device: str, mesh: Mesh) -> None:
    pretrained = open_pretrained(source)
    with torch.device(device):
        model = Llama(pretrained.shape, build(pretrained.position, pretrained.shape.head_dim))
    parallelize(model, make_mesh("cpu", mesh))
    turn = meeting / f"rank 1 is through with {device}"
    while rank == 0 and not turn.exists():  # a collective would wait for this rank for ever
        time.sleep(0.01)
    load_pretrained(model, pretrained)
    turn.touch()

    expected = dict(pretrained.tensors())
    for name, parameter in model.named_parameters():
        local = parameter.to_local()
        if not isinstance(parameter, DTensor) or not parameter.full_tensor().equal(expected.pop(name).float()):
            sys.exit(f"rank {rank}, {device}: {name} is wrong")
        if local.untyped_storage().nbytes() > parameter.nbytes * 0.6 + 4096:
            sys.exit(f"rank {rank}, {device}: keeps {local.untyped_storage().nbytes()} bytes of {name}")
    if expected:
        sys.exit(f"rank {rank}, {device}: {list(expected)} are missing")
    check_saving(model, rank, meeting / f"{device}.safetensors", dict(pretrained.tensors()))


def check_saving(model: Llama, rank: int, file: Path, expected: dict[str, torch.Tensor]) -> None:
    """The file is whole, and no rank gathers a tensor before it has let go of the one before the last."""
    gathered: list[weakref.ref[torch.Tensor]] = []
    gather = DTensor.full_tensor

    def watched(tensor: DTensor) -> torch.Tensor:
        if sum(one() is not None for one in gathered) > 1:
            sys.exit(f"rank {rank}: holds the others' parts of several tensors")
        whole = gather(tensor)
        gathered.append(weakref.ref(whole))
        return whole

    DTensor.full_tensor = watched
    save_weights(model, file, rank == 0)
    DTensor.full_tensor = gather
    if len(gathered) != len(expected):
        sys.exit(f"rank {rank}: gathered {len(gathered)} tensors")
    dist.barrier()
    found = load_file(file)
    if found.keys() != expected.keys() or not all(found[name].equal(expected[name].float()) for name in expected):
        sys.exit(f"rank {rank}: {file} is wrong")


if __name__ == "__main__":
    place, own_source, dimension = sys.argv[1:]
    dist.init_process_group("gloo")
    for kind in ("meta", "cpu"):
        check(dist.get_rank(), Path(place), own_source, kind, Mesh(**{dimension: 2}))
    dist.destroy_process_group()
