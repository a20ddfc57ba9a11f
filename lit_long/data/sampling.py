"""Which documents of a domain an epoch holds, and in which order, a block of documents at a time.

An epoch is the domain's documents in an order of its own, less those that are too short or too long, less the share that length-aware
sampling leaves out. Only running sums per block are kept, so memory does not grow with the number of documents, and any document of any
epoch is reached at once.

Length-aware sampling (Fu et al. 2024, "Data Engineering for Scaling Language Models to 128K Context", section 3: their per-source
up-sampling) makes long documents a wanted share of the domain's tokens. As in their code the others are drawn less often; which of them
differs from epoch to epoch. What share of the mixture the domain has is another matter, and stays as it is.

Randomness is a function of a key, the same on every machine and in every version of numpy: only the raw output of a bit generator is
guaranteed to stay the same between numpy releases; what `Generator` makes of it is not.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lit_long.config import SamplingConfig, UserError

if TYPE_CHECKING:
    from lit_long.data.token_store import Documents, ShardedDocuments

BLOCK = 4096  # documents
_AT_ONCE = 16  # blocks that are counted together
SORTED = 2**20  # numbers that are shuffled by sorting
_ROUNDS = 4  # enough for what looks random (Luby and Rackoff 1988)


class EpochSampler:
    """The epochs of one domain. ``limit``: tokens of a document that are trained on, at most; 0 = all. Shares of tokens are shares of those.

    Raises:
        UserError: if ``sampling`` leaves nothing, or cannot be met since there are no long, or only long, documents.
    """

    def __init__(
        self, documents: Documents | ShardedDocuments, domain: str, seed: int, sampling: SamplingConfig, limit: int = 0
    ) -> None:
        self.documents, self.domain, self.seed, self.sampling, self.limit = documents, domain, seed, sampling, limit
        self.chosen = self._choose()
        self.keep_long, self.keep_short = self._shares()
        self.epoch = lru_cache(maxsize=2)(self._epoch)  # neighbouring sequences share an epoch

    @property
    def steady(self) -> bool:
        """Whether every epoch holds the same documents."""
        return self.keep_long == self.keep_short == 1

    def _epoch(self, number: int) -> Epoch:
        return Epoch(self, number)

    def _shares(self) -> tuple[float, float]:
        """Of the long and of the other documents, the share that an epoch holds; one of the two is 1."""
        wanted, where = self.sampling, f"data.sampling.{self.domain}"
        long_tokens = short_tokens = 0
        for start in range(0, len(self.documents), BLOCK * _AT_ONCE):
            lengths = np.asarray(self.documents.lengths[start : start + BLOCK * _AT_ONCE])
            lengths = lengths[self.allowed(np.arange(start, start + len(lengths)), lengths)]
            trained = np.minimum(lengths, self.limit) if self.limit else lengths
            in_long = int(trained[lengths > wanted.long_tokens].sum())
            long_tokens, short_tokens = long_tokens + in_long, short_tokens + int(trained.sum()) - in_long
        if not long_tokens + short_tokens:
            raise UserError(
                f"{where}: none of the {len(self.documents)} documents has between {wanted.min_tokens} and "
                f"{wanted.max_tokens or 'any number of'} tokens. Change min_tokens or max_tokens."
            )
        if not wanted.long_tokens:
            return 1.0, 1.0
        if not long_tokens or not short_tokens:
            raise UserError(
                f"{where}.long_share={wanted.long_share} cannot be met: {'no' if not long_tokens else 'every'} document of "
                f"'{self.domain}' has more than {wanted.long_tokens} tokens. Change long_tokens, or take the group out."
            )
        ratio = wanted.long_share / (1 - wanted.long_share) * short_tokens / long_tokens  # of long to short, per document
        return (1.0, 1 / ratio) if ratio >= 1 else (ratio, 1.0)

    def allowed(self, numbers: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """bool [documents]: whether the documents of these numbers and lengths may be drawn at all."""
        fits = self._fits(lengths)
        return fits if self.chosen is None else fits & np.isin(numbers, self.chosen)

    def _fits(self, lengths: np.ndarray) -> np.ndarray:
        most = self.sampling.max_tokens or np.iinfo(np.int64).max
        return (lengths >= self.sampling.min_tokens) & (lengths <= most)

    def _choose(self) -> np.ndarray | None:
        """Numbers of the ``sampling.documents`` different documents that all epochs draw from; None where there is no such limit.

        Raises:
            UserError: where there are fewer.
        """
        wanted, count, found = self.sampling.documents, len(self.documents), np.empty(0, dtype=np.int64)
        if not wanted:
            return None
        order = Shuffled(count, self.seed, self.domain, "documents")
        for start in range(0, count, BLOCK):
            numbers = order.stretch(start, min(count, start + BLOCK))
            found = np.append(found, numbers[self._fits(np.asarray(self.documents.lengths[numbers]))])
            if len(found) >= wanted:
                return found[:wanted]
        raise UserError(
            f"data.sampling.{self.domain}.documents={wanted:,}: '{self.domain}' has {len(found):,} documents that may be drawn. Lower it."
        )


class Epoch:
    """One pass over a domain. ``token_starts`` and ``document_starts``, int64 [blocks + 1], count what lies before each block."""

    def __init__(self, sampler: EpochSampler, number: int) -> None:
        self.number = number
        self.sampler = sampler
        self._count = len(sampler.documents)
        self._order = Shuffled(self._count, sampler.seed, sampler.domain, number)
        words = random_words(2, "sampling", sampler.seed, sampler.domain, number)
        self._offsets = words / 2.0**64  # where in [0, 1) counting long, and other, documents begins
        blocks = -(-self._count // BLOCK)
        counts = np.zeros((4, blocks + 1), dtype=np.int64)  # of each block: tokens, documents, long and other ones
        for first in range(0, self._count, BLOCK * _AT_ONCE):
            self._count_blocks(first, counts)
        sums = np.cumsum(counts, axis=1)
        self.token_starts, self.document_starts, self._seen_long, self._seen_short = sums
        self.block = lru_cache(maxsize=4)(self._block)

    @property
    def tokens(self) -> int:
        return int(self.token_starts[-1])

    @property
    def documents(self) -> int:
        return int(self.document_starts[-1])

    def tokens_within(self, limit: int) -> int:
        """Tokens of all documents, at most ``limit`` of each."""
        blocks = range(len(self.token_starts) - 1)
        return sum(int(np.minimum(np.diff(self._block(block)[1], prepend=0), limit).sum()) for block in blocks)

    def place(self, document: int) -> int:
        """Where the epoch's document number ``document`` stands in the order of all documents, of which an epoch may leave some out."""
        block = int(np.searchsorted(self.document_starts, document, side="right")) - 1
        *_, kept = self._drawn_in(block)
        return block * BLOCK + int(np.flatnonzero(kept)[document - int(self.document_starts[block])])

    def documents_before(self, place: int) -> int:
        """How many of the epoch's documents stand before a place in the order of all documents."""
        block, rest = divmod(place, BLOCK)
        return int(self.document_starts[block]) + (int(self._drawn_in(block)[2][:rest].sum()) if rest else 0)

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of a block's documents, and where each of them ends, in tokens from the block's start; int64 [documents]."""
        numbers, lengths, kept = self._drawn_in(block)
        return numbers[kept], np.cumsum(lengths[kept])

    def _drawn_in(self, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers and lengths of all documents of a block of the order, and which of them are kept."""
        first, stop = block * BLOCK, min(self._count, (block + 1) * BLOCK)
        return self._drawn(first, stop, self._seen_long[block], self._seen_short[block])[:3]

    def _count_blocks(self, first: int, counts: np.ndarray) -> None:
        """Count what the next blocks hold, from document ``first`` on. Columns of ``counts`` [4, blocks + 1] are shifted by one."""
        stop = min(self._count, first + BLOCK * _AT_ONCE)
        before = counts[2:].sum(axis=1)
        numbers, lengths, kept, long = self._drawn(first, stop, *before)
        allowed = self.sampler.allowed(numbers, lengths)
        starts = np.arange(0, stop - first, BLOCK)
        columns = slice(first // BLOCK + 1, first // BLOCK + 1 + len(starts))
        for row, values in zip(counts, (lengths * kept, kept, allowed & long, allowed & ~long), strict=True):
            row[columns] = np.add.reduceat(values.astype(np.int64), starts)

    def _drawn(self, first: int, stop: int, seen_long: int, seen_short: int) -> tuple[np.ndarray, ...]:
        """Documents ``first`` to ``stop`` - 1 of the order: their numbers and lengths, which of them are kept, and which are long.

        ``seen_long`` and ``seen_short`` were there to be drawn before them.
        """
        numbers = self._order.stretch(first, stop)
        lengths = np.asarray(self.sampler.documents.lengths[numbers])
        kept, long = self.sampler.allowed(numbers, lengths), lengths > self.sampler.sampling.long_tokens
        if self.sampler.steady:
            return numbers, lengths, kept, long
        for chosen, share, seen, offset in (
            (kept & long, self.sampler.keep_long, seen_long, self._offsets[0]),
            (kept & ~long, self.sampler.keep_short, seen_short, self._offsets[1]),
        ):
            places = seen + np.arange(chosen.sum())
            kept[chosen] = np.floor((places + 1) * share + offset) > np.floor(places * share + offset)  # every 1/share-th
        return numbers, lengths, kept, long


class Places:
    """Places in documents where a text of ``tokens`` tokens fits, each as likely. False where there is none."""

    def __init__(self, documents: Documents | ShardedDocuments, tokens: int) -> None:
        self._ends = np.cumsum(np.maximum(np.asarray(documents.lengths) - tokens + 1, 0))  # places up to each document's end

    def __bool__(self) -> bool:
        return bool(len(self._ends) and self._ends[-1])

    def draw(self, word: np.uint64) -> tuple[int, int]:
        """The document's number and the token to start at that a word of `random_words` stands for."""
        place = int(word % np.uint64(self._ends[-1]))
        index = int(np.searchsorted(self._ends, place, side="right"))
        return index, place - int(self._ends[index - 1] if index else 0)


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
