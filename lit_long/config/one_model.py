"""The old path of `lit_long.config.compose` for commands that use one model; it works until 0.3."""

import warnings

from lit_long.config.compose import compose_model, parse_model_words

__all__ = ["compose_model", "parse_model_words"]

warnings.warn(
    "lit_long.config.one_model goes with 0.3: take parse_model_words and compose_model from lit_long.config",
    DeprecationWarning,
    stacklevel=2,
)
