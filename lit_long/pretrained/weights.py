"""A model's weights alone, as one safetensors file: what one stage hands to the next."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from lit_long.config import UserError
from lit_long.files import replacing

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


def header(state: dict[str, torch.Tensor]) -> bytes:
    """What a safetensors file begins with: names, shapes and places of the tensors that follow, in this order."""
    entries, end = {}, 0
    for name, tensor in state.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": SAFETENSORS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The full weights of ``model``, sharded or not, on the CPU. Every rank calls; the first one gets them."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def write_state(state: dict[str, torch.Tensor], file: Path) -> None:
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


def misfit(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> str:
    """The first difference in words, and what to do."""
    remedy = "set model.* as it was when they were trained"
    for name, shape in expected.items():
        if name not in found:
            return f"{name} is missing; {remedy}"
        if found[name] != shape:
            return f"{name} is {list(found[name])} in the file and {list(shape)} in the model; {remedy}"
    return f"{next(name for name in found if name not in expected)} is not in the model; {remedy}"
