"""The old path of `lit_long.evaluation.lm_eval`; it works until 0.3."""

import warnings

from lit_long.evaluation.lm_eval import Harness

__all__ = ["Harness"]

warnings.warn(
    "lit_long.evaluation.harness goes with 0.3: take Harness from lit_long.evaluation.lm_eval",
    DeprecationWarning,
    stacklevel=2,
)
