"""Keys and values of every layer, kept between the steps of generation.

One tensor [layers, 2, B, G, S, K] holds them all, in the precision that attention computes in and as large as the longest sequence may become:
nothing is ever copied to make room, and a CPU gives memory only to what has been written. Rows of unequal length end in the same column, so
that a step writes and reads the same columns in every row; the columns before a shorter row are hidden by a mask, and rows of equal length
need none.

Keys are kept as attention wants them, rotated; or not yet rotated, where an encoder rotates all of them anew with every token
(`rotated` is False; decode.py decides).

Shapes: B sequences, G key-value heads, T tokens, S columns, K components a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_long.model.llama import Llama
from lit_long.model.loss import computing
from lit_long.positions import Rotation
from lit_long.positions.rotary import apply_rotary


class KeyValueCache:
    """Space for ``len(lengths)`` sequences of ``lengths`` tokens each, to grow by ``max_new_tokens`` tokens.

    Args:
        rotated: whether keys are kept rotated.
        chunk: tokens whose widest activations may exist at once.
    """

    def __init__(self, model: Llama, lengths: list[int], max_new_tokens: int, rotated: bool, chunk: int) -> None:
        config, weight = model.config, model.embed_tokens.weight
        like = dict(dtype=computing(weight), device=weight.device)
        self.rotated, self.chunk = rotated, chunk
        self.stop = max(lengths)  # the column after the newest token, in every row
        self.pads = [self.stop - length for length in lengths]
        columns = self.stop + max_new_tokens
        rows = (len(lengths), model.kv_heads, columns, config.head_dim)
        self.keys_and_values = torch.empty((config.n_layers, 2, *rows), **like)
        self.padding_mask: Tensor | None = None
        if any(self.pads):
            self.padding_mask = torch.zeros((len(lengths), 1, 1, columns), **like)
            for row, pad in enumerate(self.pads):
                self.padding_mask[row, :, :, :pad] = -torch.inf
                self.keys_and_values[:, :, row, :, :pad] = 0  # hidden, but even so it must be a number

    def prefill(self, rows: list[int]) -> list[Prefill]:
        """For every layer: fills ``rows`` with their first tokens."""
        pads = [self.pads[row] for row in rows]
        tokens = self.stop - min(pads)
        wanted = [tokens] * len(self.keys_and_values)
        if len(set(pads)) == 1:
            wanted[-1] = 1
        return [
            Prefill(keys, values, rows, pads, self.stop, self.rotated, self.chunk, last)
            for (keys, values), last in zip(self.keys_and_values, wanted, strict=True)
        ]

    def decode_step(self) -> list[DecodeStep]:
        """For every layer: adds one token to every row."""
        mask = None if self.padding_mask is None else self.padding_mask[..., : self.stop + 1]
        self.stop += 1
        return [DecodeStep(keys, values, self.stop, self.rotated, mask, self.chunk) for keys, values in self.keys_and_values]

    def prefill_chunk(self, tokens: int) -> list[PrefillChunk]:
        """For every layer: adds ``tokens`` tokens to every row; rows are equally long, and keys rotated."""
        self.stop += tokens
        last = len(self.keys_and_values) - 1
        return [
            PrefillChunk(keys, values, self.stop, self.chunk, 1 if layer == last else tokens)
            for layer, (keys, values) in enumerate(self.keys_and_values)
        ]


@dataclass
class Prefill:
    """One layer's first tokens of some rows, padded on the right: causality hides the padding from what comes before."""

    keys_BGSK: Tensor
    values_BGSK: Tensor
    rows: list[int]
    pads: list[int]
    stop: int
    rotated: bool
    chunk: int
    wanted: int
    padding_mask: Tensor | None = None

    def extend(self, k_BGTK: Tensor, v_BGTK: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        rotated_BGTK = apply_rotary(k_BGTK, rotation.cos_k, rotation.sin_k)
        kept_BGTK = rotated_BGTK if self.rotated else k_BGTK
        first, last, pad = self.rows[0], self.rows[-1], self.pads[0]
        if self.rows == list(range(first, last + 1)) and set(self.pads) == {pad}:
            keys_BGTK, values_BGTK = (kept[first : last + 1, :, pad : self.stop] for kept in (self.keys_BGSK, self.values_BGSK))
            keys_BGTK.copy_(kept_BGTK), values_BGTK.copy_(v_BGTK)
            return keys_BGTK if self.rotated else rotated_BGTK, values_BGTK  # heads in one piece, which kernels read faster
        for i, (row, pad) in enumerate(zip(self.rows, self.pads, strict=True)):
            self.keys_BGSK[row, :, pad : self.stop] = kept_BGTK[i, :, : self.stop - pad]
            self.values_BGSK[row, :, pad : self.stop] = v_BGTK[i, :, : self.stop - pad]
        return rotated_BGTK, v_BGTK


@dataclass
class DecodeStep:
    """One layer's next token in every row. The rotation's tables for keys are those of the new token, or of all if none is rotated."""

    keys_BGSK: Tensor
    values_BGSK: Tensor
    stop: int
    rotated: bool
    padding_mask: Tensor | None
    chunk: int
    wanted: int = 1

    def extend(self, k_BG1K: Tensor, v_BG1K: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        if self.rotated:
            k_BG1K = apply_rotary(k_BG1K, rotation.cos_k, rotation.sin_k)
        self.keys_BGSK[:, :, self.stop - 1 : self.stop] = k_BG1K
        self.values_BGSK[:, :, self.stop - 1 : self.stop] = v_BG1K
        keys_BGSK, values_BGSK = self.keys_BGSK[:, :, : self.stop], self.values_BGSK[:, :, : self.stop]
        if not self.rotated:
            keys_BGSK = apply_rotary(keys_BGSK, rotation.cos_k, rotation.sin_k)
        return keys_BGSK, values_BGSK


@dataclass
class PrefillChunk:
    """One layer's next tokens of every row, several at once: a prompt that begins like the one before goes on from there."""

    keys_BGSK: Tensor
    values_BGSK: Tensor
    stop: int
    chunk: int
    wanted: int
    padding_mask: Tensor | None = None

    def extend(self, k_BGTK: Tensor, v_BGTK: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        start = self.stop - k_BGTK.shape[2]
        self.keys_BGSK[:, :, start : self.stop] = apply_rotary(k_BGTK, rotation.cos_k, rotation.sin_k)
        self.values_BGSK[:, :, start : self.stop] = v_BGTK
        return self.keys_BGSK[:, :, : self.stop], self.values_BGSK[:, :, : self.stop]
