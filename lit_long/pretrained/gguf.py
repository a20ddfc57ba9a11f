"""Reading one GGUF file: llama.cpp's format, shape, weights and tokenizer in one. The library `gguf` reads the header and dequantises.

llama.cpp turns neighbouring components of a Llama's head, so its files hold the rows of queries and keys interleaved; they are put back
into the half-split layout, which Qwen's files have. Quantised tensors become fp32, a piece of rows at a time. Llama 3.1's scaling is not among the settings: its
divisors are the tensor ``rope_freqs.weight``.

`Header` adds two things to the library's reader. It takes every string of the vocabulary apart with numpy, 2 seconds and 50 MB for
SmolLM2, and planning a sweep must be quick: here lists are stepped over until asked for. And of a truncated file it says only that an array
cannot be reshaped: here the message names the tensor. The format: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import functools
import math
import re
import struct
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGUFReader, ReaderField, ReaderTensor
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from lit_long.config import ModelConfig, UserError
from lit_long.positions import Llama3
from lit_long.pretrained.base import ForeignWeights, deinterleave
from lit_long.pretrained.digests import file_digest
from lit_long.pretrained.rope_config import scaled_context

if TYPE_CHECKING:
    from torch import Tensor

    from lit_long.tokenizers.tokenizer import ModelTokenizer

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # 1 counted in 32 bits and is long gone
LIST = GGUFValueType.ARRAY
NAMES = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
BIASED = ("attn_q", "attn_k", "attn_v")
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": "head"},
}  # and their switches
ROPE_DIVISORS = "rope_freqs.weight"
LLAMA_CPP_BASE = 10_000.0  # what llama.cpp takes where a file names none, as those of Llama 1 and 2 of 2023 (src/llama-model.cpp)
# Settings whose effect is known, without the architecture and a dot; any other could change what the model computes.
KNOWN = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.finetuned",
}
PIECE = 1 << 20  # numbers that are dequantised at once


class GGUF(ForeignWeights):
    """A .gguf file of one of `ARCHITECTURES`."""

    @property
    def architecture(self) -> str:
        return self.header.settings["general.architecture"]

    @cached_property
    def header(self) -> Header:
        header = Header(self.path)
        architecture = header.settings.get("general.architecture")
        if architecture not in ARCHITECTURES:
            raise UserError(f"{self.path}: general.architecture is {architecture!r}; only {', '.join(ARCHITECTURES)} can be read")
        if header.settings.get("split.count", 1) > 1:
            raise UserError(f"{self.path}: is one part of several; join them first (llama.cpp's llama-gguf-split --merge)")
        unknown = [key for key in header.fields if key.startswith(f"{architecture}.") and key.partition(".")[2] not in KNOWN]
        if unknown:
            value = header.settings.get(unknown[0], header.array(unknown[0]))
            raise UserError(
                f"{self.path}: setting {unknown[0]} = {value!r} is not known here and may change what the model "
                f"computes; take the model's Hugging Face folder"
            )
        return header

    @cached_property
    def stored(self) -> dict[str, ReaderTensor]:
        """The tensors by name."""
        return {tensor.name: tensor for tensor in self.header.tensors}

    @cached_property
    def shape(self) -> ModelConfig:
        d_model, heads = self.need("embedding_length"), self.need("attention.head_count")
        head_dim = self.need("attention.key_length", default=d_model // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if self.setting(key, head_dim) != head_dim:
                raise UserError(
                    f"{self.path}: {self.architecture}.{key}={self.setting(key)} is not the head's {head_dim}, which is not supported"
                )
        embedding = self.stored.get("token_embd.weight")
        if embedding is None:
            raise UserError(f"{self.path}: tensor token_embd.weight is missing")
        return ModelConfig(
            vocab_size=int(embedding.shape[-1]),  # the file counts the fastest dimension first
            d_model=d_model,
            n_layers=self.need("block_count"),
            n_heads=heads,
            n_kv_heads=self.need("attention.head_count_kv", default=heads),
            head_dim=head_dim,
            d_ffn=self.need("feed_forward_length"),
            norm_eps=self.decimal("attention.layer_norm_rms_epsilon"),
            tie_embeddings="output.weight" not in self.stored,
            context=self.context,
            rope_base=self.decimal("rope.freq_base", LLAMA_CPP_BASE),
            **ARCHITECTURES[self.architecture],
        )

    @property
    def note(self) -> str:
        if self.setting("rope.freq_base") is not None:
            return ""
        return f"{self.path}: names no {self.architecture}.rope.freq_base; {LLAMA_CPP_BASE:,.0f} is taken, as by llama.cpp (position.base=… is another)"

    @property
    def factor(self) -> float:
        """By how much the context is stretched; 0 or 1: not at all."""
        return self.decimal("rope.scaling.factor", self.need("rope.scale_linear", 0.0))

    @property
    def context(self) -> int:
        """Tokens that the model is for. Converters write down config.json's max_position_embeddings, before its scaling or after it."""
        context = self.need("context_length")
        return scaled_context(context, self.need("rope.scaling.original_context_length", context), self.factor, self.kind)

    @property
    def kind(self) -> str:
        """Of scaling. Where a file has a factor and no type, llama.cpp takes it as linear."""
        return self.setting("rope.scaling.type", "linear" if self.factor not in (0.0, 1.0) else "none")

    @cached_property
    def position(self) -> dict[str, Any]:
        base, factor, kind = self.shape.rope_base, self.factor, self.kind
        if ROPE_DIVISORS in self.stored:
            if kind != "none" or factor not in (0.0, 1.0):
                raise UserError(
                    f"{self.path}: has both {self.architecture}.rope.scaling.* and tensor {ROPE_DIVISORS}; it cannot be told which holds"
                )
            return self.from_divisors(base)
        if kind == "none" and factor in (0.0, 1.0):
            return {"scheme": "rope", "base": base}
        if kind == "linear" and factor >= 1:
            return {"scheme": "pi", "base": base, "factor": factor}
        if kind == "yarn" and factor >= 1:
            return self.yarn(base, factor)
        raise UserError(
            f"{self.path}: {self.architecture}.rope.scaling.type={kind} with factor={factor:g} cannot be mapped to a positional encoder here; take "
            f"the model's Hugging Face folder"
        )

    def yarn(self, base: float, factor: float) -> dict[str, Any]:
        """llama.cpp's YaRN has the same ramp, and multiplies its 0.1·ln factor + 1 by ``attn_factor``."""
        scale = self.decimal("rope.scaling.attn_factor", self.need("rope.scaling.yarn_attn_factor", 1.0))
        return {
            "scheme": "yarn",
            "base": base,
            "factor": factor,
            "original": self.need("rope.scaling.original_context_length"),
            "alpha": self.decimal("rope.scaling.yarn_beta_slow", 1.0),
            "beta": self.decimal("rope.scaling.yarn_beta_fast", 32.0),
            "attention": None if scale == 1 else scale * (0.1 * math.log(factor) + 1),
        }

    def from_divisors(self, base: float) -> dict[str, Any]:
        """Llama 3.1's or 3.2's scaling if the divisors are theirs; else LongRoPE with one set of factors and plain attention."""
        divisors = [decimal(number) for number in self.numbers(self.stored[ROPE_DIVISORS]).reshape(-1)]
        head_dim, context = self.shape.head_dim, self.shape.context
        for factor in (8.0, 32.0):
            known = Llama3(head_dim, base, factor)
            wanted = [base ** (-2 * j / head_dim) / slow for j, slow in enumerate(known.inverse_frequencies(context))]
            if len(divisors) == len(wanted) and np.allclose(divisors, wanted, rtol=1e-4):
                own = {"factor": factor, "original": known.original}
                return {"scheme": "llama3", "base": base} | own | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        own = {"factor": 1.0, "original": context, "short_factors": divisors, "long_factors": divisors}
        return {"scheme": "longrope", "base": base} | own

    @cached_property
    def digest(self) -> str:
        return file_digest(self.path)

    @property
    def size(self) -> int:
        """Quantised tensors are fp32 when they are read."""
        return sum(
            math.prod(t.shape.tolist()) * (2 if t.tensor_type.name in ("F16", "BF16") else 4) for t in self.stored.values()
        )

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        import torch

        shape = self.shape
        heads = {"attn_q": shape.n_heads, "attn_k": shape.n_kv_heads} if self.architecture == "llama" else {}
        names = {name: self.own_name(name) for name in self.stored if name != ROPE_DIVISORS}
        for name, own in names.items():
            tensor = torch.from_numpy(self.numbers(self.stored[name]))
            if self.stored[name].tensor_type == GGMLQuantizationType.BF16:
                tensor = tensor.view(torch.bfloat16)
            part = name.split(".")[-2]
            if part in heads:
                tensor = deinterleave(tensor, heads[part], f"{self.path}: tensor {name}")
            yield own, tensor
            del tensor  # or two would be in memory while the next is read

    def tokenizer(self) -> ModelTokenizer:
        from lit_long.tokenizers.gguf import read_tokenizer

        return read_tokenizer(self.header, self.shape.vocab_size)

    def own_name(self, name: str) -> str:
        """A tensor's name here."""
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        weights = BLOCK_NAMES | (HEAD_NORMS if self.architecture == "qwen3" else {})
        biases = BIASED if self.architecture == "qwen2" else ()
        if block and block[2] in (weights if block[3] == "weight" else biases):
            return f"layers.{block[1]}.{weights[block[2]]}.{block[3]}"
        stem = name.removesuffix(".weight")
        if stem == name or stem not in NAMES:
            raise UserError(
                f"{self.path}: tensor {name} has no place in a {self.architecture} here (biases and experts are not supported)"
            )
        return f"{NAMES[stem]}.weight"

    def numbers(self, stored: ReaderTensor) -> np.ndarray:
        """A tensor's numbers in memory of their own: fp16 and fp32 as they are, bf16 as its bits in int16, others in fp32.

        The file is mapped anew for each, or the pages that were read would pile up.
        """
        shape = tuple(stored.shape.tolist()[::-1])
        plain = {"F32": np.float32, "F16": np.float16, "BF16": np.int16}.get(stored.tensor_type.name)
        if plain is not None:
            return np.array(np.memmap(self.path, plain, "r", stored.data_offset, shape))
        rows = math.prod(shape[:-1])
        data = np.memmap(self.path, np.uint8, "r", stored.data_offset, (rows, stored.n_bytes // rows))
        numbers = np.empty((rows, shape[-1]), np.float32)
        step = max(1, PIECE // shape[-1])
        for start in range(0, rows, step):
            numbers[start : start + step] = dequantize(data[start : start + step], stored.tensor_type)
        return numbers.reshape(shape)

    def setting(self, key: str, default: Any = None) -> Any:
        """The number or string ``ARCHITECTURE.KEY``. Raises UserError where it is a list, such as of a value for each layer."""
        name = f"{self.architecture}.{key}"
        if self.header.array(name) is not None:
            raise UserError(f"{self.path}: setting {name} is a list, not one value; take the model's Hugging Face folder")
        return self.header.settings.get(name, default)

    def need(self, key: str, default: float | None = None) -> Any:
        """The number ``ARCHITECTURE.KEY``."""
        value = self.setting(key, default)
        if not isinstance(value, int | float):
            raise UserError(
                f"{self.path}: setting {self.architecture}.{key} is {'missing' if value is None else f'{value!r}, not a number'}"
            )
        return value

    def decimal(self, key: str, default: float | None = None) -> float:
        """The fp32 number ``ARCHITECTURE.KEY``, as `decimal` writes it."""
        return decimal(self.need(key, default))


def decimal(number: float) -> float:
    """An fp32 number as people write it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(number)))


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
