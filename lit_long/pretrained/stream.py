"""Weights made elsewhere into a model, one tensor at a time.

At no time is there more than the model, one tensor and a few megabytes of the file. A sharded model (FSDP2: parameters are DTensors)
is filled by every rank on its own: each reads every tensor and keeps its slice, and no collective is involved, so that ranks need
not be in step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_long.config import UserError
from lit_long.pretrained.external import External
from lit_long.pretrained.weights import misfit


@torch.no_grad()
def load_external(model: nn.Module, external: External, report: Callable[[str, float], None] | None = None) -> None:
    """Fill ``model`` with the weights of ``external``, converted to the precision and placed on the device of its parameters.

    Args:
        model: a Llama, sharded or not. One on the meta device is given memory here, on its shards' device (the CPU if it has none);
            `model.to_empty(device=…)` beforehand chooses another.
        report: is called with a message and the share that is done after each tensor.

    Raises:
        UserError: what `External.tensors` finds wrong, or weights that do not fit the model; names file and tensor.
    """
    allocate(model)
    parameters = dict(model.named_parameters())
    waiting = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    for name, tensor in external.tensors():
        found = {name: tuple(tensor.shape)}
        expected = {name: tuple(parameters[name].shape)} if name in parameters else {}
        if found != expected or name not in waiting:
            problem = misfit(expected, found) if found != expected else f"{name} comes twice"
            raise UserError(f"{external.file_of(name)}: these weights do not fit the model: {problem}")
        fill(parameters[name], tensor)
        del waiting[name], tensor
        if report is not None:
            report(f"reading {external.path.name}", 1 - len(waiting) / len(parameters))
    if waiting:
        name = next(iter(waiting))
        raise UserError(f"{external.file_of(name)}: these weights do not fit the model: {misfit(waiting, {})}")


def allocate(model: nn.Module) -> None:
    """Give a model on the meta device its memory. The values are undefined, and pages are not touched before they are written."""
    parameters = list(model.parameters())
    if any(parameter.is_meta for parameter in parameters):
        meshes = [parameter.device_mesh for parameter in parameters if isinstance(parameter, DTensor)]
        model.to_empty(device=meshes[0].device_type if meshes else "cpu")


def fill(parameter: Tensor, whole: Tensor) -> None:
    """Copy ``whole``, or this rank's slice of it, into ``parameter``."""
    if isinstance(parameter, DTensor):
        # src_data_rank=None: this rank cuts its own slice out of its own copy, and nothing is sent
        sliced = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(sliced.to_local())
    else:
        parameter.copy_(whole)
