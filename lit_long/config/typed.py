"""Values against dataclasses: counts such as 32k, and errors that name the layer, the key and the nearest right one."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, get_args, get_origin

from lit_long.config.ranges import PATH, Choice, Range
from lit_long.config.text import bare, field_types

T = TypeVar("T")
NOT_IDENTITY = {"identity": False}  # metadata of a dataclass field that says where or how a stage runs, not what it computes
GPU_IDENTITY = {"identity": "gpu"}  # of one that changes a result on GPUs only
TRAIN_IDENTITY = {"identity": "train"}  # of one in the data that changes not the prepared data, but what is trained on
NOT_A_SETTING = {"setting": False}  # metadata of a dataclass field that code fills in, not the user
GROUP = "a group of settings (key: value), such as {0}.NAME=… or, in quotes, '{0}={{NAME: …}}'"
COUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kKMGB])")
COUNT_UNITS = {"k": 2**10, "K": 2**10, "M": 2**20, "G": 2**30, "B": 2**30}
ALIKE = 0.65  # of a name that is suggested; at 0.6 root is like prompt


class UserError(Exception):
    """Something the user can put right. The message says what is wrong, where, and what to do; commands exit with code 2."""


class Unfit(UserError):
    """Texts or lengths do not suffice for what is asked of them. The message names no key: whoever asks says with `advising` which of its own help."""


@contextlib.contextmanager
def advising(remedy: str) -> Iterator[None]:
    """Add to an `Unfit` which settings of this command change it."""
    try:
        yield
    except Unfit as error:
        raise UserError(f"{error} {remedy}") from None


def typed(cls: type[T], values: dict[str, Any], where: str, prefix: str = "") -> T:
    """Build the dataclass ``cls`` from plain values; missing ones take their defaults.

    Args:
        where: the file or "command line" that the values come from, for error messages.
        prefix: dotted path of ``values`` within its layer, such as ``"model."``.

    Raises:
        UserError: an unknown key, a value of the wrong type, or a number out of its range.
    """
    return cls(**check(cls, values, where, prefix))


def check(cls: type, values: dict[str, Any], where: str, prefix: str = "", leaves: Iterable[str] = ()) -> dict[str, Any]:
    """Checked and converted values of the dataclass ``cls``: only the keys given, nested dataclasses built.

    Strings that hold an OmegaConf interpolation (``${…}``) pass unchecked; they are checked again once resolved.
    ``leaves`` are dotted names known elsewhere in the schema, offered when a key is unknown.
    """
    annotations, names = field_types(cls), setting_names(cls)
    converted = {}
    for key, value in values.items():
        if key not in names:
            raise UserError(f"{where}: unknown key {prefix + str(key)!r}{nearest(str(key), names, prefix, leaves)}")
        converted[key] = convert(annotations[key], value, where, prefix + key)
    return converted


@functools.cache
def setting_names(cls: type) -> list[str]:
    """The fields of a dataclass that are the user's to set."""
    return [f.name for f in dataclasses.fields(cls) if f.init and f.metadata.get("setting", True)]


def nearest(key: str, names: Iterable[str], prefix: str = "", leaves: Iterable[str] = ()) -> str:
    """The end of an "unknown …" sentence: the nearest known name, or all of them; "" where none is known."""
    names = list(names)
    elsewhere = [leaf for leaf in leaves if leaf.rpartition(".")[2] == key]
    close = [prefix + name for name in difflib.get_close_matches(key, names, n=1, cutoff=ALIKE)]
    if found := elsewhere[:3] or close:
        return f"; did you mean {' or '.join(repr(name) for name in found)}?"
    return f"; known here: {', '.join(sorted(names))}" if names else ""


def convert(annotation: Any, value: Any, where: str, key: str) -> Any:
    """``value`` as ``annotation`` wants it."""
    kind, optional, notes = bare(annotation)
    if kind is Any or (isinstance(value, str) and "${" in value) or (value is None and optional):
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        if dataclasses.is_dataclass(value):
            return value
        require(isinstance(value, dict), where, key, getattr(kind, "wanted", GROUP.format(key)), value)
        return kind(**check(kind, value, where, key + "."))
    if origin is list:
        require(isinstance(value, list), where, key, "a list such as [a,b]", value)
        return [convert(arguments[0], item, where, f"{key}[{i}]") for i, item in enumerate(value)]
    if origin is tuple:
        fits = isinstance(value, (list, tuple)) and len(value) == len(arguments)
        require(fits, where, key, f"{len(arguments)} values", value)
        return tuple(convert(a, item, where, f"{key}[{i}]") for i, (a, item) in enumerate(zip(arguments, value, strict=True)))
    if origin is dict:
        require(isinstance(value, dict), where, key, GROUP.format(key), value)
        entries = flat(value) if bare(arguments[1])[0] in (str, int, float) else value
        return {str(name): convert(arguments[1], item, where, f"{key}.{name}") for name, item in entries.items()}
    converted = scalar(kind, value, where, key)
    if kind in (int, float):
        allowed = next((note for note in notes if isinstance(note, Range)), Range())
        finite = " and finite" if allowed != Range() and not math.isfinite(converted) else ""
        require(converted in allowed, where, key, f"{allowed}{finite}", converted)
    if words := next((note for note in notes if isinstance(note, Choice)), None):
        require(converted in words, where, key, str(words), converted)
    if PATH in notes:
        check_path(converted, where, key)
    return converted


