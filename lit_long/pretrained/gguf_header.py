"""The header of a GGUF file, read by the library `gguf`: its settings, and where each tensor lies.

Two things are added to the library's reader. It takes every string of the vocabulary apart with numpy, 2 seconds and 50 MB for SmolLM2,
and planning a sweep must be quick: here lists are stepped over until asked for. And of a truncated file it says only that an array
cannot be reshaped: here the message names the tensor. The format: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderField
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from lit_long.config import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # 1 counted in 32 bits and is long gone
LIST = GGUFValueType.ARRAY


class Header(GGUFReader):
    """Settings by key (strings and numbers; lists through `array`), and the tensors, all within the file and of a type that can be read.

    Raises:
        UserError: not a GGUF file, a truncated one, or a tensor of another type; names file and tensor.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            with file.open("rb") as opened:
                start = opened.read(8)
            if start[:4] != MAGIC:
                raise UserError(f"{file}: is not a GGUF file: it does not begin with {MAGIC.decode()}")
            version = int.from_bytes(start[4:], "little")
            if len(start) == 8 and version not in VERSIONS:
                raise UserError(
                    f"{file}: GGUF version {version} cannot be read, only {' and '.join(map(str, VERSIONS))} (little-endian)"
                )
            super().__init__(file)
            self.settings = {key: field.contents() for key, field in self.fields.items() if field.types[0] != LIST}
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error}") from None
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, struct.error) as error:
            raise UserError(
                f"{file}: its header ends too early or is damaged ({error}); copy or download the file again"
            ) from None

    def array(self, key: str) -> list[Any] | None:
        """The list called ``key``; None when there is none."""
        field = self.fields.get(key)
        if field is None or field.types[0] != LIST:
            return None
        data, kind, found, at = field.parts[-1].tobytes(), field.types[1], [], 0
        if kind != GGUFValueType.STRING:
            return np.frombuffer(data, self.gguf_scalar_to_np[kind]).tolist()
        while at < len(data):
            end = at + 8 + struct.unpack_from("<Q", data, at)[0]
            found.append(data[at + 8 : end].decode("utf-8", errors="replace"))
            at = end
        return found

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[np.ndarray], list[int], list[GGUFValueType]]:
        """A list is one part, which nobody has looked into."""
        if raw_type != LIST:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = struct.unpack_from("<IQ", self.data, orig_offs)
        start = end = orig_offs + 12
        if kind == GGUFValueType.STRING:
            whole = memoryview(self.data)
            for _ in range(count):
                end += 8 + struct.unpack_from("<Q", whole, end)[0]
        else:
            end += count * np.dtype(self.gguf_scalar_to_np[GGUFValueType(kind)]).itemsize
        if end > len(self.data):
            raise ValueError("a list reaches beyond the end")
        return end - orig_offs, [self.data[start:end]], [0], [LIST, GGUFValueType(kind)]

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        for field in fields:
            _, name, _, lengths, kind, offset = field.parts
            self.check(bytes(name).decode(), lengths.tolist(), int(kind[0]), start_offs + int(offset[0]))
        super()._build_tensors(start_offs, fields)

    def check(self, name: str, lengths: list[int], number: int, start: int) -> None:
        """Raise UserError for a tensor that cannot be read. ``lengths``: the fastest dimension first."""
        types = {int(kind): kind for kind in GGMLQuantizationType}
        if number not in types or not readable(types[number]):
            label = types[number].name if number in types else f"number {number}"
            raise UserError(
                f"{self.file}: tensor {name} is of type {label}, which is not read here; take a file in one of "
                f"{', '.join(kind.name for kind in types.values() if readable(kind))} (llama.cpp's llama-quantize makes one)"
            )
        block, size = GGML_QUANT_SIZES[types[number]]
        if not lengths or lengths[0] % block:
            raise UserError(
                f"{self.file}: tensor {name} of shape {lengths[::-1]} cannot be cut into {types[number].name}'s blocks of {block}"
            )
        end = start + functools.reduce(int.__mul__, lengths) // block * size
        if end > len(self.data):
            raise UserError(
                f"{self.file}: is truncated: tensor {name} needs bytes up to {end:,}, but the file has {len(self.data):,}; copy or "
                f"download it again"
            )


@functools.cache
def readable(kind: GGMLQuantizationType) -> bool:
    """Whether `gguf` can dequantise this type; it tells only when asked to."""
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
