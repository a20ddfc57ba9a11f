"""The tensors of this suite's own checkpoints: a stage's final weights, and the resume points it leaves on the way, sharded or not.

weights.safetensors          what a finished stage hands on
step-*.ckpt (a file)         a resume point
step-*.ckpt/ (a folder)      a resume point of several ranks (torch.distributed.checkpoint)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata

from lit_long.config import UserError

PREFIXES = ("state_dict.", "model.")  # where a LongContextModule keeps the Llama, in a file and in a sharded folder


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
