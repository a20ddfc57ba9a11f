"""A model ready to be run, with its tokenizer: that of a finished stage, or of pretrained weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lit_long.config import ModelConfig, StageConfig, UserError
from lit_long.config.compose import compose_model
from lit_long.data.token_store import model_tokenizer, open_store
from lit_long.model.llama import Llama
from lit_long.planning.flops import parameters
from lit_long.planning.hardware import GIB
from lit_long.positions.layers import build_layers
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.weights import WEIGHTS, load_pretrained, load_weights
from lit_long.processor import note_on_bf16
from lit_long.stages.folder import read_stage
from lit_long.stages.resolve import resolve_layers
from lit_long.tokenizers.tokenizer import ModelTokenizer

DEVICES = ("auto", "cpu", "cuda")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    words: dict[str, Any], stage: str, device: str, dtype: str, say: Callable[[str], None]
) -> tuple[Llama, ModelTokenizer, StageConfig]:
    """The model, its tokenizer, and its settings (model, position, layers, context).

    Args:
        words: the command line; ``model``, ``position``, ``layers`` and ``context`` count.
        stage: folder of a training stage whose model is meant, or "".
        device: auto (a GPU if there is one), cpu or cuda.
        dtype: auto (bfloat16 on a GPU, else float32), float32 or bfloat16.
        say: is told what is being read.

    Raises:
        UserError: no model is named or it cannot be had, settings that make no sense, or an encoder that cannot hold the context.
    """
    place, precision = choose(device, dtype)
    if place.type == "cpu" and precision == torch.bfloat16 and (note := note_on_bf16("dtype=bfloat16")):
        say(f"note: {note}; dtype=float32 avoids it")
    weights = functools.cache(open_pretrained)
    folder = Path(stage).expanduser().resolve() if stage else None
    base, store = stage_settings(folder, words) if folder else (None, None)
    config = compose_model(words, weights, base)
    if base is None and not config.model.init:
        raise UserError("command line: name a model that has weights: model=smollm2-135m, model.init=NAME or stage=FOLDER")
    if place.type == "cuda":
        check_room(config.model, precision, torch.cuda.mem_get_info(place)[0])
    layers = resolve_layers(config, config.layers, config.position, config.context, "command line")
    config = replace(config, layers=layers)
    pattern = build_layers(layers, config.position, config.model.head_dim, length=config.context)
    with torch.device("meta"):
        model = Llama(config.model, pattern).to(precision)
    model.requires_grad_(False).to_empty(device=place)
    say(f"reading {folder / WEIGHTS if folder else config.model.init}")
    if folder:
        load_weights(model, folder / WEIGHTS)
        return model, model_tokenizer(open_store(store), config.data.corpus), config
    source = weights(config.model.init)
    if source.note and "base" not in (words.get("position") or {}):
        say(f"note: {source.note}")
    load_pretrained(model, source)
    return model, source.tokenizer(), config


def check_room(model: ModelConfig, precision: torch.dtype, free: int) -> None:
    """Raise UserError for a model whose weights are more than the ``free`` bytes of a GPU, before any are read."""
    if (size := parameters(model) * precision.itemsize) > free:
        half = "dtype=bfloat16, " if precision == torch.float32 and size / 2 <= free else ""
        raise UserError(
            f"{model.init or 'the model'}: its weights take {size / GIB:.1f} GiB in {str(precision).removeprefix('torch.')}, and the GPU has "
            f"{free / GIB:.1f} GiB free: use {half}device=cpu, or measure it in a sweep's stage, which several GPUs can share (docs/parallelism.md)"
        )


def stage_settings(folder: Path, words: dict[str, Any]) -> tuple[StageConfig, Path]:
    """Settings and token store of the finished training stage in ``folder``."""
    config, store, _ = read_stage(folder)
    if "model" in words:
        raise UserError("command line: stage=FOLDER brings its own model; leave model out")
    if config.kind != "train" or store is None:
        raise UserError(f"stage={folder}: a stage of kind {config.kind} holds no model; name a train stage")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"stage={folder}: {WEIGHTS} is not there, so the stage has not ended; run its sweep again")
    return config, store


def choose(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """The device and the precision that the two words mean here."""
    for key, value, known in (("device", device, DEVICES), ("dtype", dtype, ("auto", *DTYPES))):
        if value not in known:
            raise UserError(f"{key}={value}: must be one of {', '.join(known)}")
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError("device=cuda: torch finds no GPU here; use device=cpu")
    place = torch.device("cuda" if has_gpu and device != "cpu" else "cpu")
    return place, DTYPES.get(dtype, torch.bfloat16 if place.type == "cuda" else torch.float32)
