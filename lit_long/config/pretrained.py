"""What pretrained weights (``model.init``) bring into a stage's settings: their shape, their tokenizer, their positional encoder and layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from lit_long.config.command import PRETRAINED, merge
from lit_long.config.schema import LayersConfig, ModelConfig
from lit_long.config.typed import UserError, check, plain


class Brought(Protocol):
    """What is asked of weights (`lit_long.pretrained.base.PretrainedWeights`)."""

    @property
    def shape(self) -> ModelConfig: ...
    @property
    def position(self) -> dict[str, Any]: ...
    @property
    def layers(self) -> LayersConfig: ...


# from model.init to the weights; None where they cannot be looked at and nothing will run
Pretrained = Callable[[str], Brought | None]


def inherit(raw: dict[str, Any], said: list[dict[str, Any]], pretrained: Pretrained, where: str) -> None:
    """Let the weights that ``model.init`` names, if any, bring their shape, tokenizer, positional encoder and layers.

    Args:
        said: what people wrote, one after the other, to tell a contradiction from a default.
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
    shape, position = found.shape, found.position
    context = shape.context
    for settings in said:
        wanted = settings.get("model")
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
    if wants_own or not any("position" in settings for settings in said):
        own = {key: value for key, value in raw["position"].items() if key == "training"}
        raw["position"] = position | own
    if found.layers.pattern and not any({"option", "pattern"} & (settings.get("layers") or {}).keys() for settings in said):
        raw["layers"] = plain(found.layers)
        for settings in said:  # one of its settings alone
            merge(raw["layers"], settings.get("layers") or {})


def settings_of(group: Any) -> dict[str, Any]:
    """What is said of a group besides naming an option."""
    return {key: value for key, value in group.items() if key != "option"} if isinstance(group, dict) else {}
