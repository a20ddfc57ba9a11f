"""Where `open_external` was in 0.1. Goes in 0.3."""

from __future__ import annotations

import warnings

from lit_long.pretrained.external import External, open_external

__all__ = ["External", "open_external"]

warnings.warn(
    "lit_long.checkpoints.external goes in 0.3; import from lit_long.pretrained.external", DeprecationWarning, stacklevel=2
)
