"""Randomness as a function of a key, the same on every machine and in every version of numpy.

Only the raw output of a bit generator is guaranteed to stay the same between numpy releases; what `Generator` makes
of it is not.
"""

from __future__ import annotations

import hashlib

import numpy as np

SORTED = 2**20  # numbers that are shuffled by sorting
_ROUNDS = 4  # enough for what looks random (Luby and Rackoff 1988)


def random_words(count: int, *key: int | str) -> np.ndarray:
    """uint64 [count], random, determined by ``key``."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)).random_raw(count)


def permutation(count: int, *key: int | str) -> np.ndarray:
    """int64 [count], a permutation of 0 … count-1 determined by ``key``."""
    return np.argsort(random_words(count, *key), kind="stable")


class Shuffled:
    """0 … count-1 in an order determined by ``key``, of which any stretch can be asked for.

    Up to ``SORTED`` numbers the order is `permutation`'s. Beyond, nothing is kept in memory: places are scrambled by a Feistel network
    over the next power of two, again until the result is below ``count``.
    """

    def __init__(self, count: int, *key: int | str) -> None:
        self._count = count
        self._order = permutation(count, *key) if count <= SORTED else None
        self._bits = max(2, (count - 1).bit_length())
        self._keys = random_words(_ROUNDS, "feistel", *key)

    def stretch(self, start: int, stop: int) -> np.ndarray:
        """int64 [stop - start]: what stands at places ``start`` to ``stop`` - 1."""
        if self._order is not None:
            return self._order[start:stop]
        numbers = self._scramble(np.arange(start, stop, dtype=np.uint64))
        while len(outside := np.flatnonzero(numbers >= self._count)):
            numbers[outside] = self._scramble(numbers[outside])
        return numbers.astype(np.int64)

    def _scramble(self, numbers: np.ndarray) -> np.ndarray:
        """A permutation of 0 … 2^bits - 1: each half is changed in turn by what only the other half and a key decide."""
        low_bits = np.uint64(self._bits // 2)
        low_mask = np.uint64(2 ** (self._bits // 2) - 1)
        high_mask = np.uint64(2 ** (self._bits - self._bits // 2) - 1)
        low, high = numbers & low_mask, numbers >> low_bits
        for key in self._keys.reshape(-1, 2):
            low ^= _mixed(high, key[0]) & low_mask
            high ^= _mixed(low, key[1]) & high_mask
        return high << low_bits | low


def _mixed(numbers: np.ndarray, key: np.uint64) -> np.ndarray:
    """uint64, every bit depends on all bits of the numbers and of the key (the finaliser of MurmurHash3)."""
    mixed = numbers ^ key
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        mixed ^= mixed >> np.uint64(33)
        mixed *= np.uint64(factor)
    return mixed ^ mixed >> np.uint64(33)
