"""The grid of variants: its axes, its points, and what each of them is called.

    grid:
      position: [rope, abf]                     an axis: a setting, or a group of options, and its values
      seed: [0, 1, 2]
      size:                                     an axis of named points: settings that go together
        - {name: 7b, model: llama2-7b, optim.lr: 2e-5}
        - {name: 70b, model: llama2-70b, optim.lr: 1e-5, stages.extend.context: 16k}
    exclude:                                    points that are not run: all that agree with one of these
      - {position: rope, size: 70b}

On the command line ``grid.size=[7b]`` picks named points, and naming one value of an axis (``position=abf``, ``seed=1``) leaves that one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lit_long.config.typed import UserError, nearest

NAME = "name"
Point = dict[str, Any]  # axis → value; of a named point the group of its settings, with its name


def grid_axes(
    file: Path, own: dict[str, Any], cli: dict[str, Any], grid: dict[str, Any], all_options: Callable[[str], list[str]]
) -> dict[str, list[Any]]:
    """Flat axes ``{dotted key: values}``; an axis whose key the command line sets to one value has that one.

    Args:
        own: the experiment's grid, where named points are found by name.
        cli: all that the command line says.
        grid: both, merged.
        all_options: what ``grid.position=all`` stands for.
    """
    axes: dict[str, list[Any]] = {}

    def flatten(values: dict[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                flatten(value, f"{prefix}{key}.")
            elif prefix + key == "position" and value == "all":
                axes["position"] = all_options("position")
            elif value is None or value == []:
                raise UserError(f"grid.{prefix}{key} must be a list such as [a,b], not {value!r}")
            else:
                axes[prefix + key] = value if isinstance(value, list) else [value]

    flatten(grid, "")
    chosen = flat_keys(cli.get("grid") or {})
    for key in axes:
        value = fixed_value(cli, key)
        if value is not None and key not in chosen:
            axes[key] = [value]
        axes[key] = named(key, axes[key], own.get(key), file)
    return axes


def named(key: str, values: list[Any], own: Any, file: Path) -> list[Any]:
    """The axis' values; where the experiment has named points, a name stands for its point."""
    for value in values:
        if isinstance(value, dict) and (not isinstance(value.get(NAME), (str, int, float)) or len(value) < 2):
            raise UserError(f"{file}: grid.{key}: {value} must have a name and settings, such as {{name: 7b, model: llama2-7b}}")
    points = {str(value[NAME]): value for value in own or [] if isinstance(value, dict)} if isinstance(own, list) else {}
    if not points:
        return values
    for value in values:
        if not isinstance(value, dict) and str(value) not in points:
            raise UserError(f"grid.{key}: no point {value!r}{nearest(str(value), points)}; {file} has {', '.join(points)}")
    return [value if isinstance(value, dict) else points[str(value)] for value in values]


def fixed_value(cli: dict[str, Any], key: str) -> Any:
    """The one value (or option) that the command line sets for an axis' key, if it does."""
    value: Any = cli
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value.get("option") if isinstance(value, dict) else value


def flat_keys(values: dict[str, Any], prefix: str = "") -> set[str]:
    nested = [flat_keys(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k} for k, v in values.items()]
    return set().union(*nested) if nested else set()


def points(axes: dict[str, list[Any]], exclude: list[dict[str, Any]], where: str) -> Iterator[Point]:
    """Every combination of the axes' values that ``exclude`` leaves."""
    for rule in exclude:
        for axis, value in rule.items():
            if axis not in axes:
                raise UserError(f"{where}: exclude: {axis} is no axis of the grid{nearest(axis, axes)}")
            if str(value) not in (labels := [label(v) for v in axes[axis]]):
                raise UserError(f"{where}: exclude: {axis}={value} is no value of that axis{nearest(str(value), labels)}")
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        if not any(all(label(point[axis]) == str(value) for axis, value in rule.items()) for rule in exclude):
            yield point


def settings_of_point(point: Point) -> Iterator[tuple[str, Any]]:
    """Dotted settings and their values."""
    for key, value in point.items():
        yield from (((k, v) for k, v in value.items() if k != NAME) if isinstance(value, dict) else [(key, value)])


def label(value: Any) -> str:
    """What a value of an axis is called."""
    return str(value[NAME] if isinstance(value, dict) else value)


def variant_name(point: Point) -> str:
    """``abf``; with several axes besides the seed ``abf lr=0.001``: options and named points by their name alone, settings with as much of
    their key as tells them apart."""
    axes = {key: value for key, value in point.items() if key != "seed"}
    if len(axes) == 1:
        return label(*axes.values())
    return " ".join(label(v) if named_by_itself(k, v) else f"{short(k, axes)}={label(v)}" for k, v in axes.items()) or "default"


def named_by_itself(key: str, value: Any) -> bool:
    """Whether an axis' value is the name of an option (position=abf) or of a point, and so needs no key."""
    return isinstance(value, dict) or ("." not in key and isinstance(value, str))


def short(key: str, keys: Iterable[str]) -> str:
    """The shortest end of a dotted key that no other one has."""
    parts = key.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
    return next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in keys if other != key)), key)
