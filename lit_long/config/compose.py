"""From what a command says (command.py) to complete settings: of a sweep and each of its stages, and of commands that run no experiment.

What comes later wins:

    defaults < option files (configs/GROUP/NAME.yaml) < the experiment's YAML < key=value

* ``model=tiny`` picks an option file, ``model.n_layers=6`` sets one value. In an experiment a group is a name (``model: tiny``)
  or settings, on top of an option if they name one (``optim: {option: adamw, lr: 2e-3}``); so are the settings of an option file.
* ``grid.position=[rope,abf]`` makes one variant per value; naming one value (``position=abf``, ``seed=1``) leaves that one.
  ``grid.position=all`` takes every option file but those with a ``???``, a value that only the user can give. (grid.py)
* A stage's own settings in the experiment come before the grid's and before ``key=value``; but a stage that names its own
  option for a group (``base: {position: rope}``) keeps it, and only ``stages.base.position=…`` changes it. What a stage says of the
  experiment's data is left out where ``data=NAME`` names others.
* A stage that several experiments share is written once: ``base: {recipe: mini}`` takes its settings from experiments/bases/mini.yaml.
* ``model.init=…`` names pretrained weights. They bring the model's shape and the tokenizer, and their own encoder where no
  position is named (or it is ``position=pretrained``).
* Interpolations such as ``${context}`` are resolved inside each stage, with `multiply` and `divide` to compute.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException, UnsupportedInterpolationType

from lit_long.config.command import (
    COMMAND_LINE,
    DEFAULT_OPTIONS,
    SHARED,
    Command,
    merge,
    normalize,
    option_names,
    option_pick,
    parse_words,
    read_option,
    refuse_references,
)
from lit_long.config.grid import Point, grid_axes, settings_of_point
from lit_long.config.pretrained import Pretrained, inherit, settings_of
from lit_long.config.schema import DataConfig, LayersConfig, ModelConfig, StageConfig, SweepConfig
from lit_long.config.text import read_types, type_at
from lit_long.config.typed import UserError, check, convert, nearest, plain, typed

# The groups of a command that runs no experiment, but uses one model, or data
MODEL_GROUPS, DATA_GROUPS = ("model", "position", "layers"), ("data", "model")


def leaf_names(cls: type = SweepConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of a class's settings."""
    default = cls()
    for f in dataclasses.fields(cls):
        value = getattr(default, f.name)
        yield from (leaf_names(type(value), f"{prefix}{f.name}.") if dataclasses.is_dataclass(value) else [prefix + f.name])


def merge_settings(into: dict[str, Any], settings: dict[str, Any], where: str) -> None:
    """Put settings, which are checked, on top; a group that names an option starts again from that option's file."""
    for key, value in settings.items():
        if key in DEFAULT_OPTIONS:
            if (name := option_pick(value)) is not None:
                into[key] = read_option(key, name)
            value = settings_of(value)
        check(SweepConfig, {key: value}, where, leaves=all_settings())
        merge(into, {key: value})


@cache
def all_settings() -> list[str]:
    """Dotted names of what can be set, for "did you mean"."""
    return [*leaf_names(), *(f"stages.NAME.{name}" for name in STAGE_KEYS)]


STAGE = [f.name for f in dataclasses.fields(StageConfig)]
STAGE_KEYS = [name for name in STAGE if name not in SHARED]


