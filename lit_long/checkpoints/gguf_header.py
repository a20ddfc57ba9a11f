"""The header of a GGUF file: its settings, and where each tensor lies.

`gguf.GGUFReader` takes every string of the vocabulary apart with numpy, 2 seconds for SmolLM2, and says of a truncated file only
that an array cannot be reshaped. Planning a sweep must be quick and messages must name the tensor, so the header is walked here:
arrays are skipped until asked for. The format is fixed by its specification (github.com/ggml-org/ggml, docs/gguf.md):

    "GGUF"  version u32  tensors u64  settings u64
    settings × (key, type u32, value)
    tensors × (name, dimensions u32, lengths u64 …, type u32, offset u64)
    padding, then the tensors' data
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType

from lit_long.config import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # 1 counted in 32 bits and is long gone
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # value type → struct code
STRING, ARRAY = 8, 9
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")  # those that are read


@dataclass(frozen=True)
class Stored:
    """A tensor in the file: ``shape`` in torch's order, its type, its first byte and its number of bytes."""

    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    size: int


@dataclass(frozen=True)
class ArrayAt:
    """An array among the settings, not read yet: type of its items, their number, and where the first lies."""

    type: int
    count: int
    offset: int


@dataclass(frozen=True)
class Header:
    """Settings by key (strings and numbers; arrays as `ArrayAt`) and tensors by name."""

    file: Path
    settings: dict[str, Any]
    tensors: dict[str, Stored]

    def array(self, key: str) -> list[Any] | None:
        """The array called ``key``; None when there is none."""
        at = self.settings.get(key)
        if not isinstance(at, ArrayAt):
            return None
        with self.file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            walk = Walk(data, at.offset)
            if at.type == STRING:
                return [walk.string() for _ in range(at.count)]
            return list(walk.numbers(SCALARS[at.type], at.count))


class Walk:
    """Reads one value after the other."""

    def __init__(self, data: mmap.mmap, at: int = 0) -> None:
        self.data, self.at = data, at

    def numbers(self, code: str, count: int = 1) -> tuple[Any, ...]:
        """``count`` numbers of a struct code, little-endian."""
        layout = struct.Struct(f"<{count}{code}")
        start, self.at = self.at, self.at + layout.size
        return layout.unpack_from(self.data, start)

    def number(self, code: str) -> Any:
        return self.numbers(code)[0]

    def string(self) -> str:
        length = self.number("Q")
        start, self.at = self.at, self.at + length
        if self.at > len(self.data):
            raise struct.error("a string reaches beyond the end")
        return self.data[start : self.at].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """A setting of value type ``kind``. An array is stepped over."""
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.number(SCALARS[kind])
        items, count = self.number("I"), self.number("Q")
        array = ArrayAt(items, count, self.at)
        if items == STRING:
            for _ in range(count):
                self.at += 8 + struct.unpack_from("<Q", self.data, self.at)[0]
        else:  # an array of arrays, which no Llama has, is a KeyError
            self.at += count * struct.calcsize(f"<{SCALARS[items]}")
        return array


def read_header(file: Path) -> Header:
    """The header of ``file``, all of whose tensors are within the file and of a type that is read.

    Raises:
        UserError: not a GGUF file, a truncated one, or a tensor of another type; names file and tensor.
    """
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return walk_header(file, data)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise UserError(f"{file}: cannot be read: {error}") from None
    except (struct.error, KeyError, OverflowError, MemoryError):
        raise UserError(f"{file}: its header ends too early or is damaged; copy or download the file again") from None


def walk_header(file: Path, data: mmap.mmap) -> Header:
    walk = Walk(data, len(MAGIC))
    if data[: len(MAGIC)] != MAGIC:
        raise UserError(f"{file}: is not a GGUF file: it does not begin with {MAGIC.decode()}")
    version, n_tensors, n_settings = walk.number("I"), walk.number("Q"), walk.number("Q")
    if version not in VERSIONS:
        raise UserError(f"{file}: GGUF version {version} cannot be read, only {' and '.join(map(str, VERSIONS))} (little-endian)")
    settings = {}
    for _ in range(n_settings):
        key, kind = walk.string(), walk.number("I")
        settings[key] = walk.value(kind)
    found = []
    for _ in range(n_tensors):
        name, dimensions = walk.string(), walk.number("I")
        shape = walk.numbers("Q", dimensions)[::-1]  # the file counts the fastest dimension first
        found.append((name, shape, walk.number("I"), walk.number("Q")))
    alignment = settings.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    start = -(-walk.at // alignment) * alignment
    tensors = {name: stored(file, name, shape, kind, start + offset) for name, shape, kind, offset in found}
    for name, tensor in tensors.items():
        if tensor.offset + tensor.size > len(data):
            raise UserError(
                f"{file}: is truncated: tensor {name} needs bytes up to {tensor.offset + tensor.size:,}, but the file has "
                f"{len(data):,}; copy or download it again"
            )
    return Header(file, settings, tensors)


def stored(file: Path, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Stored:
    """A tensor's entry, its type checked."""
    known = {int(kind): kind for kind in GGMLQuantizationType}
    if kind not in known or known[kind].name not in TYPES:
        label = known[kind].name if kind in known else f"number {kind}"
        raise UserError(
            f"{file}: tensor {name} is of type {label}, which is not read here; take a file in one of {', '.join(TYPES)} "
            f"(llama.cpp's llama-quantize makes one)"
        )
    block, size = GGML_QUANT_SIZES[known[kind]]
    if not shape or shape[-1] % block:
        raise UserError(f"{file}: tensor {name} of shape {list(shape)} cannot be cut into {known[kind].name}'s blocks of {block}")
    return Stored(shape, known[kind], offset, math.prod(shape) // block * size)
