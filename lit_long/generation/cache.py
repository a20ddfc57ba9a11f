"""Keys and values of every layer, kept between the steps of generation.

A tensor a layer, [2, B, G, S, K], in the precision that attention computes in and as large as the longest sequence may become: nothing is ever
copied to make room, and a CPU gives memory only to what has been written. Rows of unequal length end in the same column, so that a step writes and
reads the same columns in every row; the columns before a shorter row are hidden by a mask, and rows of equal length need none.

A layer with a window of W tokens has room for W, and its newest token takes the place of the one that no token to come will see: column c lies in
place c mod W.

Keys are kept as attention wants them, rotated; or not yet rotated, where an encoder rotates all of them anew with every token
(`rotated` is False; decode.py decides).

Shapes: B sequences, G key-value heads, T tokens, S columns, K components a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_long.generation.prefix import Prefix, after
from lit_long.model.llama import Llama
from lit_long.model.loss import computing
from lit_long.positions import Rotation
from lit_long.positions.rotary import apply_rotary


class KeyValueCache:
    """Space for ``len(lengths)`` sequences of ``lengths`` tokens each, to grow by ``max_new_tokens`` tokens.

    Args:
        rotated: of each group of layers, whether its keys are kept rotated.
        chunk: tokens whose widest activations may exist at once.
        forgets: whether layers with a window keep no more than it; else they keep all, so that one can go back.
    """

    def __init__(
        self, model: Llama, lengths: list[int], max_new_tokens: int, rotated: Sequence[bool], chunk: int, forgets: bool = True
    ) -> None:
        config, weight, pattern = model.config, model.embed_tokens.weight, model.pattern
        like = dict(dtype=computing(weight), device=weight.device)
        self.rotated, self.chunk = list(rotated), chunk
        self.stop = max(lengths)  # the column after the newest token, in every row
        self.pads = [self.stop - length for length in lengths]
        self.columns = self.stop + max_new_tokens
        self.groups = [pattern.place(layer) for layer in range(config.n_layers)]
        self.windows = [group.window or self.columns for group in pattern.groups]
        self.keys_and_values = []
        for group in self.groups:
            room = min(self.columns, self.windows[group]) if forgets else self.columns
            self.keys_and_values.append(torch.empty((2, len(lengths), model.kv_heads, room, config.head_dim), **like))
        self.padding_mask: Tensor | None = None
        if any(self.pads):
            self.padding_mask = torch.zeros((len(lengths), 1, 1, self.columns), **like)
            for row, pad in enumerate(self.pads):
                self.padding_mask[row, :, :, :pad] = -torch.inf
                for kept in self.keys_and_values:
                    kept[:, row, :, :pad] = 0  # hidden, but even so it must be a number

    def prefill(self, rows: list[int], prefix: Prefix | None = None) -> list[Prefill]:
        """For every layer: fills ``rows`` with their first tokens: with those of ``prefix``, and what follows it. Keys are rotated then."""
        pads = [self.pads[row] for row in rows]
        tokens = self.stop - min(pads) - (prefix.length if prefix else 0)
        before = prefix.layers if prefix else [None] * len(self.keys_and_values)
        wanted = [tokens] * len(self.keys_and_values)
        if len(set(pads)) == 1:
            wanted[-1] = 1
        return [
            Prefill(keys, values, rows, pads, self.stop, self.rotated[group], self.chunk, last, own)
            for (keys, values), group, last, own in zip(self.keys_and_values, self.groups, wanted, before, strict=True)
        ]

    def decode_step(self) -> list[DecodeStep]:
        """For every layer: adds one token to every row."""
        self.stop += 1
        steps, masks = [], {}
        for (keys, values), group in zip(self.keys_and_values, self.groups, strict=True):
            seen = places(self.stop, keys.shape[2], self.windows[group])
            if group not in masks:
                masks[group] = (
                    None
                    if self.padding_mask is None
                    else self.padding_mask[..., columns(seen, self.stop, keys.shape[2], keys.device)]
                )
            steps.append(DecodeStep(keys, values, self.stop, self.rotated[group], seen, masks[group], self.chunk))
        return steps

    def prefill_chunk(self, tokens: int) -> list[PrefillChunk]:
        """For every layer: adds ``tokens`` tokens to every row; rows are equally long, keys rotated, and nothing is forgotten."""
        self.stop += tokens
        last = len(self.keys_and_values) - 1
        return [
            PrefillChunk(keys, values, self.stop, self.windows[group], self.chunk, 1 if layer == last else tokens)
            for layer, ((keys, values), group) in enumerate(zip(self.keys_and_values, self.groups, strict=True))
        ]

    def keep(self, rows: list[int]) -> None:
        """Forget all rows but these."""
        self.pads = [self.pads[row] for row in rows]
        for layer, kept in enumerate(self.keys_and_values):  # one after the other: there is never a second cache
            self.keys_and_values[layer] = kept[:, rows]
        if self.padding_mask is not None:
            self.padding_mask = self.padding_mask[rows]

    def go_back(self, stop: int) -> bool:
        """Forget the columns from ``stop`` on; False, and nothing is done, where what comes before is forgotten already."""
        if any(kept.shape[3] < self.stop for kept in self.keys_and_values):
            return False
        self.stop = stop
        return True


def places(stop: int, room: int, window: int) -> slice:
    """Where the tokens lie that the newest one, in column ``stop`` - 1, sees: in order, until the room is used a second time."""
    return slice(max(0, stop - window), stop) if stop <= room else slice(0, room)


def columns(seen: slice, stop: int, room: int, device: torch.device) -> slice | Tensor:
    """The columns of the tokens in these places."""
    return seen if stop <= room else stop - room + (torch.arange(room, device=device) - stop) % room


@dataclass
class Prefill:
    """One layer's first tokens of some rows, padded on the right: causality hides the padding from what comes before.

    before: rotated keys and values [2, 1, G, P, K] of tokens that precede them in every row
    """

    keys_BGSK: Tensor
    values_BGSK: Tensor
    rows: list[int]
    pads: list[int]
    stop: int
    rotated: bool
    chunk: int
    wanted: int
    before: Tensor | None = None
    padding_mask: Tensor | None = None

    def extend(self, k_BGTK: Tensor, v_BGTK: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        rotated_BGTK = apply_rotary(k_BGTK, rotation.cos_k, rotation.sin_k)
        if self.before is not None:
            rotated_BGTK, v_BGTK = after(self.before, torch.stack((rotated_BGTK, v_BGTK))).unbind(0)
        kept_BGTK = rotated_BGTK if self.rotated else k_BGTK
        first, last, pad, room = self.rows[0], self.rows[-1], self.pads[0], self.keys_BGSK.shape[2]
        if self.rows == list(range(first, last + 1)) and set(self.pads) == {pad} and self.stop <= room:
            keys_BGTK, values_BGTK = (kept[first : last + 1, :, pad : self.stop] for kept in (self.keys_BGSK, self.values_BGSK))
            keys_BGTK.copy_(kept_BGTK), values_BGTK.copy_(v_BGTK)
            return keys_BGTK if self.rotated else rotated_BGTK, values_BGTK  # heads in one piece, which kernels read faster
        for i, (row, pad) in enumerate(zip(self.rows, self.pads, strict=True)):
            start = max(pad, self.stop - room)
            at = torch.arange(start, self.stop, device=k_BGTK.device) % room
            self.keys_BGSK[row, :, at] = kept_BGTK[i, :, start - pad : self.stop - pad]
            self.values_BGSK[row, :, at] = v_BGTK[i, :, start - pad : self.stop - pad]
        return rotated_BGTK, v_BGTK


@dataclass
class DecodeStep:
    """One layer's next token in every row. The rotation's tables for keys are those of the new token, or of all if none is rotated."""

    keys_BGSK: Tensor
    values_BGSK: Tensor
    stop: int
    rotated: bool
    seen: slice
    padding_mask: Tensor | None
    chunk: int
    wanted: int = 1

    def extend(self, k_BG1K: Tensor, v_BG1K: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        if self.rotated:
            k_BG1K = apply_rotary(k_BG1K, rotation.cos_k, rotation.sin_k)
        room = self.keys_BGSK.shape[2]
        newest = (self.stop - 1) % room
        self.keys_BGSK[:, :, newest : newest + 1] = k_BG1K
        self.values_BGSK[:, :, newest : newest + 1] = v_BG1K
        keys_BGSK, values_BGSK = self.keys_BGSK[:, :, self.seen], self.values_BGSK[:, :, self.seen]
        if not self.rotated:
            own = columns(self.seen, self.stop, room, keys_BGSK.device)
            keys_BGSK = apply_rotary(keys_BGSK, rotation.cos_k[:, own], rotation.sin_k[:, own])
        return keys_BGSK, values_BGSK


@dataclass
class PrefillChunk:
    """One layer's next tokens of every row, several at once: a prompt that begins like the one before goes on from there."""

    keys_BGSK: Tensor
    values_BGSK: Tensor
    stop: int
    window: int
    chunk: int
    wanted: int
    padding_mask: Tensor | None = None

    def extend(self, k_BGTK: Tensor, v_BGTK: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        start = self.stop - k_BGTK.shape[2]
        self.keys_BGSK[:, :, start : self.stop] = apply_rotary(k_BGTK, rotation.cos_k, rotation.sin_k)
        self.values_BGSK[:, :, start : self.stop] = v_BGTK
        seen = slice(max(0, start - self.window + 1), self.stop)  # by the first of them
        return self.keys_BGSK[:, :, seen], self.values_BGSK[:, :, seen]
