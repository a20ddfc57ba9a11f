"""The old path of `lit_long.data.datamodule`; it works until 0.3."""

import warnings

from lit_long.data.datamodule import LongContextDataModule

__all__ = ["LongContextDataModule"]

warnings.warn(
    "lit_long.data.module goes with 0.3: take LongContextDataModule from lit_long.data.datamodule",
    DeprecationWarning,
    stacklevel=2,
)
