"""A model's weights: written to and read from the safetensors file that one stage hands to the next, or filled from pretrained ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_long.config import UserError
from lit_long.files import replacing
from lit_long.pretrained.base import PretrainedWeights

WEIGHTS = "weights.safetensors"  # its name in a training stage's folder
SAFETENSORS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


def save_weights(model: nn.Module, file: Path, is_writer: bool = True) -> None:
    """Write the full weights of ``model`` to ``file``, atomically. Sharded models: every rank calls, the writer writes.

    They are gathered one tensor at a time, and written at once: no rank ever holds more of the others' than that.
    """
    state = dict(sorted(model.state_dict().items(), key=lambda entry: -entry[1].element_size()))  # so that all are aligned
    whole = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in state.values())
    if not is_writer:
        for _ in whole:  # gathering takes all ranks
            pass
        return
    with replacing(file) as writing, writing.open("wb") as out:
        out.write(header(state))
        for tensor in whole:
            out.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def header(state: dict[str, Tensor]) -> bytes:
    """What a safetensors file begins with: names, shapes and places of the tensors that follow, in this order."""
    entries, end = {}, 0
    for name, tensor in state.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": SAFETENSORS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The full weights of ``model``, sharded or not, on the CPU. Every rank calls; the first one gets them."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def write_state(state: dict[str, Tensor], file: Path) -> None:
    with replacing(file) as writing:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, writing)


def load_weights(model: nn.Module, file: Path) -> None:
    """Load ``file`` into ``model`` (not yet sharded).

    Raises:
        UserError: an unreadable file, or weights that do not fit the model.
    """
    expected = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    try:
        with safe_open(file, framework="pt") as opened:
            found = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read as weights: {error}; delete its stage folder to train it again") from None
    if found != expected:
        raise UserError(f"{file}: these weights do not fit the model: {misfit(expected, found)}")
    with torch.no_grad():
        model.load_state_dict(load_file(file))


@torch.no_grad()
def load_pretrained(model: nn.Module, weights: PretrainedWeights, report: Callable[[str, float], None] | None = None) -> None:
    """Fill ``model`` with pretrained ``weights``, converted to the precision and placed on the device of its parameters.

    At no time is there more than the model, one tensor and a few megabytes of the file. A sharded model (FSDP2: parameters are DTensors) is
    filled by every rank on its own: each reads every tensor and keeps its slice, and no collective is involved, so that ranks need not be in
    step.

    Args:
        model: a Llama, sharded or not. One on the meta device is given memory here, on its shards' device (the CPU if it has none);
            `model.to_empty(device=…)` beforehand chooses another.
        report: is called with a message and the share that is done after each tensor.

    Raises:
        UserError: what `PretrainedWeights.tensors` finds wrong, or weights that do not fit the model; names file and tensor.
    """
    allocate(model)
    parameters = dict(model.named_parameters())
    waiting = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    for name, tensor in weights.tensors():
        found = {name: tuple(tensor.shape)}
        expected = {name: tuple(parameters[name].shape)} if name in parameters else {}
        if found != expected or name not in waiting:
            problem = misfit(expected, found) if found != expected else f"{name} comes twice"
            raise UserError(f"{weights.file_of(name)}: these weights do not fit the model: {problem}")
        fill(parameters[name], tensor)
        del waiting[name], tensor
        if report is not None:
            report(f"reading {weights.path.name}", 1 - len(waiting) / len(parameters))
    if waiting:
        name = next(iter(waiting))
        raise UserError(f"{weights.file_of(name)}: these weights do not fit the model: {misfit(waiting, {})}")


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


def misfit(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> str:
    """The first difference in words, and what to do."""
    remedy = "set model.* as it was when they were trained"
    for name, shape in expected.items():
        if name not in found:
            return f"{name} is missing; {remedy}"
        if found[name] != shape:
            return f"{name} is {list(found[name])} in the file and {list(shape)} in the model; {remedy}"
    return f"{next(name for name in found if name not in expected)} is not in the model; {remedy}"
