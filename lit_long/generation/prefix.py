"""Prefix caching: tokens with which several texts begin (few-shot examples, a question before its options) go through the model once.

The texts make a tree (`shared_beginnings`) with a branch where they part; a beginning is read by itself where that saves more tokens than
another pass through the model costs. `Prefix` is what the model remembers of it. Where an encoder looks at the length of the context nothing is
shared: texts of other lengths rotate the beginning otherwise (`empty_prefix`).

Shapes: B sequences, G key-value heads, T tokens, P tokens of the prefix, K components a head, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from lit_long.batch import right_padded
from lit_long.generation.tables import Tables
from lit_long.model.attention import AttentionMask, group_slopes, without_cudnn
from lit_long.model.llama import Llama
from lit_long.planning.inference import PREFILL_CHUNK
from lit_long.positions import Rotation
from lit_long.positions.rotary import apply_rotary

# A pass reads all weights, for however few tokens: on two cores that takes as long as some 25 tokens more (SmolLM2-135M in fp32), and small passes
# use a core less well.
PASS_TOKENS = 64
PASS_TOKENS_GPU = 2048  # an estimate, not measured: a GPU also waits for the starts of a small model's kernels


def pass_tokens(device: torch.device) -> int:
    """Tokens that must be saved for a pass of its own to be worth it."""
    return PASS_TOKENS if device.type == "cpu" else PASS_TOKENS_GPU


def pays(saved: int, tokens: int, least: int) -> bool:
    """Whether reading a beginning once saves ``least`` tokens and a tenth of the texts': after it, attention has not its fastest kernel."""
    return saved >= max(least, tokens / 10)


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens with which both begin."""
    return next((place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))


@dataclass
class SharedBeginning:
    """``length`` tokens with which texts begin; ``new`` are the last of them, after those of the one around it.

    texts: numbers of those that begin with it, and with no longer one that is read by itself
    inner: longer ones
    """

    length: int = 0
    new: Sequence[int] = ()
    texts: list[int] = field(default_factory=list)
    inner: list[SharedBeginning] = field(default_factory=list)


def shared_beginnings(beginnings: Sequence[Sequence[int]], least: int) -> SharedBeginning:
    """The tree of what to read once; its root is no token.

    Args:
        beginnings: of each text the tokens that may be read apart from the rest.
        least: tokens that reading a beginning once must save, if these are a tenth of the texts'.
    """
    root = SharedBeginning()
    order = sorted(range(len(beginnings)), key=lambda number: beginnings[number])
    waiting = [(root, order)] if order else []
    while waiting:
        around, numbers = waiting.pop()
        first, last = beginnings[numbers[0]], beginnings[numbers[-1]]
        length = common_length(first, last)  # of all: they are in order
        rest = sum(len(beginnings[number]) - around.length for number in numbers)
        if pays((len(numbers) - 1) * (length - around.length), rest, least):
            around.inner.append(SharedBeginning(length, first[around.length : length]))
            around = around.inner[-1]
        for token, branch in groupby(numbers, lambda number, length=length: tuple(beginnings[number][length : length + 1])):
            branch = list(branch)
            if token and len(branch) > 1:
                waiting.append((around, branch))
            else:
                around.texts += branch
    return root


@dataclass
class AfterPrefix:
    """One layer's view (`CacheView`) of tokens after a prefix, whose rotated keys and values are ``before`` [2, 1, G, P, K]."""

    before: Tensor | None
    chunk: int
    wanted: int
    padding_mask: Tensor | None = None
    keeps: bool = False
    kept: Tensor | None = None  # keys and values of the prefix and the tokens, where they are to be a longer prefix

    def extend(self, k_BGTK: Tensor, v_BGTK: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        whole = after(self.before, torch.stack((apply_rotary(k_BGTK, rotation.cos_k, rotation.sin_k), v_BGTK)))
        if self.keeps:
            self.kept = whole
        return whole.unbind(0)


def after(before: Tensor | None, new: Tensor) -> Tensor:
    """Keys and values [2, B, G, P + T, K] of each row: those of the prefix [2, 1, G, P, K], and its own [2, B, G, T, K]."""
    return new if before is None else torch.cat((before.expand(-1, new.shape[1], -1, -1, -1), new), dim=3)


class Prefix:
    """Keys and values of tokens with which texts begin.

    Args:
        tables: of each group of layers, for as many tokens as the longest text has; all steady.
        chunk: tokens whose widest activations may exist at once.
        length: tokens of the prefix.
        layers: keys and values of each layer, [2, 1, G, P, K]; None where there are no tokens.
    """

    def __init__(
        self,
        model: Llama,
        tables: Sequence[Tables],
        masks: Sequence[AttentionMask],
        chunk: int = PREFILL_CHUNK,
        length: int = 0,
        layers: Sequence[Tensor] | None = None,
    ) -> None:
        self.model, self.tables, self.masks, self.chunk, self.length = model, tables, masks, chunk, length
        self.layers = layers or [None] * len(model.layers)

    def extended(self, tokens: Sequence[int]) -> Prefix:
        """The prefix with ``tokens`` after it."""
        views = [AfterPrefix(before, self.chunk, len(tokens), keeps=True) for before in self.layers]
        views[-1].wanted = 1  # the head takes nothing
        self.through_layers(right_padded([tokens]), views)
        layers = [view.kept for view in views]
        return Prefix(self.model, self.tables, self.masks, self.chunk, self.length + len(tokens), layers)

    def hidden_states(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """What the head takes [B, T, D], of rows of tokens after the prefix. They are padded on their right, which causality hides."""
        tokens_BT = right_padded(rows)
        return self.through_layers(tokens_BT, [AfterPrefix(before, self.chunk, tokens_BT.shape[1]) for before in self.layers])

    @torch.inference_mode()
    def through_layers(self, tokens_BT: Tensor, views: Sequence[AfterPrefix]) -> Tensor:
        """What the head takes, of as many of the last tokens as the last view wants."""
        rotations = [tables.between(self.length, self.length + tokens_BT.shape[1]).widened() for tables in self.tables]
        device = self.model.embed_tokens.weight.device
        with without_cudnn(device):
            return self.model.through_layers(tokens_BT.to(device), rotations, self.masks, views)


def empty_prefix(model: Llama, shortest: int, longest: int) -> Prefix | None:
    """Where texts of ``shortest`` to ``longest`` tokens begin. None if an encoder rotates them otherwise at other lengths."""
    device, groups = model.embed_tokens.weight.device, model.pattern.groups
    tables = [Tables(group, shortest, longest, device) for group in groups]
    if not all(each.steady for each in tables):
        return None
    return Prefix(model, tables, layer_masks(model))


def layer_masks(model: Llama) -> list[AttentionMask]:
    """Of each group of layers, for tokens that go through them with a cache."""
    device, groups = model.embed_tokens.weight.device, model.pattern.groups
    slopes = group_slopes(groups, model.config.n_heads, device)
    return [AttentionMask(window=group.window, slopes=own) for group, own in zip(groups, slopes, strict=True)]
