"""A model's weights: written to and read from this suite's own files, one tensor at a time, or filled from pretrained ones.

weights.safetensors          what a finished stage hands on
step-*.ckpt (a file)         a resume point
step-*.ckpt/ (a folder)      a resume point of several ranks (torch.distributed.checkpoint)
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_long.config import StageConfig, UserError
from lit_long.config.checkpoints import CHECKPOINTS, STEP
from lit_long.config.updates import first_update
from lit_long.files import replacing
from lit_long.pretrained.base import PretrainedWeights

WEIGHTS = "weights.safetensors"  # its name in a training stage's folder
SAFETENSORS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
PREFIXES = ("state_dict.", "model.")  # where a LongContextModule keeps the Llama, in a file and in a sharded folder


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
            out.write(bytes_of(tensor))


def bytes_of(tensor: Tensor) -> Any:
    """The tensor's bytes, as a buffer to be written; not copied where it is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


class SafetensorsWriter:
    """A safetensors file that is written tensor by tensor, without knowing what follows: its header, at the beginning, comes last.

    Args:
        names: at least those of the tensors to come. A header may end in spaces, so there may be fewer.
    """

    def __init__(self, file: Path, names: Iterable[str]) -> None:
        self.space = 128 + sum(len(json.dumps(name)) + 128 for name in names)  # an entry: type, shape and two offsets
        self.space += -self.space % 8
        self.entries: dict[str, dict[str, Any]] = {}
        self.end = 0  # of the data so far, in bytes
        self.out = file.open("wb")
        self.out.seek(8 + self.space)

    def takes(self, tensor: Tensor) -> bool:
        """Whether it would lie where its element size wants it to: readers map it, and a file has no gaps."""
        return self.end % tensor.element_size() == 0

    def add(self, name: str, tensor: Tensor) -> None:
        begin, self.end = self.end, self.end + tensor.nbytes
        self.entries[name] = {"dtype": SAFETENSORS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, self.end]}
        self.out.write(bytes_of(tensor))

    def close(self) -> None:
        """Write the header, and see to it that all of the file is on the disk."""
        text = json.dumps({"__metadata__": {"format": "pt"}} | self.entries, separators=(",", ":")).encode().ljust(self.space)
        with self.out:
            self.out.seek(0)
            self.out.write(self.space.to_bytes(8, "little") + text)
            self.out.flush()
            os.fsync(self.out.fileno())


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


def trained_weights(config: StageConfig, parent: Path) -> Path:
    """What the training stage in ``parent`` left: its weights, or for a stage with ``branch`` a checkpoint in the midst of its run."""
    first = first_update(config)
    return parent / CHECKPOINTS / STEP.format(first) if first else parent / WEIGHTS


def load_weights(model: nn.Module, file: Path) -> None:
    """Fill ``model``, sharded or not, with the weights of a finished stage or a resume point, as `load_pretrained` does. Norms of queries and keys begin
    at 1 where the stage had none.

    Raises:
        UserError: an unreadable file, or weights that do not fit the model.
    """
    fill_model(
        model,
        with_new_norms(read_weights(file) if file.suffix == ".safetensors" else read_checkpoint(file), model),
        lambda _: file,
    )


def with_new_norms(tensors: Iterable[tuple[str, Tensor]], model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors, and norms of queries and keys with weights of 1 where none of them is such a norm."""
    new = {name: parameter for name, parameter in model.named_parameters() if name.endswith(("q_norm.weight", "k_norm.weight"))}
    for name, tensor in tensors:
        if name in new:
            new = {}
        yield name, tensor
        del tensor
    yield from ((name, torch.ones(parameter.shape)) for name, parameter in new.items())


def read_weights(file: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) in a finished stage's file. Raises UserError where it cannot be read."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read as weights: {error}; delete its stage folder to train it again") from None

    for name in names:  # opened anew for each, or the pages read would pile up
        with safe_open(file, framework="pt") as opened:
            tensor = opened.get_tensor(name)
        yield name, tensor
        del tensor


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
    fill_model(model, weights.tensors(), weights.file_of, report, weights.path.name)


@torch.no_grad()
def fill_model(
    model: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    where: Callable[[str], Any],
    report: Callable[[str, float], None] | None = None,
    source: str = "",
) -> None:
    """Fill ``model``, sharded or not, tensor by tensor; see `load_pretrained` and `fitting`."""
    allocate(model)
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    for count, (name, tensor) in enumerate(fitting(tensors, shapes, where), 1):
        fill(parameters[name], tensor)
        del tensor
        if report is not None:
            report(f"reading {source}", count / len(parameters))


def fitting(
    tensors: Iterable[tuple[str, Tensor]], shapes: dict[str, tuple[int, ...]], where: Callable[[str], Any]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors, each found to have its shape, none of them twice and none missing. ``where``: the file of a name, for messages.

    Raises:
        UserError: weights that do not fit a model with parameters of these ``shapes``.
    """
    waiting = dict(shapes)
    for name, tensor in tensors:
        found = {name: tuple(tensor.shape)}
        expected = {name: shapes[name]} if name in shapes else {}
        if found != expected or name not in waiting:
            problem = misfit(expected, found) if found != expected else f"{name} comes twice"
            raise UserError(f"{where(name)}: these weights do not fit the model: {problem}")
        del waiting[name]
        yield name, tensor
        del tensor
    if waiting:
        raise UserError(f"{where(next(iter(waiting)))}: these weights do not fit the model: {misfit(waiting, {})}")


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


def read_checkpoint(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the model in ``checkpoint``, one at a time, without optimizer state.

    Raises:
        UserError: the checkpoint cannot be read, or holds no model.
    """
    try:
        if checkpoint.is_dir():
            yield from read_sharded(checkpoint)
        elif checkpoint.suffix == ".safetensors":
            with safe_open(checkpoint, framework="pt") as opened:
                yield from ((name, opened.get_tensor(name)) for name in opened.keys())
        else:
            state = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["state_dict"]
            yield from ((bare(name), tensor) for name, tensor in state.items())
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError, dcp.CheckpointException) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{checkpoint}: cannot be read as a checkpoint of lit-long: {type(error).__name__}: {reason}") from None


def read_sharded(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors out of a sharded folder, on one process, reading each from wherever its shards lie."""
    reader = dcp.FileSystemReader(folder)
    metadata = reader.read_metadata()
    reader.read_metadata = lambda *_, **__: metadata  # once, and not for every tensor
    names = [name for name in metadata.state_dict_metadata if name.startswith(PREFIXES[0])]
    if not names:
        raise UserError(f"{folder}: holds no model weights (no state_dict)")
    for name in names:
        yield bare(name), read_entry(reader, name, metadata.state_dict_metadata[name])


def read_entry(reader: dcp.FileSystemReader, name: str, entry: TensorStorageMetadata | BytesStorageMetadata) -> Any:
    """One entry of a sharded folder, on one process: a whole tensor, or whatever else was saved."""
    is_tensor = isinstance(entry, TensorStorageMetadata)
    found = {name: torch.empty(entry.size, dtype=entry.properties.dtype) if is_tensor else None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        dcp.load(found, storage_reader=reader, no_dist=True)
    return found[name]


def bare(name: str) -> str:
    """A parameter's name in the Llama itself."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
