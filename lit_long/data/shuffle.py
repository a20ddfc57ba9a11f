"""Randomness as a function of a key, the same on every machine and in every version of numpy.

Only the raw output of a bit generator is guaranteed to stay the same between numpy releases; what `Generator` makes
of it is not.
"""

from __future__ import annotations

import hashlib

import numpy as np


def random_words(count: int, *key: int | str) -> np.ndarray:
    """uint64 [count], random, determined by ``key``."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)).random_raw(count)


def permutation(count: int, *key: int | str) -> np.ndarray:
    """int64 [count], a permutation of 0 … count-1 determined by ``key``."""
    return np.argsort(random_words(count, *key), kind="stable")
