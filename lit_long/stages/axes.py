"""Axes over settings that only some of a grid's options have.

    grid: {position: [rope, xpos_abf], position.scale_base: [128, 512]}      rope · xpos_abf 128 · xpos_abf 512

Such an axis is left out of the points whose option has no such setting, and one that no option has is refused. A setting of a positional encoder
is a field of its scheme; of layers, one of a group that they have; of a mixture, one of a domain that it has; an adapter of rank 0 has none, and pretrained weights leave
none of the model's shape. All the others are there whichever option is chosen.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

from lit_long.config import (
    Composer,
    DataConfig,
    LayerGroupConfig,
    LayersConfig,
    SamplingConfig,
    SourceConfig,
    StageConfig,
    UserError,
    check,
    nearest,
)
from lit_long.config.command import DEFAULT_OPTIONS, PRETRAINED
from lit_long.config.compose import leaf_names
from lit_long.config.grid import NAME, Point, dotted, label
from lit_long.positions import SCHEMES, TRANSFORMS, PositionalEncoder, PositionTransform, find
from lit_long.stages.resolve import mixable_domains, resolve_weights

OPEN = ("position", "data.sources", "data.weights", "data.repeats", "data.sampling")  # keys that the schema does not list
LAYERS, LAYER_GROUP = list(leaf_names(LayersConfig)), list(leaf_names(LayerGroupConfig))
SWITCHES = ("scheme", "training.transform", "rank", "init")  # settings that decide which others there are: they come first


class Axes:
    """The axes of a grid, and to which of its options those over a setting of an option apply."""

    def __init__(self, composer: Composer, stages: list[str], axes: dict[str, list[Any]]) -> None:
        """``stages``: their names."""
        self.composer, self.stages, self.axes = composer, stages, axes
        self.settings: dict[str, tuple[list[str], str, str]] = {}  # axis → the stages that it is for, group, setting
        self.applies: dict[str, dict[str, bool]] = {}  # axis → option → whether it has the setting
        self.known: dict[str, dict[str, None]] = {}  # axis → settings that there are
        self.kept: dict[str, list[str]] = {}
        for key, values in axes.items():
            self.check_stage(key, [key] if not named_keys(values) else named_keys(values))
        for key in axes:
            stage, own = split(key)
            group, _, setting = own.partition(".")
            if group in DEFAULT_OPTIONS and setting and (group == "position" or self.options(group)):
                reached = [name for name in stages if name == stage or (not stage and group not in composer.parts_of(name)[3])]
                self.settings[key] = reached, group, setting
        self.settings = dict(sorted(self.settings.items(), key=lambda item: item[1][2] not in SWITCHES))

    def check_stage(self, axis: str, keys: list[str]) -> None:
        for key in keys:
            stage, own = split(key)
            if stage and stage not in self.stages:
                raise UserError(f"grid.{axis}: no stage {stage!r}{nearest(stage, self.stages)}")
            if key == "stages" or (stage and not own):
                raise UserError(
                    f"grid.{axis}: {key} is a group of settings; name one, such as stages.{stage or self.stages[0]}.tokens"
                )

    def options(self, group: str, prefix: bool = False) -> list[str]:
        """The axes that choose options of a group: its own, and those of named points. ``prefix``: also points that set anything of it."""
        found = []
        for key, values in self.axes.items():
            own = [split(one)[1].removesuffix(".option") for one in [key, *named_keys(values)]]
            if key not in self.settings and any(one == group or (prefix and one.startswith(f"{group}.")) for one in own):
                found.append(key)
        return found

    def keep(self, point: Point) -> Point:
        """The point without the axes over settings that its options do not have."""
        if not self.settings:
            return point
        rest = {key: value for key, value in point.items() if key not in self.settings}
        chosen = {key: rest[key] for _, group, _ in self.settings.values() for key in self.options(group, prefix=True)}
        memo = repr((chosen, {key: point[key] for key, (_, _, setting) in self.settings.items() if setting in SWITCHES}))
        if memo not in self.kept:
            self.kept[memo] = self.choose(chosen, point)
        return {key: value for key, value in point.items() if key in rest or key in self.kept[memo]}

    def choose(self, chosen: Point, point: Point) -> list[str]:
        """The axes over settings that apply where ``chosen`` are the options."""
        kept, waiting = dict(chosen), list(self.settings)
        while taken := next((key for key in waiting if self.has(key, kept)), None):
            kept[taken] = point[taken]
            waiting.remove(taken)
        for key, (stages, group, _) in self.settings.items():
            options = self.options(group)
            own = [name for name in options if split(name)[0] == split(key)[0]]
            option = " ".join(label(chosen[name]) for name in own or options)
            if not option and stages:
                option = str(self.value(stages[0], group, kept).get("scheme", ""))
            applies = self.applies.setdefault(key, {})
            applies[option] = applies.get(option, False) or key in kept
        return [key for key in self.settings if key in kept]

    def has(self, key: str, point: Point) -> bool:
        """Whether a stage that the axis is for has the setting at the point."""
        stages, group, setting = self.settings[key]
        found = False
        for name in stages:
            known = settings_there(group, self.value(name, group, point), name)
            self.known.setdefault(key, {}).update(dict.fromkeys(known))
            found = found or setting in known or setting.rpartition(".")[0] in known  # such as one of a source's where
        return found

    def value(self, stage: str, group: str, point: Point) -> dict[str, Any]:
        """What a group says in a stage at the point, interpolations unresolved."""
        return self.composer.raw(stage, group, self.composer.said(stage, point))

    def notes(self) -> list[str]:
        """A line for each axis that applies to some options only.

        Raises:
            UserError: one that applies to none.
        """
        lines = []
        for key, options in self.applies.items():
            those = [name for name, applies in options.items() if applies]
            others = [name for name, applies in options.items() if not applies]
            if not those:
                stages, group, setting = self.settings[key]
                whose = f" of {', '.join(filter(None, others))}" * any(others)
                if not stages:
                    raise UserError(
                        f"grid.{key} applies to no stage: each names its own {group}; grid.stages.NAME.{group}.{setting} reaches one"
                    )
                known = self.known[key]
                hint = nearest(setting, known, key.removesuffix(setting)) if known else ""
                raise UserError(f"grid.{key}: no option{whose} has this setting{hint}")
            if others:
                lines.append(f"grid.{key} applies to {', '.join(those)}; {', '.join(others)} without it")
        return lines


def split(key: str) -> tuple[str, str]:
    """The stage that a dotted key is for, "" for all, and the key within a stage."""
    if key.startswith("stages."):
        _, stage, own = [*key.split(".", 2), ""][:3]
        return stage, own
    return "", key


def named_keys(values: list[Any]) -> list[str]:
    """The settings of an axis' named points."""
    return [key for value in values if isinstance(value, dict) for key, _ in dotted(value) if key != NAME]


