"""Resume points: everything that going on needs, written whole or not at all.

step-00000100.ckpt      one device: a file
step-00000100.ckpt/     strategy=fsdp: a folder to which every rank writes what it holds (torch.distributed.checkpoint), and meta.pt: loops,
                        schedule, the position in the data
*.writing               not complete: it gets its name when every rank and the loops are on the disk
*.deleting              no longer kept

A kill at any moment leaves the last complete one. Either kind resumes on any number of ranks in any layout, a single device included.
"""

from __future__ import annotations

import copy
import errno
import functools
import io
import itertools
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from lit_long.config import UserError
from lit_long.files import is_disk_full
from lit_long.pretrained.weights import read_entry

META = "meta.pt"
WRITING, DELETING = ".writing", ".deleting"


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to resume from, if there is one."""
    return max(folder.glob("step-*.ckpt"), default=None)


class Writer:
    """Writes one resume point at a time, in the background if wanted.

    Attributes:
        seconds: what the latest one took from the first byte to its name; None before the first.
    """

    def __init__(self, background: bool = False) -> None:
        self.background, self.seconds = background, None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def run(self, write: Callable[[], None]) -> None:
        """Call ``write``, now or beside what follows; the one before it has ended then, and an error of it is raised here."""
        self.poll(wait=True)
        if self.background:
            self._thread = threading.Thread(target=self._guarded, args=(write,), name="resume point", daemon=True)
            self._thread.start()
        else:
            self._guarded(write)
            self.poll()

    def poll(self, wait: bool = False) -> bool:
        """Whether nothing is being written any more. An error of the latest write is raised, once."""
        if self._thread is not None and (wait or not self._thread.is_alive()):
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._thread is None

    def _guarded(self, write: Callable[[], None]) -> None:
        begun = time.perf_counter()
        try:
            write()
            self.seconds = time.perf_counter() - begun
        except BaseException as error:  # torch.distributed's CheckpointException is no Exception
            self._error = error


class OneFile(TorchCheckpointIO):
    """For one device: a resume point is an ordinary file. Folders that several ranks wrote are read, too."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        checkpoint = copy_to_cpu(checkpoint) if self.writer.background else checkpoint
        self.writer.run(functools.partial(write_file, checkpoint, Path(path)))

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        with reading(path):
            if Path(path).is_dir():
                return assemble(Path(path))
            return super().load_checkpoint(path, map_location or "cpu", weights_only)


class ShardedPoints:
    """For a ModelParallelStrategy (put before it in the list of bases): a resume point is a folder to which every rank writes its part.

    Each rank reads what it holds, out of a folder of any other layout, or of an ordinary file. Lightning, which does the former, takes the
    numbers of an optimizer's parameters in a file for those of the module: they are not, where there are groups.
    """

    writer: Writer
    _files: dist.ProcessGroup | None = None  # of its own: in the background its messages must not meet those of training

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None) -> None:
        if self._files is None:
            self._files = dist.new_group(backend="gloo", timeout=self._timeout)
        tensors = {"state_dict": checkpoint.pop("state_dict")}
        tensors |= {f"optimizer_{number}": state for number, state in enumerate(checkpoint.pop("optimizer_states", []))}
        if self.writer.background:
            tensors = copy_to_cpu(tensors, changed_by_training(self.model, self.optimizers))
        meta = io.BytesIO()
        torch.save(checkpoint, meta)
        path = Path(self.broadcast(str(filepath)))
        self.writer.run(functools.partial(write_folder, tensors, meta.getvalue(), path, self._files))

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        with reading(checkpoint_path):
            if Path(checkpoint_path).is_dir():
                return super().load_checkpoint(checkpoint_path, weights_only)
            checkpoint = torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)
            whole = StateDictOptions(full_state_dict=True)
            set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=whole)
            for optimizer, state in zip(self.optimizers, checkpoint.pop("optimizer_states"), strict=True):
                set_optimizer_state_dict(self.model, optimizer, state_by_name(state, self.model, optimizer), options=whole)
            return checkpoint


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Errors of a checkpoint that cannot be read, in words for people."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, dcp.CheckpointException) as error:
        reason = " ".join(str(error).split())[-300:]
        raise UserError(
            f"{path}: this checkpoint cannot be read: {type(error).__name__}: {reason}. Remove it to go on from one before it, or from the start"
        ) from error


