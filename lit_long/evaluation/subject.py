"""The old path and name of `lit_long.evaluation.evaluated_model.EvaluatedModel`; they work until 0.3."""

import warnings

from lit_long.evaluation.evaluated_model import EvaluatedModel as Subject

__all__ = ["Subject"]

warnings.warn(
    "lit_long.evaluation.subject goes with 0.3: take EvaluatedModel from lit_long.evaluation.evaluated_model",
    DeprecationWarning,
    stacklevel=2,
)