def settings_there(group: str, value: dict[str, Any], where: str) -> list[str]:
    """Dotted names of the settings that a group has, where ``value`` is what it says, interpolations unresolved."""
    cls = type(getattr(StageConfig(), group, None))
    if group == "position":
        return position_settings(value, where)
    if group == "layers":
        return [*LAYERS, *(f"groups.{name}.{key}" for name in value.get("groups", {}) for key in LAYER_GROUP)]
    if group == "data":
        return data_settings(check(DataConfig, value, where, "data."))
    if group == "adapter" and value.get("rank") == 0:
        return []
    if group == "model" and value.get("init"):
        return ["init"]
    return list(leaf_names(cls))


def position_settings(position: dict[str, Any], where: str) -> list[str]:
    training = position.get("training")
    found = ["training.transform"]
    if isinstance(training, dict) and "transform" in training:
        transform = find(PositionTransform, TRANSFORMS, str(training["transform"]), where, "position.training.transform")
        found += [f"training.{name}" for name in field_names(transform)]
    if (scheme := position.get("scheme")) is None or scheme == PRETRAINED:  # the weights bring all but the training's
        return found
    return ["scheme", *field_names(find(PositionalEncoder, SCHEMES, str(scheme), where, "position.scheme")), *found]


def field_names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.init and field.metadata.get("setting", True)]


def data_settings(values: dict[str, Any]) -> list[str]:
    data = DataConfig(**values)
    domains = mixable_domains(replace(data, weights=resolve_weights(data)))
    return [
        *(name for name in leaf_names(DataConfig) if f"data.{name}" not in OPEN),
        *(f"{key}.{domain}" for key in ("weights", "repeats") for domain in domains),
        *(f"sampling.{domain}.{name}" for domain in domains for name in leaf_names(SamplingConfig)),
        *(f"sources.{source}.{name}" for source in data.sources for name in leaf_names(SourceConfig)),
    ]