def compose_sweep(command: Command) -> tuple[SweepConfig, dict[str, Any]]:
    """The sweep's own settings, and the raw shared settings (interpolations unresolved) that stages start from."""
    raw: dict[str, Any] = {}
    merge_settings(raw, DEFAULT_OPTIONS, "defaults")
    for settings, where in ((command.experiment, str(command.file)), (command.cli, COMMAND_LINE)):
        stages = settings.get("stages") or {}
        if not isinstance(stages, dict):
            raise UserError(f"{where}: stages must be a group of settings (key: value), not {stages!r}")
        for name, stage in stages.items():
            check_stage(name, stage, where, command)
        merge_settings(raw, settings, where)
        refuse_references(settings, where)
    own = {key: value for key, value in (raw | {"experiment": command.name}).items() if key not in SHARED or key == "seed"}
    shared = {key: plain(getattr(SweepConfig(), key)) for key in SHARED}
    merge(shared, {key: value for key, value in raw.items() if key in SHARED})
    sweep = typed(SweepConfig, own, str(command.file))
    own = command.experiment.get("grid") or {}
    sweep.grid = grid_axes(command.file, own, command.cli, sweep.grid, option_names, DEFAULT_OPTIONS)
    for key, values in sweep.grid.items():
        refuse_twice(key, [value for value in values if not isinstance(value, dict)])
    sweep.exclude = [{key: as_in_grid(key, value, sweep.grid, own) for key, value in rule.items()} for rule in sweep.exclude]
    return sweep, shared


def meaning(key: str, value: Any) -> str:
    """The same for 64k and 65536, where the setting ``key`` is a number, or may be one: the schema leaves open what a position's settings are."""
    kind = type_at(read_types(SweepConfig), key.split("."))
    try:
        return repr(convert(float if kind is Any and "." in key else kind, value, "grid", key))
    except UserError:  # the name of an option; or what is refused when a stage is composed
        return repr(value)


def as_in_grid(key: str, value: Any, grid: dict[str, list[Any]], own: dict[str, Any]) -> Any:
    """A value of ``exclude`` as the axis spells it, or else as the experiment's ``own`` grid does: the command line may have narrowed the axis."""
    written = own.get(key)
    values = [*grid.get(key, []), *(written if isinstance(written, list) else [])]
    return next((one for one in values if meaning(key, one) == meaning(key, value)), value)


def refuse_twice(key: str, values: list[Any]) -> None:
    """Raise UserError for values of an axis that are one, such as 64k and 65536: they would be two variants of the same stages."""
    seen: dict[str, Any] = {}
    for value in values:
        meant = meaning(key, value)
        if meant in seen:
            raise UserError(f"grid.{key} has {seen[meant]} twice, the second time as {value}")
        seen[meant] = value


def check_stage(name: str, stage: Any, where: str, command: Command) -> None:
    if name not in (known := list(command.experiment.get("stages") or {})):
        raise UserError(f"{where}: unknown stage {name!r} in 'stages'{nearest(name, known)}")
    if not isinstance(stage, dict):
        raise UserError(f"{where}: stages.{name} must be a group of settings (key: value), not {stage!r}")
    settings = {k: v for k, v in stage.items() if k not in DEFAULT_OPTIONS}
    groups = {k: v for k, v in stage.items() if k in DEFAULT_OPTIONS and isinstance(v, dict)}
    groups = {k: {n: x for n, x in v.items() if n != "option"} for k, v in groups.items()}
    if unknown := [k for k in stage if k in ("launcher", "tracking")]:
        raise UserError(f"{where}: stages.{name}.{unknown[0]} cannot be set per stage; set {unknown[0]} for the whole sweep")
    check(StageConfig, settings | groups, where, f"stages.{name}.")


