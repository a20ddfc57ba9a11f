"""Where `open_pretrained` was in 0.1, as `open_external`. Goes in 0.3."""

from __future__ import annotations

import warnings

from lit_long.pretrained import PretrainedWeights as External
from lit_long.pretrained import open_pretrained as open_external

__all__ = ["External", "open_external"]

warnings.warn(
    "lit_long.checkpoints.external goes in 0.3; open_external is lit_long.pretrained.open_pretrained, External is PretrainedWeights",
    DeprecationWarning,
    stacklevel=2,
)
