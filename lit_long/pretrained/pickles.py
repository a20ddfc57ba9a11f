"""PyTorch's own files (.bin, .pth), read without ever running what else a pickle may hold; Hugging Face folders of before safetensors.

The files are mapped into memory, not read as a whole. Pages that were read stay with the process as long as the map does, so the
maps are opened anew after every few megabytes. What torch saved before 1.6 cannot be mapped, and is read as a whole.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lit_long.config import UserError
from lit_long.pretrained.base import ForeignWeights
from lit_long.pretrained.huggingface import HuggingFace

if TYPE_CHECKING:
    from torch import Tensor

ZIP = b"PK\x03\x04"  # torch's files since 1.6
WINDOW = 16 * 2**20  # bytes read before the maps are opened anew


class HuggingFaceBin(HuggingFace, ForeignWeights):
    """A Hugging Face folder whose weights are pytorch_model.bin, or several such files with an index."""

    weight_files = ("pytorch_model.bin", "pytorch_model.bin.index.json")

    @property
    def size(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def names_in(self, file: Path) -> list[str]:
        return Pickles([file]).names()

    def read_tensors(self, file: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        opened = Pickles([file])
        for name in names:
            yield name, opened.parts(name)[0]


class Pickles:
    """Dictionaries of tensors, one a file, that share their names: one file, or the model-parallel parts of one model."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.opened: list[dict[str, Tensor]] = []
        self.bytes_read = 0

    def names(self) -> list[str]:
        """Of the tensors in the first file, in its order."""
        return list(self.open()[0])

    def parts(self, name: str) -> list[Tensor]:
        """The tensor called ``name`` of every file, mapped: hold it no longer than needed.

        Raises:
            UserError: a file that cannot be read or lacks it.
        """
        if self.bytes_read > WINDOW and all(map(can_be_mapped, self.files)):
            self.close()
        parts = []
        for file, tensors in zip(self.files, self.open(), strict=True):
            if name not in tensors:
                raise UserError(f"{file}: tensor {name} is missing; copy or download the file again")
            parts.append(tensors[name])
        self.bytes_read += sum(part.nbytes for part in parts)
        return parts

    def open(self) -> list[dict[str, Tensor]]:
        if not self.opened:
            self.opened = [open_pickle(file) for file in self.files]
        return self.opened

    def close(self) -> None:
        self.opened, self.bytes_read = [], 0


def can_be_mapped(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(ZIP)) == ZIP


def open_pickle(file: Path) -> dict[str, Tensor]:
    """The tensors in ``file``, mapped where it can be.

    Raises:
        UserError: a missing or damaged file, or one that holds anything but tensors.
    """
    import torch  # not before: planning looks at such a folder, too

    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=can_be_mapped(file))
    except pickle.UnpicklingError as error:
        cause = str(error).split("\n")[0][:200]
        raise UserError(
            f"{file}: holds more than tensors, perhaps code that would run on loading, so it was not loaded ({cause}); take the model "
            f"as safetensors, or convert it where you trust it"
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, struct.error) as error:
        cause = str(error).split("\n")[0][:200]
        raise UserError(f"{file}: cannot be read as PyTorch weights: {cause}; copy or download it again") from None
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{file}: is not a dictionary of tensors by name")
    return content