class Composer:
    """Complete settings of a sweep's stages at points of its grid.

    A thousand points share nearly all of what they say, so each top-level key of a stage (``optim``, ``seed`` …) is put together, checked and
    resolved once per distinct value, not once per point. The parts of the settings are shared: change none of them in place.

    Args:
        grid: the axes. Where the command line names one value of an axis, the points say it.
        shared: what `compose_sweep` returned.
        pretrained: reads what ``model.init`` names.
    """

    def __init__(self, command: Command, grid: Iterable[str], shared: dict[str, Any], pretrained: Pretrained) -> None:
        self.command, self.grid, self.shared, self.pretrained = command, set(grid), shared, pretrained
        self.merged: dict[tuple[str, str, str], Any] = {}  # stage, key, what the point says of it → its raw value
        self.own: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], set[str]]] = {}
        self.resolved: Resolved = {}

    def stage(self, name: str, point: Point, init: str = "") -> StageConfig:
        """Stage ``name`` at one point of the grid.

        Args:
            point: one value per axis, ``{"position": "abf", "seed": 0}`` (grid.py).
            init: the shipped weights that it descends from, if any.
        """
        said = self.said(name, point)
        own, _, own_cli, _ = self.parts_of(name)
        raw = {key: self.raw(name, key, said) for key in dict.fromkeys([*self.shared, *own, *said, *self.general(), *own_cli])}
        if init:
            raw["model"] = raw["model"] | {"init": init}
        where = f"{self.command.file}: stages.{name}"
        inherit(raw, [self.command.experiment, own, said, self.command.cli, own_cli], self.pretrained, where)
        return resolve_interpolations(raw, where, self.resolved)

    def said(self, name: str, point: Point) -> dict[str, Any]:
        """What a point says to stage ``name``, by the stage's own keys."""
        pinned, said = self.parts_of(name)[3], {}
        for key, value in settings_of_point(point):
            if key.partition(".")[0] not in pinned:
                own = key.removeprefix(f"stages.{name}.")
                merge(said, nest(f"{own}.option" if own in DEFAULT_OPTIONS and not isinstance(value, dict) else own, value))
        said.pop("stages", None)  # of other stages
        return said

    def raw(self, name: str, key: str, said: dict[str, Any]) -> Any:
        """One key of the stage from all of them, interpolations unresolved; not to be changed."""
        memo = (name, key, repr(said[key]) if key in said else "")
        if memo not in self.merged:
            own, dotted, own_cli, _ = self.parts_of(name)
            into = {key: copy.deepcopy(self.shared[key])} if key in self.shared else {}
            where = f"{self.command.file}: stages.{name}"
            for settings, source in ((own, where), (said, "grid"), (dotted, COMMAND_LINE), (own_cli, COMMAND_LINE)):
                if key in settings:
                    (merge if key in STAGE_KEYS else partial(merge_settings, where=source))(into, {key: settings[key]})
            self.merged[memo] = into[key]
        return self.merged[memo]

    def general(self) -> dict[str, Any]:
        return {key: value for key, value in self.command.cli.items() if key in SHARED}

    def parts_of(self, name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], set[str]]:
        """What the experiment says of the stage, what the command line says of all and of this one, and the groups whose option the stage names."""
        if name not in self.own:
            own = self.command.experiment["stages"][name]
            own_cli = (self.command.cli.get("stages") or {}).get(name, {})
            if option_pick(self.command.cli.get("data")) and not option_pick(own.get("data")):
                own = {k: v for k, v in own.items() if k != "data"}  # weights of domains that the other data do not have
            pinned = {group for group in DEFAULT_OPTIONS if option_pick(own.get(group)) or option_pick(own_cli.get(group))}
            general = self.without_axes({k: v for k, v in self.general().items() if k not in pinned})
            dotted = {k: {n: x for n, x in v.items() if n != "option"} if isinstance(v, dict) else v for k, v in general.items()}
            dotted = {k: v for k, v in dotted.items() if k not in DEFAULT_OPTIONS or isinstance(v, dict)}
            self.own[name] = own, dotted, self.without_axes(own_cli, f"stages.{name}."), pinned
        return self.own[name]

    def without_axes(self, values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        groups = {
            key: self.without_axes(value, f"{prefix}{key}.") if isinstance(value, dict) else value
            for key, value in values.items()
        }
        return {key: value for key, value in groups.items() if isinstance(value, dict) or f"{prefix}{key}" not in self.grid}


def compose_position(name: str, model: ModelConfig, context: int) -> dict[str, Any]:
    """Settings of configs/position/``name``.yaml, resolved for ``model`` in a context of ``context`` tokens."""
    raw: dict[str, Any] = {"model": plain(model), "context": context}
    merge_settings(raw, {"position": name}, COMMAND_LINE)
    return resolve_interpolations(raw, f"configs/position/{name}.yaml").position


def compose_layers(name: str, model: ModelConfig, context: int) -> LayersConfig:
    """The pattern of configs/layers/``name``.yaml, resolved for ``model`` with RoPE in a context of ``context`` tokens."""
    raw: dict[str, Any] = {"model": plain(model), "context": context}
    for group, option in (("position", "rope"), ("layers", name)):
        merge_settings(raw, {group: option}, COMMAND_LINE)
    return resolve_interpolations(raw, f"configs/layers/{name}.yaml").layers


def parse_model_words(argv: list[str], settings: type) -> dict[str, Any]:
    """Like `parse_words`; ``model=NAME``, ``position=NAME`` and ``layers=NAME`` pick an option file, and their settings may stand beside it."""
    words = [normalize(word) if word.partition("=")[0] in MODEL_GROUPS else word for word in argv]
    return parse_words(words, settings, model=ModelConfig, layers=LayersConfig)


def compose_model(words: dict[str, Any], pretrained: Pretrained, base: StageConfig | None = None) -> StageConfig:
    """What ``words`` say of model, position, layers and context; the rest comes from ``base``, or else from the defaults.

    Settings of a position that is not named (``position.base=…`` alone) change the encoder that the weights were trained with.

    Args:
        pretrained: reads what ``model.init`` names.
        base: a stage whose model is used. Without it the context is the one that the model was pretrained with.

    Raises:
        UserError: unknown options, keys or values.
    """
    raw = plain(base) if base else plain(StageConfig()) | {"context": "${model.context}"}
    position = words.get("position")
    picks = {"position": option_pick(position)} if option_pick(position) else {}
    said = picks | ({"model": words["model"]} if "model" in words else {})
    if base is None:
        merge_settings(raw, {"position": DEFAULT_OPTIONS["position"]}, "defaults")
    merge_settings(raw, said, COMMAND_LINE)
    raw["context"] = words.get("context", raw["context"])
    if base is None:
        inherit(raw, [said], pretrained, COMMAND_LINE)
    merge_settings(raw, {"position": settings_of(position)}, COMMAND_LINE)
    if not raw["layers"]["pattern"]:
        merge_settings(raw, {"layers": DEFAULT_OPTIONS["layers"]}, "defaults")
    merge_settings(raw, {"layers": words["layers"]} if "layers" in words else {}, COMMAND_LINE)
    return resolve_interpolations(raw, COMMAND_LINE)


def parse_data_words(argv: list[str], settings: type) -> dict[str, Any]:
    """Like `parse_words`; ``data=NAME`` and ``model=NAME`` pick an option file, and their settings may stand beside it."""
    words = [normalize(word) if word.partition("=")[0] in DATA_GROUPS else word for word in argv]
    return parse_words(words, settings, data=DataConfig, model=ModelConfig)


def compose_data(words: dict[str, Any], pretrained: Pretrained) -> StageConfig:
    """A data stage: what ``words`` say of data, on top of the default option; ``model.init`` brings its tokenizer.

    Args:
        pretrained: reads what ``model.init`` names.

    Raises:
        UserError: unknown options, keys or values.
    """
    raw = plain(StageConfig(kind="data"))
    merge_settings(raw, {"data": DEFAULT_OPTIONS["data"]}, "defaults")
    said = {group: words[group] for group in DATA_GROUPS if group in words}
    merge_settings(raw, said, COMMAND_LINE)
    inherit(raw, [said], pretrained, COMMAND_LINE)
    return resolve_interpolations(raw, COMMAND_LINE)


def nest(key: str, value: Any) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    return {head: nest(rest, value) if rest else value}


Resolved = dict[tuple[str, str, str], Any]  # where, key, what it says and what it refers to → its checked value


def resolve_interpolations(raw: dict[str, Any], where: str, known: Resolved | None = None) -> StageConfig:
    """Interpolations resolved, every value checked.

    Args:
        known: values that were resolved before, filled in here.
    """
    known = {} if known is None else known

    def once(key: str, content: str, make: Callable[[], Any]) -> Any:
        if (memo := (where, key, content)) not in known:
            known[memo] = make()
        return known[memo]

    # 2k must be a number before ${divide:…} sees it
    values = {key: once(key, repr(value), lambda k=key, v=value: RawValue(k, v, where)) for key, value in raw.items()}
    values |= {key: once(key, "", lambda k=key: RawValue(k, getattr(StageConfig(), k), where)) for key in STAGE if key not in raw}
    resolved = {}
    for key in STAGE:
        needed = reached(key, values)
        content = repr([(name, values[name].plain) for name in needed])
        resolved[key] = once(key, f"in {content}", lambda k=key, n=needed: resolve_one(k, n, values, where))
    return StageConfig(**resolved)


MISSING_VALUE = object()
# A setting by its full name, or the beginning of a product of such
PLAIN = re.compile(r"\$\{(?:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*\}|(?:multiply|divide):)")


class RawValue:
    """A key's value, checked as far as that goes before its interpolations are resolved, and the keys that these may name."""

    def __init__(self, key: str, value: Any, where: str) -> None:
        self.plain = plain(check(StageConfig, {key: value}, where)[key])
        texts = [text for text in leaves(self.plain) if isinstance(text, str) and "${" in text]
        self.paths = set(re.findall(r"[\w.]+", " ".join(texts)))  # model.context, among other words
        words = {word for path in self.paths for word in path.split(".")}
        # What is named in another way, relative or by other values (oc.select), may be anything
        self.names = [name for name in STAGE if name in words or any("${" in PLAIN.sub("", text) for text in texts)]
        self.refers = bool(texts)


def reached(key: str, values: dict[str, RawValue]) -> list[str]:
    """The key itself, and those whose values its interpolations may need."""
    found = [key]
    for name in found:
        found += [other for other in values[name].names if other not in found]
    return found


def resolve_one(key: str, needed: list[str], values: dict[str, RawValue], where: str) -> Any:
    value = values[key].plain
    if values[key].refers:
        OmegaConf.register_resolver("multiply", lambda a, b: float(a) * float(b), replace=True)
        OmegaConf.register_resolver("divide", lambda a, b: float(a) / float(b), replace=True)
        seen = {name: values[name].plain for name in needed} if len(needed) == len(values) else named_values(key, needed, values)
        try:
            found = OmegaConf.to_container(OmegaConf.create(seen), resolve=True)[key]
        except OmegaConfBaseException as error:
            if len(needed) < len(values):  # so that it is told as one of all settings
                return resolve_one(key, list(values), values, where)
            known = "; there are multiply, divide and OmegaConf's own, such as oc.env"
            remedy = known if isinstance(error, UnsupportedInterpolationType) else ""
            raise UserError(f"{where}: {key}: {str(error).splitlines()[0]}{remedy}") from None
        whole = {key: copy.deepcopy(value)}
        merge(whole, {key: found})
        value = whole[key]
    return check(StageConfig, {key: value}, where)[key]


def named_values(key: str, needed: list[str], values: dict[str, RawValue]) -> dict[str, Any]:
    """Of the key's value what has interpolations, and of the needed keys what these name: a value takes OmegaConf a hundred times as long as a dict."""
    seen: dict[str, Any] = {}
    merge(seen, {key: with_interpolations(values[key].plain)})
    for path in sorted(set().union(*(values[name].paths for name in needed))):
        value: Any = {name: values[name].plain for name in needed}
        for part in path.split("."):
            value = value.get(part, MISSING_VALUE) if isinstance(value, dict) else MISSING_VALUE
        if value is not MISSING_VALUE:
            merge(seen, nest(path, value))
    return seen


def with_interpolations(value: Any) -> Any:
    """A group without what has no interpolation; lists and single values as they are."""
    if not isinstance(value, dict):
        return value
    return {k: with_interpolations(v) for k, v in value.items() if any(isinstance(x, str) and "${" in x for x in leaves(v))}


def leaves(value: Any) -> Iterator[Any]:
    """What groups and lists hold, however deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if inner is None:
        yield value
    else:
        for one in inner:
            yield from leaves(one)