def copy_to_cpu(state: dict[str, Any], trained: Iterable[Tensor] | None = None) -> dict[str, Any]:
    """The state in the host's memory, where training does not change it.

    Args:
        trained: the tensors that training changes. What shares no memory with them, and is in the host's, is taken as it is: Lightning has copied the
            state of a sharded model that is on GPUs. If not given, everything is copied.
    """
    changing = None if trained is None else {place_of(x) for x in trained}

    def keep(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return copy.deepcopy(x)
        if changing is not None and x.device.type == "cpu" and place_of(x) not in changing:
            return x
        return x.detach().to("cpu", copy=True)

    return tree_map(keep, state)


def place_of(x: Tensor) -> int:
    """Address of the memory that holds this rank's part of a tensor."""
    return (x.to_local() if isinstance(x, DTensor) else x).untyped_storage().data_ptr()


def changed_by_training(model: nn.Module, optimizers: Iterable[Optimizer]) -> Iterator[Tensor]:
    yield from itertools.chain(model.parameters(), model.buffers())
    for optimizer in optimizers:
        yield from (x for values in optimizer.state.values() for x in values.values() if isinstance(x, Tensor))


def write_file(checkpoint: dict[str, Any], path: Path) -> None:
    """``path`` from one process."""
    writing = path.with_name(path.name + WRITING)
    try:
        with writing.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        publish(writing, path)
    except BaseException as error:
        discard(writing)
        raise explain(error, path) from error


def write_folder(tensors: dict[str, Any], meta: bytes, path: Path, group: dist.ProcessGroup) -> None:
    """``path`` from all ranks of ``group``; the first one gives it its name, when all have written."""
    writing, first = path.with_name(path.name + WRITING), dist.get_rank(group) == 0
    try:
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(writing), process_group=group)  # ends when all ranks have ended
        if first:
            with (writing / META).open("wb") as file:
                file.write(meta)
                file.flush()
                os.fsync(file.fileno())
            publish(writing, path)
    except BaseException as error:
        if first:
            discard(writing)
        raise explain(error, path) from error


def publish(writing: Path, path: Path) -> None:
    if path.exists():  # of a run that was set back by hand
        discard(path)
    os.replace(writing, path)


def discard(path: Path) -> None:
    """Remove a resume point, or what there is of one: never is there a part of one under its name."""
    if path.suffix not in (WRITING, DELETING):
        path = path.rename(path.with_name(path.name + DELETING))
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def explain(error: BaseException, path: Path) -> BaseException:
    """The error of a rank that could not write, in words for people where they are known."""
    causes = [error]
    for cause in causes:  # grows while it is gone through
        more = [pair[0] for pair in cause.failures.values()] if isinstance(cause, dcp.CheckpointException) else []
        causes += [one for one in (*more, cause.__cause__, cause.__context__) if one is not None and one not in causes]
    failed = next((cause for cause in causes if isinstance(cause, OSError)), None)
    kept = newest_checkpoint(path.parent)
    rest = f"the last checkpoint, {kept.name}, is whole" if kept else "there was none before it"
    if failed is not None and (is_disk_full(failed) or failed.errno == errno.EFBIG):
        return UserError(
            f"{path}: no space left to write this checkpoint ({failed.strerror}); {rest}. Free some, or set trainer.keep_checkpoints and "
            "trainer.milestones lower, then run the same command again"
        )
    if failed is not None:
        return UserError(f"{path}: this checkpoint could not be written: {failed}; {rest}")
    if isinstance(error, dcp.CheckpointException):
        return RuntimeError(f"{path}: this checkpoint could not be written; {rest}: {error}")
    return error


def assemble(folder: Path) -> dict[str, Any]:
    """What several ranks wrote to ``folder``, as the one dictionary that Lightning keeps in a file. Read by one process, tensor by tensor."""
    found: dict[str, Any] = {}
    reader = dcp.FileSystemReader(folder)
    metadata = reader.read_metadata()
    reader.read_metadata = lambda *_, **__: metadata  # once, and not for every tensor
    for name, path in metadata.planner_data.items():
        set_element(found, path, read_entry(reader, name, metadata.state_dict_metadata[name]))
    names = sorted((name for name in found if name.startswith("optimizer_")), key=lambda name: int(name.partition("_")[2]))
    optimizers = [state_by_number(found.pop(name)) for name in names]
    meta = torch.load(folder / META, map_location="cpu", weights_only=False)
    return meta | found | {"optimizer_states": optimizers}


def state_by_name(state: dict[str, Any], module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's state by the parameters' names, from one by their numbers: as torch does it, by their places in the groups."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    own = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    given = dict(zip((number for group in state["param_groups"] for number in group["params"]), own, strict=True))
    groups = [group | {"params": [given[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {given[number]: values for number, values in state["state"].items()}, "param_groups": groups}


def state_by_number(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state by the parameters' numbers, as torch's own on one device, and not by their names."""
    groups, numbers = [], {}
    for group in state["param_groups"]:
        numbers |= {name: number for number, name in enumerate(group["params"], len(numbers))}
        groups.append(group | {"params": [numbers[name] for name in group["params"]]})
    return {"state": {numbers[name]: values for name, values in state.get("state", {}).items()}, "param_groups": groups}
