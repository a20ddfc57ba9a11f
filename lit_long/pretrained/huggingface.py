"""Reading Hugging Face folders of Llamas and their like (families.py): config.json, and weights in safetensors, one file or several with an index.

Our names and layout are Hugging Face's without the prefix "model.", so tensors pass through as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_long.config import LayersConfig, ModelConfig, UserError
from lit_long.pretrained.base import PretrainedWeights, content_digest
from lit_long.pretrained.families import complete, family_of, read_layers, read_switches, rotation_config
from lit_long.pretrained.rope_config import head_dim_of, position_from_hf, trained_context, whole

if TYPE_CHECKING:
    from torch import Tensor

    from lit_long.tokenizers.tokenizer import ModelTokenizer

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
FORGOTTEN = "rotary_emb.inv_freq"  # a buffer that old versions saved; it follows from the configuration
SETTINGS = ["*.json", "*.jinja", "tokenizer.model"]


class HuggingFace(PretrainedWeights):
    """A folder with a config.json."""

    weight_files = ("model.safetensors", "model.safetensors.index.json")  # all weights in one file, else the index of several

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json of a family that is known, with the defaults of its class."""
        where = self.path / "config.json"
        config = complete(read_json(where), str(where))
        if not isinstance(config["rms_norm_eps"], float):
            raise UserError(f"{where}: rms_norm_eps must be a number, not {config['rms_norm_eps']!r}")
        return config

    @cached_property
    def shape(self) -> ModelConfig:
        config, where = self.config, str(self.path / "config.json")
        heads, base = whole(config, "num_attention_heads", where), float(self.position["base"])
        return ModelConfig(
            vocab_size=whole(config, "vocab_size", where),
            d_model=whole(config, "hidden_size", where),
            n_layers=whole(config, "num_hidden_layers", where),
            n_heads=heads,
            n_kv_heads=whole(config, "num_key_value_heads", where, heads),
            head_dim=head_dim_of(config, where),
            d_ffn=whole(config, "intermediate_size", where),
            norm_eps=config["rms_norm_eps"],
            tie_embeddings=bool(config["tie_word_embeddings"]),
            context=trained_context(rotation_config(config, where), where),
            rope_base=base,
            **read_switches(config, where),
        )

    @cached_property
    def position(self) -> dict[str, Any]:
        where = str(self.path / "config.json")
        return position_from_hf(rotation_config(self.config, where), where)

    @cached_property
    def layers(self) -> LayersConfig:
        return read_layers(self.config, str(self.path / "config.json"))

    @cached_property
    def digest(self) -> str:
        return content_digest(self, self.files)

    @cached_property
    def weights(self) -> Path:
        """The file with all weights, or the index of several."""
        for name in self.weight_files:
            if (self.path / name).is_file():
                return self.path / name
        raise UserError(
            f"{self.path}: has a config.json but no weights: neither model.safetensors nor pytorch_model.bin, nor the index of either"
        )

    @property
    def files(self) -> list[Path]:
        """The files that hold weights."""
        names = {self.weights.name} if self.weights.suffix != ".json" else set(self.weight_map.values())
        return [self.path / name for name in sorted(names)]

    @cached_property
    def weight_map(self) -> dict[str, str]:
        """File of each tensor, under the names in the files. Every file is there."""
        found = self.weights
        if found.suffix != ".json":
            return dict.fromkeys(self.names_in(found), found.name)
        weight_map = read_json(found).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise UserError(f"{found}: has no weight_map from tensors to files")
        for name, file in weight_map.items():
            if not (self.path / file).is_file():
                raise UserError(
                    f"{self.path / file}: is missing, with tensor {name} in it ({found.name} names it); download it again"
                )
        return weight_map

    def file_of(self, name: str) -> Path:
        files = self.weight_map
        names = [name, *(name.replace(part, fused) for fused, parts in self.fused.items() for part in parts if part in name)]
        return self.path / next((files[key] for own in names for key in (f"model.{own}", own) if key in files), "")

    @property
    def fused(self) -> dict[str, tuple[str, ...]]:
        return family_of(self.config, str(self.path)).fused

    def split(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The matrices that a fused one holds; itself if it is none."""
        parts = next((parts for fused, parts in self.fused.items() if fused in name), None)
        if parts is None:
            yield name, tensor
            return
        shape = self.shape
        queries, keys = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        rows = [queries, keys, keys] if len(parts) == 3 else [shape.d_ffn] * 2
        if len(tensor) != sum(rows):
            raise UserError(f"{self.file_of(name)}: tensor {name} has {len(tensor)} rows, not {sum(rows)}")
        stem = next(fused for fused in self.fused if fused in name)
        for part, own in zip(parts, tensor.split(rows), strict=True):
            yield name.replace(stem, part), own.contiguous()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        if not self.shape.tie_embeddings and not {HEAD, f"model.{HEAD}"} & self.weight_map.keys():
            raise UserError(
                f"{self.path}: {HEAD} is missing, and {self.path / 'config.json'} does not tie it to {EMBEDDING}; where they are one, set "
                f"tie_word_embeddings to true there, else download the weights again"
            )
        for file in sorted(set(self.weight_map.values())):
            names = [name for name, place in self.weight_map.items() if place == file]
            for name, tensor in self.read_tensors(self.path / file, names):
                own = name.removeprefix("model.")
                if name.endswith(FORGOTTEN):
                    continue
                if not tensor.is_floating_point():
                    raise UserError(f"{self.path / file}: tensor {name} is {tensor.dtype}; quantised weights are not supported")
                if own == HEAD and self.shape.tie_embeddings:
                    self.check_tied(tensor, self.path / file)
                    continue
                yield from self.split(own, tensor)
                del tensor

    def check_tied(self, head: Tensor, file: Path) -> None:
        """A tied head that was saved all the same must be the embedding."""
        key = next((key for key in (f"model.{EMBEDDING}", EMBEDDING) if key in self.weight_map), None)
        if key is None:
            raise UserError(f"{self.path}: tensor model.{EMBEDDING} is missing")
        _, embedding = next(self.read_tensors(self.path / self.weight_map[key], [key]))
        if not head.equal(embedding):
            raise UserError(
                f"{file}: {HEAD} differs from {EMBEDDING}, but {self.path / 'config.json'} ties them; set tie_word_embeddings to false"
            )

    def names_in(self, file: Path) -> list[str]:
        """Names of the tensors in a weight file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="numpy") as opened:  # needs no torch, and planning does not have it
                return list(opened.keys())
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file}: {damage(file) or f'cannot be read as safetensors: {error}'}; copy or download it again"
            ) from None

    def read_tensors(self, file: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        """The tensors called ``names``, one at a time, mapped. A file is opened anew for each, or the pages read would pile up."""
        from safetensors import SafetensorError, safe_open

        missing = set(names).difference(self.names_in(file))
        if missing:
            raise UserError(f"{file}: tensor {sorted(missing)[0]} is missing, which the index places there; download it again")
        for name in names:
            try:
                with safe_open(file, framework="pt") as opened:
                    tensor = opened.get_tensor(name)
            except (OSError, SafetensorError) as error:
                raise UserError(f"{file}: tensor {name} cannot be read: {error}; copy or download the file again") from None
            yield name, tensor
            del tensor

    def tokenizer(self) -> ModelTokenizer:
        from lit_long.tokenizers.huggingface import read_tokenizer

        return read_tokenizer(self.path, self.shape.vocab_size)


def damage(file: Path) -> str:
    """Which tensor a truncated safetensors file breaks off in; empty when that is not what is wrong."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= size - 8:
            return ""
        try:
            header = json.loads(opened.read(length))
            ends = {name: 8 + length + entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError):
            return ""
    beyond = sorted((end, name) for name, end in ends.items() if end > size)
    return f"is truncated: tensor {beyond[0][1]} needs bytes up to {beyond[0][0]:,}, but the file has {size:,}" if beyond else ""


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: must hold one JSON object")
    return content


def download(name: str) -> Path:
    """The folder of the repository ORG/NAME[@REVISION], downloaded unless the hub's cache has it. Weights as .bin only if need be.

    Raises:
        UserError: there is no such repository or revision, it is gated, or neither cache nor hub has it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    own = {"repo_id": repository, "revision": revision or None, "ignore_patterns": ["*/*"]}  # subfolders hold other formats
    try:
        folder = Path(snapshot_download(allow_patterns=[*SETTINGS, "*.safetensors"], **own))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(allow_patterns=[*SETTINGS, "*.bin"], **own))
    except GatedRepoError:
        raise UserError(
            f"model.init={name}: is gated; accept its licence at https://huggingface.co/{repository}, then `hf auth login`"
        ) from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"model.init={name}: is no folder here nor in the Hugging Face cache, and the hub cannot be reached; download it where there "
            f"is a network (`hf download {repository}`) and give that folder"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"model.init={name}: is no folder here, and the Hugging Face hub says: {' '.join(str(error).split())}"
        ) from None
    return folder
