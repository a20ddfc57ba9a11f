"""The grid of variants: its axes, its points, and what each of them is called.

    grid:
      position: [rope, abf]                     an axis: a setting, or a group of options, and its values
      seed: [0, 1, 2]
      size:                                     an axis of named points: settings that go together
        - {name: 7b, model: llama2-7b, optim.lr: 2e-5}
        - {name: 70b, model: llama2-70b, optim.lr: 1e-5, stages.extend.context: 16k}
      data: [long_mix, {name: own, data: own, optim.lr: 1e-5}]      options, and some of them with settings of their own
    exclude:                                    points that are not run: all that agree with one of these
      - {position: rope, size: 70b}

An axis over a setting of an option (``position.scale_base: [128, 512]``) may stand beside the axis of the options, and applies to those that
have the setting (stages/axes.py). ``position: {option: [rope, abf], base: [1e4, 5e5]}`` says the same as the two dotted keys.

On the command line ``grid.size=[7b]`` picks named points, and naming one value of an axis (``position=abf``, ``seed=1``) leaves that one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any

from lit_long.config.typed import UserError, nearest

NAME = "name"
Point = dict[str, Any]  # axis → value; of a named point the group of its settings, with its name


def dotted(values: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted keys, however they are nested."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def as_list(values: str) -> str:
    """``rope, abf`` as one writes it for an axis, ``[rope,abf]``."""
    return f"[{','.join(value.strip() for value in values.strip('[]').split(','))}]"


def flat_axes(grid: Any, where: str) -> Any:
    """Axes by their dotted keys; ``position.option`` is the axis ``position``. What is no group stays as it is, for the schema to refuse."""
    if not isinstance(grid, dict):
        return grid
    flat: dict[str, Any] = {}
    for key, value in dotted(grid):
        if (name := key.removesuffix(".option")) in flat:
            raise UserError(f"{where}: grid.{name} is there twice")
        flat[name] = value
    return flat


def grid_axes(
    file: Path,
    own: dict[str, Any],
    cli: dict[str, Any],
    grid: dict[str, Any],
    all_options: Callable[[str], list[str]],
    groups: Container[str] = (),
) -> dict[str, list[Any]]:
    """Axes ``{dotted key: values}``; an axis whose key the command line sets to one value has that one.

    Args:
        own: the experiment's grid, where named points are found by name; it and the next two as `flat_axes` makes them.
        cli: all that the command line says.
        grid: both, merged.
        all_options: what ``grid.position=all`` stands for.
        groups: axes over the options of one of these may mix options and named points.

    Raises:
        UserError: what is no axis, has a value twice, or is set to one value beside its axis on the command line.
    """
    axes: dict[str, list[Any]] = {}
    for key, value in grid.items():
        values = all_options(key) if (key, value) == ("position", "all") else value if isinstance(value, list) else [value]
        fixed = fixed_value(cli, key)
        if fixed is not None and key in (cli.get("grid") or {}):
            raise UserError(f"command line: {key}={fixed} and grid.{key}=… both say what {key} is; leave one out")
        if fixed is not None:
            if any(other.startswith(f"{key}.") for other in grid):
                continue  # the option is a setting like any other then: the variants are those of its settings
            values = [fixed]
        if not values or None in values or {} in values:
            raise UserError(f"grid.{key} must be a list such as [a,b], not {value!r}")
        axes[key] = named(key, values, own.get(key), file, key.rpartition(".")[2] in groups)
        labels = [label(one) for one in axes[key]]
        if twice := [name for name in labels if labels.count(name) > 1]:
            raise UserError(f"grid.{key} has {twice[0]} twice")
    return axes


def named(key: str, values: list[Any], own: Any, file: Path, options: bool) -> list[Any]:
    """The axis' values; where the experiment has named points, a name stands for its point, or else, with ``options``, for the option."""
    for value in values:
        if isinstance(value, dict) and (
            not isinstance(value.get(NAME), (str, int, float)) or len(value) < 2 or any(one is None for _, one in dotted(value))
        ):
            raise UserError(f"{file}: grid.{key}: {value} must have a name and settings, such as {{name: 7b, model: llama2-7b}}")
    points = {str(value[NAME]): value for value in own or [] if isinstance(value, dict)} if isinstance(own, list) else {}
    if not points:
        return values
    for value in values:
        if not isinstance(value, dict) and str(value) not in points and not options:
            if "," in str(value):
                raise UserError(f"grid.{key}={value}: several points are a list: grid.{key}={as_list(value)}")
            raise UserError(f"grid.{key}: no point {value!r}{nearest(str(value), points)}; {file} has {', '.join(points)}")
    return [value if isinstance(value, dict) else points.get(str(value), value) for value in values]


