"""What a file format of pretrained weights must tell: shape, positional encoder, digest, tensors, tokenizer. And what two formats share.

Each format is a subclass in a file of its own; `open.py` chooses. All but Hugging Face's safetensors are `ForeignWeights`, and convert.py turns them into it. Planning asks for shapes and digests, so this file imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_long.config import LayersConfig, ModelConfig, UserError, differing, plain
from lit_long.pretrained.digests import file_digest

if TYPE_CHECKING:
    from torch import Tensor

    from lit_long.tokenizers.tokenizer import ModelTokenizer

SHAPE = (  # ModelConfig in 0.1
    *("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ffn", "norm_eps", "tie_embeddings"),
    *("context", "rope_base", "init"),
)


class PretrainedWeights(ABC):
    """Weights in one file format, which a subclass reads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def shape(self) -> ModelConfig:
        """The Llama's shape, the context it was pretrained with and its RoPE base. Raises UserError for another architecture."""

    @property
    @abstractmethod
    def position(self) -> dict[str, Any]:
        """Scheme and settings of the positional encoder it was pretrained with, as in configs/position/. Nothing is dropped
        silently: raises UserError for what cannot be mapped, and when there is no RoPE base at all."""

    @property
    def layers(self) -> LayersConfig:
        """Windows, and positions of their own, of layers that differ; empty where all are alike. `position` is that of the others."""
        return LayersConfig()

    @property
    @abstractmethod
    def digest(self) -> str:
        """sha256 of the content that makes the model (weights and settings, not their place)."""

    @abstractmethod
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) one at a time, under lit-long's names and in its layout, in the file's precision where torch has it,
        else fp32. A tied head is left out. Raises UserError naming file and tensor."""

    @abstractmethod
    def tokenizer(self) -> ModelTokenizer:
        """Its tokenizer, special tokens and chat template. Raises UserError when it has none."""

    def tokenization(self) -> ModelTokenizer:
        """The name of `tokenizer` in 0.1. Goes in 0.3."""
        warnings.warn("tokenization() goes in 0.3; call tokenizer()", DeprecationWarning, stacklevel=2)
        return self.tokenizer()

    @property
    def note(self) -> str:
        """What the files leave unsaid and was filled in, for those who use them; usually nothing."""
        return ""

    @property
    def pending(self) -> str:
        """What reading them does first, once, for those who are about to; usually nothing."""
        return ""

    def file_of(self, name: str) -> Path:
        """The file that holds the tensor of that name, for messages."""
        return self.path


class ForeignWeights(PretrainedWeights):
    """Weights in another format than Hugging Face's safetensors. Its ``tensors`` are read once, to be converted."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes of all tensors, as ``tensors`` gives them, at most."""


def content_digest(weights: PretrainedWeights, files: Iterable[Path]) -> str:
    """sha256 of the shape, the positional encoder and the content of ``files``.

    A setting that ModelConfig gained since 0.1 enters only where it differs from its default, so that it changes no digest.
    """
    shape = {key: value for key, value in asdict(weights.shape).items() if key in SHAPE} | differing(weights.shape)
    layers = [plain(weights.layers)] if weights.layers.pattern else []
    settings = json.dumps([shape, weights.position, *layers], sort_keys=True)
    parts = [settings, *(file_digest(file) for file in files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def deinterleave(rows: Tensor, heads: int, where: str) -> Tensor:
    """Rows of queries or keys [heads·K, D] from the interleaved layout, rows (0, 1), (2, 3) … of a head being pairs, into the half-split one,
    where row j and row j + K/2 are a pair."""
    if rows.ndim != 2 or rows.shape[0] % (2 * heads):
        raise UserError(f"{where} is {list(rows.shape)}, which cannot be cut into {heads} heads")
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
