"""Stages whose weights came with lit-long, so that a sweep starts from a trained model at once.

    stages:
      base: {shipped: "mini-s${seed}", tokens: 8M, …}     the recipe, and what it gave: experiments/bases/mini-s0/

The folder is a Hugging Face folder as `python -m lit_long.export` writes it of a finished stage: its card tells where the weights come from, its
``recipe.json`` with which settings they were made. They are taken where the stage has just these settings; with others, or another seed, it
is trained, and so it is with ``base=train``. Stages after it start from these weights as from any pretrained ones: known by their content,
with their tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from lit_long.config import ModelConfig, StageConfig, UserError
from lit_long.config.compose import folders
from lit_long.stages.identity import recipe
from lit_long.stages.identity_0_1 import recipe_0_1

SHIPPED, TRAIN = "shipped", "train"
BASES = "bases"  # below experiments/
RECIPE = "recipe.json"


def check_base(base: str, stages: dict[str, dict], file: Path) -> None:
    """Raises UserError for another word than those two, and for one that changes nothing."""
    if base not in (SHIPPED, TRAIN):
        raise UserError(f"base={base}: must be {SHIPPED} or {TRAIN}")
    if base == TRAIN and not any(stage.get("shipped") for stage in stages.values()):
        raise UserError(f"base={TRAIN}: no stage of {file} has shipped weights, so all are trained anyway; leave the word out")


def shipped_folder(config: StageConfig) -> str:
    """The folder of the weights that the settled stage would give, or "" if none came with lit-long.

    Raises:
        UserError: a folder without a recipe, or an unreadable one.
    """
    for place in folders("experiments"):
        folder = place / BASES / config.shipped
        if not (folder / "config.json").is_file():
            continue
        try:
            made_with = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder / RECIPE}: cannot be read ({error}), so nothing says with which settings these weights were made. "
                f"Export the stage anew (python -m lit_long.export), or base={TRAIN} trains it."
            ) from error
        if made_with in (recipe(config), recipe_0_1(config)):
            return str(folder)
    return ""


def stand_in(config: StageConfig, folder: str, shape: ModelConfig, where: str) -> StageConfig:
    """Settings of the stage that is not trained, for those that start from it: its own, and the weights' name.

    Raises:
        UserError: the weights are of another shape than the settings say.
    """
    own = replace(config.model, init=folder, vocab_size=shape.vocab_size)
    if own != replace(shape, init=folder):
        raise UserError(
            f"{where}: the weights in {folder} are of another shape than its {RECIPE} says; base={TRAIN} trains others"
        )
    return replace(config, model=own)
