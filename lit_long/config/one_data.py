"""Settings for a command that uses data and runs no experiment."""

from __future__ import annotations

from typing import Any

from lit_long.config.compose import COMMAND_LINE, DEFAULT_OPTIONS, lay, parse_words, resolve, spell_out
from lit_long.config.pretrained import Pretrained, adopt
from lit_long.config.schema import DataConfig, ModelConfig, StageConfig
from lit_long.config.typed import plain

GROUPS = ("data", "model")


def parse_data_words(argv: list[str], settings: type) -> dict[str, Any]:
    """Like `parse_words`; ``data=NAME`` and ``model=NAME`` pick an option file, and their settings may stand beside it."""
    words = [spell_out(word) if word.partition("=")[0] in GROUPS else word for word in argv]
    return parse_words(words, settings, data=DataConfig, model=ModelConfig)


def compose_data(words: dict[str, Any], pretrained: Pretrained) -> StageConfig:
    """A data stage: what ``words`` say of data, on top of the default option; ``model.init`` brings its tokenizer.

    Args:
        pretrained: reads what ``model.init`` names.

    Raises:
        UserError: unknown options, keys or values.
    """
    raw = plain(StageConfig(kind="data"))
    lay(raw, {"data": DEFAULT_OPTIONS["data"]}, "defaults")
    said = {group: words[group] for group in GROUPS if group in words}
    lay(raw, said, COMMAND_LINE)
    adopt(raw, [said], pretrained, COMMAND_LINE)
    return resolve(raw, COMMAND_LINE)
