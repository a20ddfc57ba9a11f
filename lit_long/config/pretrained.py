"""What pretrained weights (``model.init``) bring into a stage's settings: their shape, their tokenizer, their positional encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lit_long.config.schema import ModelConfig
from lit_long.config.typed import UserError, check, plain

PRETRAINED = "pretrained"  # the position option that stands for whatever model.init was trained with
# from model.init to the weights' shape and position settings; None where they cannot be looked at and nothing will run
Pretrained = Callable[[str], tuple[ModelConfig, dict[str, Any]] | None]


def inherit(raw: dict[str, Any], said: list[dict[str, Any]], pretrained: Pretrained, where: str) -> None:
    """Let the weights that ``model.init`` names, if any, bring their shape, tokenizer and positional encoder.

    Args:
        said: what people wrote, layer by layer, to tell a contradiction from a default.
    """
    init = raw["model"].get("init")
    wants_own = raw["position"].get("scheme") == PRETRAINED
    if not init:
        if wants_own:
            raise UserError(f"{where}: position={PRETRAINED} is the encoder of the weights in model.init, which is not set")
        return
    if (found := pretrained(init)) is None:
        if wants_own:
            raw["position"] = {"scheme": "rope", "base": "${model.rope_base}"}
        return
    shape, position = found
    context = shape.context
    for layer in said:
        wanted = layer.get("model")
        for key, value in check(ModelConfig, settings_of(wanted), where, "model.").items():
            if key == "context":  # no tensor shows what it was trained with, and files are not always right
                context = value
            elif key != "init" and value != getattr(shape, key):
                raise UserError(
                    f"{where}: model.{key}={value} contradicts the weights of model.init={init}, which have {getattr(shape, key)}; "
                    f"leave it out"
                )
    raw["model"] = plain(shape) | {"init": init, "context": context}
    corpus = raw["data"]["corpus"]
    own = {"tokenizer": corpus.get("tokenizer") or init, "vocab_size": shape.vocab_size}
    raw["data"] = raw["data"] | {"corpus": corpus | own}  # other stages hold the same corpus
    if wants_own or not any("position" in layer for layer in said):
        own = {key: value for key, value in raw["position"].items() if key == "training"}
        raw["position"] = position | own


def settings_of(group: Any) -> dict[str, Any]:
    """What a layer says of a group besides naming an option."""
    return {key: value for key, value in group.items() if key != "option"} if isinstance(group, dict) else {}
