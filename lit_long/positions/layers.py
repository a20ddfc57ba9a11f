"""Layers that differ: which of them have which positional encoder, attention window and query scale.

A model's layers belong to groups, by a pattern that is repeated (configs/layers/). A forward pass makes one rotation and one mask a group, and
each layer takes its own. A group without an encoder of its own has the stage's. Building and checking imports no torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lit_long.config import LayerGroupConfig, LayersConfig, UserError, nearest
from lit_long.positions import PositionalEncoder, Rotation, build, class_defaults, find, make, settings
from lit_long.positions.query_scale import FORMS, QueryScale

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LayerGroup:
    """How the layers of a group attend.

    window: tokens that a query sees, its own included, so that of a key ``window`` tokens back it sees nothing; None: all before it
    """

    encoder: PositionalEncoder
    window: int | None = None
    query_scale: QueryScale | None = None

    def require_length(self, length: int) -> None:
        """Raise a UserError when the encoder cannot hold positions 0 … ``length`` − 1."""
        self.encoder.require_length(length)

    def rotation(self, positions: Tensor, length: int) -> Rotation:
        """Tables for logical ``positions`` [B, T] in a context of ``length`` tokens; the query scale is in those of queries."""
        rotation = self.encoder.rotation(positions, length)
        return rotation if self.query_scale is None else self.query_scale.in_context(length).scaled(rotation, positions)


@dataclass(frozen=True)
class LayerPattern:
    """The groups of a model's layers: layer i is of ``groups[places[i % len(places)]]``."""

    groups: tuple[LayerGroup, ...]
    places: tuple[int, ...] = (0,)

    def place(self, layer: int) -> int:
        """The number of a layer's group."""
        return self.places[layer % len(self.places)]

    def with_constant(self, value: float) -> LayerPattern:
        """The pattern whose query scales have ``value`` as the setting that is fitted to a model (`QueryScale.fitted`)."""
        groups = tuple(
            replace(group, query_scale=replace(scale, **{scale.fitted: value}))
            if (scale := group.query_scale) and scale.fitted
            else group
            for group in self.groups
        )
        return replace(self, groups=groups)

    def windows(self, layers: int) -> list[int | None]:
        """The window of each of so many layers."""
        return [self.groups[self.place(layer)].window for layer in range(layers)]


def as_pattern(encoder: PositionalEncoder | LayerPattern) -> LayerPattern:
    """Layers that are all alike, where only an encoder is given."""
    return encoder if isinstance(encoder, LayerPattern) else LayerPattern((LayerGroup(encoder),))


def build_layers(
    layers: LayersConfig, position: dict[str, Any], head_dim: int, where: str = "layers", length: int | None = None
) -> LayerPattern:
    """The groups that ``layers`` describes, for heads of ``head_dim`` components.

    Args:
        position: scheme and settings of the groups without an encoder of their own.
        length: tokens of the context; see `build`.

    Raises:
        UserError: a pattern and groups that do not belong together, and as `build`.
    """
    check_pattern(layers, where)
    if not layers.pattern:
        return LayerPattern((LayerGroup(build(position, head_dim, where, length)),))
    groups: list[LayerGroup] = []
    places = {}
    for name, config in layers.groups.items():
        own = f"{where}: layers.groups.{name}"
        encoder = (
            build_own(config.position, head_dim, own, length) if config.position else build(position, head_dim, where, length)
        )
        if config.window is not None and encoder.score_slopes(1) is not None:
            raise UserError(
                f"{own}.window: a group whose scores fall with distance (ALiBi) has no window; set it to null, or another position"
            )
        group = LayerGroup(encoder, config.window, build_scale(config.query_scale, own))
        if group not in groups:
            groups.append(group)
        places[name] = groups.index(group)
    return LayerPattern(tuple(groups), tuple(places[name] for name in layers.pattern))


def build_own(position: dict[str, Any], head_dim: int, where: str, length: int | None) -> PositionalEncoder:
    """As `build`; what an encoder itself says of its settings names no group."""
    try:
        return build(position, head_dim, where, length)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def build_scale(query_scale: dict[str, Any], where: str) -> QueryScale | None:
    """What a group's ``query_scale`` describes; None without one. Raises UserError as `build`."""
    return make(QueryScale, "form", FORMS, query_scale, where, "query_scale.") if query_scale else None


def layer_settings(
    layers: LayersConfig, position: dict[str, Any], head_dim: int, where: str = "layers", length: int | None = None
) -> LayersConfig:
    """``layers`` with every default of its encoders and scales spelt out, as they enter a stage's identity; where all layers are alike, none.

    Arguments and errors are those of `build_layers`; ``position`` is complete (`settings`).
    """
    pattern = build_layers(layers, position, head_dim, where, length)
    if len(pattern.groups) == 1 and pattern.groups[0] == LayerGroup(build(position, head_dim, where, length)):
        return LayersConfig()
    groups = {}
    for name, config in layers.groups.items():
        own = f"{where}: layers.groups.{name}"
        encoder = settings(config.position, head_dim, own, length) if config.position else {}
        scale = build_scale(config.query_scale, own)
        spelt = {"form": config.query_scale["form"]} | dataclasses.asdict(scale) if scale else {}
        groups[name] = LayerGroupConfig(encoder, config.window, spelt)
    return replace(layers, groups=groups)


def check_pattern(layers: LayersConfig, where: str) -> None:
    """Raise a UserError unless the pattern names all groups, and nothing else."""
    for name in layers.pattern:
        if name not in layers.groups:
            raise UserError(f"{where}: layers.pattern: no group {name!r}{nearest(name, layers.groups)}")
    for name, config in layers.groups.items():
        if name not in layers.pattern:
            raise UserError(
                f"{where}: layers.groups.{name} is in no place of layers.pattern=[{', '.join(layers.pattern)}]; put it there, or leave it out"
            )
        if "training" in config.position:
            raise UserError(
                f"{where}: layers.groups.{name}.position.training: tokens have one position in all layers; set position.training"
            )


def check_layers(layers: LayersConfig, n_layers: int, longest: int, where: str) -> None:
    """Raise a UserError for groups without a layer, and for windows that nothing lies beyond.

    Args:
        longest: the context, in tokens: the stage's, or the model's own where that is longer.
    """
    for name, config in layers.groups.items():
        if name not in layers.pattern[:n_layers]:
            raise UserError(
                f"{where}: model.n_layers={n_layers} ends before layers.pattern=[{', '.join(layers.pattern)}] comes to {name!r}: choose more "
                f"layers, or a shorter pattern"
            )
        if config.window is not None and config.window > longest:
            raise UserError(
                f"{where}: layers.groups.{name}.window={config.window} is above the context of {longest} tokens, so that it hides nothing: choose "
                f"a smaller one, or layers.groups.{name}.window=null for all tokens"
            )


def default_scale_settings(query_scale: dict[str, Any]) -> dict[str, Any]:
    """Those settings of a query scale's form that have a default, with it."""
    return class_defaults(find(QueryScale, FORMS, query_scale["form"], "layers", "form"))
