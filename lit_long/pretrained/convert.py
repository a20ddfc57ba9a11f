"""Weights of other formats, converted once into a Hugging Face folder in a cache; from then on that folder is read.

CACHE/converted/DIGEST/         config.json, model*.safetensors, the tokenizer's files if it can be read, README.md: what it was made of
CACHE/converted/.DIGEST.lock    held by the process that converts; others wait for it

A folder is named by the content that it was made of, is never changed, and appears whole or not at all; deleting it costs a conversion.
`lit_long.files.cache_folder` says where CACHE is. Tensors keep their precision and bits: this is another file of the same weights, so shape, encoder,
digest and tokenizer are still asked of the source. Memory: one tensor, in the source's layout and in ours.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_long.config import LayersConfig, ModelConfig, UserError
from lit_long.files import cache_folder, replacing_folder, waiting_lock
from lit_long.pretrained.base import ForeignWeights, PretrainedWeights
from lit_long.pretrained.digests import read_digest
from lit_long.pretrained.huggingface import HuggingFace

if TYPE_CHECKING:
    from torch import Tensor

    from lit_long.tokenizers.tokenizer import ModelTokenizer

VERSION = 2  # of what a conversion makes of the same source; to be raised when that changes


class Converted(PretrainedWeights):
    """Pretrained weights whose tensors come from the converted folder of ``source``, made when they are first asked for."""

    def __init__(self, source: ForeignWeights) -> None:
        super().__init__(source.path)
        self.source = source

    @property
    def shape(self) -> ModelConfig:
        return self.source.shape

    @property
    def position(self) -> dict[str, Any]:
        return self.source.position

    @property
    def layers(self) -> LayersConfig:
        return self.source.layers

    @property
    def digest(self) -> str:
        return self.source.digest

    @property
    def note(self) -> str:
        return self.source.note

    @property
    def pending(self) -> str:
        if self.folder.is_dir():
            return ""
        return f"{self.path}: is converted once, into {self.folder} ({gigabytes(self.source.size)})"

    def tokenizer(self) -> ModelTokenizer:
        return self.source.tokenizer()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        if not self.folder.is_dir():
            self.convert()
        return HuggingFace(self.folder).tensors()

    @cached_property
    def folder(self) -> Path:
        """The folder in the cache; not necessarily there."""
        parts = [str(VERSION), self.digest]
        if self.path.is_dir():  # a tokenizer beside the weights is not in their digest
            from lit_long.tokenizers.huggingface import tokenizer_files

            parts += [f"{file.name} {read_digest(file)}" for file in tokenizer_files(self.path)]
        return cache_folder() / "converted" / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]

    def convert(self) -> None:
        """Write the folder, unless another process does.

        Raises:
            UserError: what is wrong with the source, or with the place of the cache.
        """
        try:
            with waiting_lock(self.folder.with_name(f".{self.folder.name}.lock")) as locked:
                if self.folder.is_dir():
                    return
                if locked:  # so whoever left these was killed
                    for torn in self.folder.parent.glob(f".{self.folder.name}.*.writing"):
                        shutil.rmtree(torn, ignore_errors=True)
                self.check_disk_space()
                print(f"{self.pending} …", file=sys.stderr, flush=True)
                self.write()
        except OSError as error:
            if not self.folder.is_dir():  # or another process was faster, where there are no locks
                raise UserError(
                    f"{self.path}: cannot be converted into {self.folder}: {error.strerror or error}; "
                    f"LIT_LONG_CACHE=FOLDER in the environment names another place"
                ) from None

    def check_disk_space(self) -> None:
        free = shutil.disk_usage(self.folder.parent).free
        if free < self.source.size * 1.01 + 2**24:  # the tokenizer, and headers
            raise UserError(
                f"{self.path}: converted it takes {gigabytes(self.source.size)}, and the disk of {self.folder.parent} has {gigabytes(free)} free; "
                f"free some, or name another place with LIT_LONG_CACHE=FOLDER in the environment"
            )

    def write(self) -> None:
        from lit_long.pretrained.export import fill_folder, model_config

        source, shape = self.source, self.source.shape
        try:
            tokenizer = source.tokenizer()
        except UserError:  # said to those who ask for it; weights can do without
            tokenizer = None
        if isinstance(source, HuggingFace) and not source.fused:
            config = source.config
        else:  # a class that fuses matrices would not find what is written split
            config = model_config(shape, source.position, shape.context, tokenizer, source.layers)
        card = (
            f"---\nlibrary_name: transformers\n---\n\nConverted by lit-long from `{self.path}`; sha256 of its content: `{self.digest}`. "
            f"Part of a cache: it can be deleted, and is made again when needed.\n"
        )
        with replacing_folder(self.folder) as folder:
            fill_folder(
                folder, source.tensors(), shape, config, tokenizer, shape.context, {"README.md": card}, where=source.file_of
            )


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
