"""Settings for a command that uses one model, without an experiment."""

from __future__ import annotations

from typing import Any

from lit_long.config.compose import COMMAND_LINE, DEFAULT_OPTIONS, lay, option_pick, parse_words, resolve, spell_out
from lit_long.config.pretrained import Pretrained, adopt, settings_of
from lit_long.config.schema import ModelConfig, StageConfig
from lit_long.config.typed import plain

GROUPS = ("model", "position")


def parse_model_words(argv: list[str], settings: type) -> dict[str, Any]:
    """Like `parse_words`; ``model=NAME`` and ``position=NAME`` pick an option file, and their settings may stand beside it."""
    words = [spell_out(word) if word.partition("=")[0] in GROUPS else word for word in argv]
    return parse_words(words, settings, model=ModelConfig)


def compose_model(words: dict[str, Any], pretrained: Pretrained, base: StageConfig | None = None) -> StageConfig:
    """What ``words`` say of model, position and context; the rest comes from ``base``, or else from the defaults.

    Settings of a position that is not named (``position.base=…`` alone) change the encoder that the weights were trained with.

    Args:
        pretrained: reads what ``model.init`` names.
        base: a stage whose model is used. Without it the context is the one that the model was pretrained with.

    Raises:
        UserError: unknown options, keys or values.
    """
    raw = plain(base) if base else plain(StageConfig()) | {"context": "${model.context}"}
    position = words.get("position")
    picks = {"position": option_pick(position)} if option_pick(position) else {}
    said = picks | ({"model": words["model"]} if "model" in words else {})
    if base is None:
        lay(raw, {"position": DEFAULT_OPTIONS["position"]}, "defaults")
    lay(raw, said, COMMAND_LINE)
    raw["context"] = words.get("context", raw["context"])
    if base is None:
        adopt(raw, [said], pretrained, COMMAND_LINE)
    lay(raw, {"position": settings_of(position)}, COMMAND_LINE)
    return resolve(raw, COMMAND_LINE)