def check_path(path: str, where: str, key: str) -> None:
    """Raise UserError for ``~NAME`` of nobody, which `Path.expanduser` has a RuntimeError for."""
    known = not os.path.expanduser(path).startswith("~")
    require(known, where, key, "a path whose ~ or ~NAME is a user's home folder (./~NAME is a name like any other)", path)


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{meta: {language: en}}``, as dotted keys of the command line make it, as ``{meta.language: en}``."""
    entries = [flat(v, f"{prefix}{k}.") if isinstance(v, dict) and v else {f"{prefix}{k}": v} for k, v in value.items()]
    return {name: item for group in entries for name, item in group.items()}


def scalar(annotation: type, value: Any, where: str, key: str) -> Any:
    if annotation is bool:
        require(isinstance(value, bool), where, key, "true or false", value)
        return value
    if annotation is int:
        return count(value, where, key)
    if annotation is float:
        if isinstance(value, str):  # YAML reads 1e-3 as a string
            try:
                value = float(value)
            except ValueError:
                value = count(value, where, key) if COUNT.fullmatch(value) else value
        require(isinstance(value, (int, float)) and not isinstance(value, bool), where, key, "a number", value)
        return float(value)
    is_text = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    require(is_text, where, key, "a word or a text; in a file put quotes around what YAML takes for something else ('no')", value)
    return str(value)


def count(value: Any, where: str, key: str) -> int:
    """An integer from 4096, 4k (binary), 4M, 1B or 1e9."""
    if isinstance(value, str) and (match := COUNT.fullmatch(value)):
        value = float(match[1]) * COUNT_UNITS[match[2]]
    elif isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
    require(whole, where, key, "a whole number such as 4096, 32k (= 32,768), 4M or 1e9", value)
    return int(value)


def written(number: int) -> str:
    """A count as people write it: 32k for 32,768."""
    size, unit = next(((2**bits, unit) for unit, bits in (("M", 20), ("k", 10)) if number and number % 2**bits == 0), (1, ""))
    return f"{number // size}{unit}"


def require(condition: bool, where: str, key: str, wanted: str, got: Any) -> None:
    if not condition:
        raise UserError(f"{where}: {key} must be {wanted}, not {got!r}")


def refuse_idle_keys(config: Any, choice: str, own: dict[str, tuple[str, ...]], common: tuple[str, ...]) -> None:
    """Raise a UserError for a key that says nothing to the kind that ``config.name`` chooses.

    Args:
        choice: the key that chooses, such as tracking.name, for the message.
        own: the keys of each kind, besides those that are ``common`` to all.
    """
    for f in dataclasses.fields(config):
        if f.name not in (*common, *own[config.name]) and getattr(config, f.name) != getattr(type(config)(), f.name):
            users = [kind for kind, keys in own.items() if f.name in keys]
            raise UserError(
                f"{choice.partition('.')[0]}.{f.name} says nothing to {choice}={config.name}; it is for {choice}={' or '.join(users)}"
            )


def plain(value: Any) -> Any:
    """Dataclasses, tuples and dicts as plain dicts, lists and scalars (for YAML and JSON)."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def differing(value: Any, *scopes: str) -> Any:
    """The fields of a dataclass that differ from their defaults, those of nested dataclasses likewise, as plain values.

    Left out are fields marked NOT_IDENTITY, and those marked GPU_IDENTITY or TRAIN_IDENTITY unless "gpu" or "train" is among ``scopes``. This is
    what identities are made of (stages/identity.py): a new field with its default changes none.
    """
    if dataclasses.is_dataclass(value):
        default, found = type(value)(), {}
        for f in dataclasses.fields(value):
            counts, own = f.metadata.get("identity", True), getattr(value, f.name)
            if own == getattr(default, f.name) or (counts is not True and counts not in scopes):
                continue
            part = differing(own, *scopes)
            if part or not dataclasses.is_dataclass(own):
                found[f.name] = part
        return found
    if isinstance(value, dict):
        return {key: differing(item, *scopes) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [differing(item, *scopes) for item in value]
    return value
