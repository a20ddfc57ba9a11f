"""From prompts to more tokens: prompts are read at once, then every step adds one token to each row.

A long prompt goes through the layers alone and whole, so that attention is one causal kernel; what is widest, the feed-forward's
activations, exists for ``chunk`` tokens at a time. Short prompts are read together, up to ``chunk`` tokens with padding. A beginning that all
prompts share is read once, where that pays.

Shapes: B sequences, T tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from lit_long.batch import right_padded
from lit_long.config import UserError
from lit_long.generation.cache import KeyValueCache
from lit_long.generation.prefix import Prefix, common_length, layer_masks, pass_tokens, pays
from lit_long.generation.sampling import Sampler
from lit_long.generation.tables import Tables
from lit_long.model.attention import without_cudnn
from lit_long.model.llama import Llama
from lit_long.planning.inference import PREFILL_CHUNK

SHARED_CHUNK = 512  # tokens that are read at once after a shared beginning: what they cannot see is computed too, and thrown away
KEY_CHUNKS = (
    4  # where a shared beginning is read once, so many chunks of keys and values take no more room than a chunk's hidden units
)

Heard = Callable[[int, int], bool]  # from row and new token to whether the row has ended


class Sequences:
    """Rows of tokens and what the model remembers of them.

    Args:
        rows: tokens of each prompt, at least one.
        max_new_tokens: tokens that `step` may add to each.
        chunk: tokens whose widest activations may exist at once when prompts are read.
        forgets: whether layers with a window keep no more than it. `rewind` and `change` then read the rows anew.
        shortest: tokens of the shortest prompt that `change` may go over to; where not given, of the shortest row.

    Raises:
        UserError: no prompt, an empty one, or more tokens than the encoders can hold.
    """

    def __init__(
        self,
        model: Llama,
        rows: list[list[int]],
        max_new_tokens: int,
        chunk: int = PREFILL_CHUNK,
        forgets: bool = True,
        shortest: int | None = None,
    ) -> None:
        if chunk < 1:
            raise UserError(f"prefill_chunk={chunk} must be at least 1 token")
        if not rows or not all(rows):
            raise UserError("prompt: there is nothing to continue; every prompt must have at least one token")
        self.model, self.chunk, self.forgets = model, chunk, forgets
        self.rows = [list(row) for row in rows]
        self.longest = max(map(len, rows)) + max_new_tokens
        self.device = model.embed_tokens.weight.device
        shortest = shortest or min(map(len, rows))
        self.tables = [Tables(group, shortest, self.longest, self.device) for group in model.pattern.groups]
        self.masks = layer_masks(model)
        self.cache: KeyValueCache | None = None

    @torch.inference_mode()
    def read(self) -> Tensor:
        """Compute all rows from their first token on, whatever was cached; logits [B, V] of what comes next."""
        lengths = [len(row) for row in self.rows]
        rotated = self.rotated(lengths)
        self.lengths_read = lengths
        self.cache = None  # before there is another
        self.cache = KeyValueCache(self.model, lengths, self.longest - max(lengths), rotated, self.chunk, self.forgets)
        hidden_BD = self.model.norm.weight.new_empty(len(self.rows), self.model.config.d_model)
        with without_cudnn(self.device):
            prefix = self.shared_prefix()
            start = prefix.length if prefix else 0
            for group in groups(lengths, self.chunk, start):
                own = [lengths[row] for row in group]
                tokens_BT = right_padded([self.rows[row][start:] for row in group])
                rotations = [
                    (tables.between(start, max(own)) if prefix else tables.first(own)).widened() for tables in self.tables
                ]
                caches = self.cache.prefill(group, prefix)
                hidden_BTD = self.model.through_layers(tokens_BT.to(self.device), rotations, self.masks, caches)
                for i, row in enumerate(group):
                    hidden_BD[row] = hidden_BTD[i, min(own[i] - start, hidden_BTD.shape[1]) - 1]
        return self.model.head(hidden_BD)

    def shared_prefix(self) -> Prefix | None:
        """The beginning of all rows, if reading it once pays."""
        length = min(common_length(min(self.rows), max(self.rows)), min(map(len, self.rows)) - 1)
        saved, tokens = (len(self.rows) - 1) * length, sum(map(len, self.rows))
        if not pays(saved, tokens, pass_tokens(self.device)) or not all(tables.steady for tables in self.tables):
            return None
        return Prefix(self.model, self.tables, self.masks, self.chunk).extended(self.rows[0][:length])

    @torch.inference_mode()
    def step(self, tokens_B: Tensor) -> Tensor:
        """Add one token to every row; logits [B, V] of what comes next."""
        for row, token in zip(self.rows, tokens_B.tolist(), strict=True):
            row.append(token)
        lengths = [len(row) for row in self.rows]
        rotated = self.rotated(lengths)
        if self.cache is None or rotated != self.cache.rotated or any(tables.switches(lengths) for tables in self.tables):
            return self.read()
        rotations = [
            tables.newest(lengths) if once else tables.newest_and_all(lengths)
            for tables, once in zip(self.tables, rotated, strict=True)
        ]
        with without_cudnn(self.device):
            hidden_B1D = self.model.through_layers(tokens_B[:, None], rotations, self.masks, self.cache.decode_step())
        return self.model.head(hidden_B1D[:, 0])

    def rotated(self, lengths: list[int]) -> list[bool]:
        """Of each group of layers, whether keys are to be cached rotated."""
        return [not tables.follow(lengths) for tables in self.tables]

    def keep(self, places: list[int]) -> None:
        """Forget all rows but these."""
        self.rows, self.lengths_read = ([each[place] for place in places] for each in (self.rows, self.lengths_read))
        if self.cache is not None:
            self.cache.keep(places)

    def rewind(self, count: int) -> None:
        """Forget the newest ``count`` tokens of every row, to go on from there in another way."""
        for row in self.rows:
            del row[len(row) - count :]
        if any(len(row) < length for row, length in zip(self.rows, self.lengths_read, strict=True)):
            self.cache = None  # it was made anew for a longer context since
        elif self.cache is not None and not self.cache.go_back(self.cache.stop - count):
            self.cache = None

    @torch.inference_mode()
    def change(self, row: list[int]) -> Tensor:
        """Go over to another prompt, of one sequence alone; what it has in common with the tokens so far is not read again.

        Logits [1, V] of what comes next. It must have no more tokens than the longest so far could have become, and no fewer than
        ``shortest``.
        """
        common = min(common_length(self.rows[0], row), len(row) - 1)
        self.rows = [list(row)]
        steady = all(tables.steady for tables in self.tables)
        if self.cache is None or any(self.cache.pads) or not steady or not common or not self.cache.go_back(common):
            return self.read()
        self.lengths_read = [common]
        for start in range(common, len(row), SHARED_CHUNK):
            stop = min(start + SHARED_CHUNK, len(row))
            tokens_1T = torch.tensor([row[start:stop]], device=self.device)
            rotations = [tables.between(start, stop).widened() for tables in self.tables]
            with without_cudnn(self.device):
                hidden_1TD = self.model.through_layers(tokens_1T, rotations, self.masks, self.cache.prefill_chunk(stop - start))
        return self.model.head(hidden_1TD[:, -1])


def groups(lengths: list[int], chunk: int, start: int = 0) -> list[list[int]]:
    """Rows to be read together from token ``start`` on: neighbours in length, at most ``chunk`` tokens with padding, or one row.

    Beside these tokens each layer then has the keys and values of whole rows: of ``KEY_CHUNKS`` chunks at most.
    """
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        count = len(found[-1]) + 1 if found else 0
        if count and count * (lengths[row] - start) <= chunk and count * lengths[row] <= KEY_CHUNKS * chunk:
            found[-1].append(row)
        else:
            found.append([row])
    return found


@torch.inference_mode()
def generate(
    model: Llama,
    prompts: list[list[int]],
    max_new_tokens: int,
    sampler: Sampler | None = None,
    eos: Collection[int] = (),
    heard: Heard | None = None,
    chunk: int = PREFILL_CHUNK,
) -> list[list[int]]:
    """New tokens of each prompt, the one that ended it included.

    Args:
        max_new_tokens: a row has ended after so many.
        sampler: chooses tokens; the likeliest ones if not given.
        eos: a row has ended with any of these.
        heard: is told every new token as (row, token) and says whether the row has ended.
        chunk: tokens whose widest activations may exist at once when prompts are read.

    Raises:
        UserError: see `Sequences`.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
    sequences = Sequences(model, prompts, max_new_tokens - 1, chunk)
    return go_on(sequences, sequences.read(), max_new_tokens, sampler or Sampler(), eos, heard)