def fixed_value(cli: dict[str, Any], key: str) -> Any:
    """The one value (or option) that the command line sets for an axis' key, if it does."""
    value: Any = cli
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value.get("option") if isinstance(value, dict) else value


def points(
    axes: dict[str, list[Any]],
    exclude: list[dict[str, Any]],
    where: str,
    keep: Callable[[Point], Point] = lambda point: point,
    own: dict[str, Any] | None = None,
) -> Iterator[Point]:
    """Every combination of the axes' values that ``exclude`` leaves, once.

    Args:
        own: the experiment's axes, of which the command line may have picked values: what is left of ``exclude`` then still holds.
        keep: leaves out of a point the axes that say nothing to it.
    """
    for rule in exclude:
        for axis, value in rule.items():
            if axis not in axes:
                raise UserError(f"{where}: exclude: {axis} is no axis of the grid{nearest(str(axis), axes)}")
            written = (own or {}).get(axis)
            labels = [label(v) for v in [*axes[axis], *(written if isinstance(written, list) else [])]]
            if str(value) not in labels:
                raise UserError(f"{where}: exclude: {axis}={value} is no value of that axis{nearest(str(value), labels)}")
    seen: set[str] = set()
    for values in itertools.product(*axes.values()):
        point = keep(whole := dict(zip(axes, values, strict=True)))
        if any(all(axis in point and label(point[axis]) == str(value) for axis, value in rule.items()) for rule in exclude):
            continue
        if point != whole:  # the same as with another value of the axis that was left out
            if (known := repr(point)) in seen:
                continue
            seen.add(known)
        yield point


def settings_of_point(point: Point) -> Iterator[tuple[str, Any]]:
    """Dotted settings and their values; those of named points first, so that an axis over one setting has the last word."""
    for value in point.values():
        if isinstance(value, dict):
            yield from ((key, one) for key, one in dotted(value) if key != NAME)
    yield from ((key, value) for key, value in point.items() if not isinstance(value, dict))


def label(value: Any) -> str:
    """What a value of an axis is called."""
    return str(value[NAME] if isinstance(value, dict) else value)


def variant_name(point: Point, grid: Iterable[str]) -> str:
    """``abf``; with several axes besides the seed ``abf lr=0.001``: options and named points by their name alone, settings with as much of
    their key as tells them apart.

    Args:
        grid: the axes; a point may lack one.
    """
    axes = [key for key in grid if key != "seed"]
    if len(axes) == 1:
        return label(point[axes[0]])
    said = {key: point[key] for key in axes if key in point}
    return " ".join(label(v) if named_by_itself(k, v) else f"{short(k, axes)}={label(v)}" for k, v in said.items()) or "default"


def named_by_itself(key: str, value: Any) -> bool:
    """Whether an axis' value is the name of an option (position=abf) or of a point, and so needs no key."""
    return isinstance(value, dict) or ("." not in key and isinstance(value, str))


def short(key: str, keys: Iterable[str]) -> str:
    """The shortest end of a dotted key that no other one has."""
    parts = key.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
    return next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in keys if other != key)), key)
