"""Pretrained weights, read from and written to the file formats of others. No other package knows such a format.

`open_pretrained(name)` gives `PretrainedWeights`, whatever the format.
"""

from lit_long.pretrained.base import PretrainedWeights
from lit_long.pretrained.open import open_pretrained

__all__ = ["PretrainedWeights", "open_pretrained"]