def generate_in_turn(
    model: Llama, prompts: list[list[int]], max_new_tokens: int, eos: Collection[int] = (), heard: Heard | None = None
) -> list[list[int]]:
    """Like `generate`, the likeliest tokens, one prompt after another: beginnings that prompts share are read once.

    Neighbours in the order of their tokens share the most. Fewer tokens are read, but each step writes one row only: for long prompts.
    An encoder that looks at the length of the context shares nothing between prompts of different lengths.
    """
    if max_new_tokens < 1 or not prompts or not all(prompts):
        return generate(model, prompts, max_new_tokens)  # which says what is wrong
    found: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda place: prompts[place])
    lengths = [len(prompt) for prompt in prompts]
    new_tokens = max(lengths) - lengths[order[0]] + max_new_tokens - 1
    sequences = Sequences(model, [prompts[order[0]]], new_tokens, forgets=False, shortest=min(lengths))
    for place in order:
        logits_1V = sequences.read() if place == order[0] else sequences.change(prompts[place])

        def told(_: int, token: int, place: int = place) -> bool:
            return heard is not None and heard(place, token)

        (found[place],) = go_on(sequences, logits_1V, max_new_tokens, Sampler(), eos, told)
    return found


def go_on(
    sequences: Sequences, logits_BV: Tensor, max_new_tokens: int, sampler: Sampler, eos: Collection[int], heard: Heard | None
) -> list[list[int]]:
    """New tokens of each row after the one that ``logits_BV`` predict, until all have ended. Steps leave ended rows out, once they are half of all."""
    new: list[list[int]] = [[] for _ in sequences.rows]
    rows = list(range(len(new)))  # that are still computed
    going = set(rows)
    while True:
        tokens_B = sampler.choose(logits_BV)
        for row, token in zip(rows, tokens_B.tolist(), strict=True):
            if row in going:
                new[row].append(token)
                if (heard is not None and heard(row, token)) or token in eos or len(new[row]) == max_new_tokens:
                    going.remove(row)
        if not going:
            return new
        if 2 * len(going) <= len(rows):
            places = [place for place, row in enumerate(rows) if row in going]
            rows, tokens_B = [rows[place] for place in places], tokens_B[places]
            sequences.keep(places)
            sampler.keep(places)
        logits_BV = sequences.step(tokens_B)
