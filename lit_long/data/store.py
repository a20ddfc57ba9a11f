"""The old path of `lit_long.data.prepare` and `lit_long.data.token_store`; it works until 0.3."""

import warnings

from lit_long.data.prepare import prepare
from lit_long.data.token_store import Store, open_store, verify

__all__ = ["Store", "open_store", "prepare", "verify"]

warnings.warn(
    "lit_long.data.store goes with 0.3: take prepare from lit_long.data.prepare; Store, open_store and verify from lit_long.data.token_store",
    DeprecationWarning,
    stacklevel=2,
)
