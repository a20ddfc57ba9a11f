"""Stages whose weights came with lit-long, so that a sweep starts from a trained model at once.

    stages:
      base: {shipped: "small-s${seed}", tokens: 24M, …}     the recipe, and what it gave: experiments/bases/small-s0/

The folder is a Hugging Face folder as `python -m lit_long.export` writes it, its card tells where the weights come from. Stages after it
start from these weights as from any made elsewhere: known by their content, with their tokenizer. ``base=train`` trains them anew.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lit_long.config import ModelConfig, StageConfig, UserError
from lit_long.config.compose import folders

SHIPPED, TRAIN = "shipped", "train"
BASES = "bases"  # below experiments/


def check_base(base: str, stages: dict[str, dict], file: Path) -> None:
    """Raises UserError for another word than those two, and for one that changes nothing."""
    if base not in (SHIPPED, TRAIN):
        raise UserError(f"base={base}: must be {SHIPPED} or {TRAIN}")
    if base == TRAIN and not any(stage.get("shipped") for stage in stages.values()):
        raise UserError(f"base={TRAIN}: no stage of {file} has shipped weights, so all are trained anyway; leave the word out")


def shipped_folder(config: StageConfig, where: str) -> str:
    """The folder that the stage's ``shipped`` names. Raises UserError if there is none."""
    places = [place / BASES / config.shipped for place in folders("experiments")]
    for place in places:
        if (place / "config.json").is_file():
            return str(place)
    known = sorted({found.parent.name for place in places for found in place.parent.glob("*/config.json")})
    raise UserError(
        f"{where}.shipped: there is no experiments/{BASES}/{config.shipped} ({', '.join(known) or 'none at all'} came with lit-long); "
        f"base={TRAIN} trains it"
    )


def stand_in(config: StageConfig, folder: str, shape: ModelConfig, where: str) -> StageConfig:
    """Settings of the stage that is not trained, for those that start from it: its own, and the weights' name.

    Raises:
        UserError: the weights are of another shape than the settings say.
    """
    own = replace(config.model, init=folder, vocab_size=shape.vocab_size)
    if own != replace(shape, init=folder):
        raise UserError(f"{where}: the weights in {folder} are of another shape than model says; base={TRAIN} trains others")
    return replace(config, model=own)
