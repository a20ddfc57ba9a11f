"""Swappable positional encoders. ``scheme: abf`` names a built-in, ``scheme: my_module:MyEncoder`` the user's own subclass.

Settings may hold a group ``training``, which changes the positions in training and composes with any scheme
(``training: {transform: pose, …}``, see transforms.py). Building and checking imports no torch; only computing does.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from omegaconf import MISSING

from lit_long.config import UserError, check, nearest
from lit_long.positions.bounds import smallest_base
from lit_long.positions.encoder import PositionalEncoder, Rotation
from lit_long.positions.own_class import ask, check_encoder, check_reach, construct, import_class, is_own
from lit_long.positions.schemes import (
    AdjustedBaseFrequency,
    ALiBi,
    DynamicNTK,
    Llama3,
    LongRoPE,
    NoPE,
    NTKAware,
    NTKByParts,
    PartialRoPE,
    PositionInterpolation,
    PowerBasis,
    RoPE,
    TruncatedBasis,
    XPos,
    XPosABF,
    YaRN,
)
from lit_long.positions.transforms import TRANSFORMS, PositionTransform

SCHEMES: dict[str, type[PositionalEncoder]] = {
    "rope": RoPE,
    "pi": PositionInterpolation,
    "abf": AdjustedBaseFrequency,
    "xpos": XPos,
    "xpos_abf": XPosABF,
    "ntk": NTKAware,
    "dynamic_ntk": DynamicNTK,
    "ntk_by_parts": NTKByParts,
    "yarn": YaRN,
    "longrope": LongRoPE,
    "llama3": Llama3,
    "p_rope": PartialRoPE,
    "power": PowerBasis,
    "truncated": TruncatedBasis,
    "nope": NoPE,
    "alibi": ALiBi,
}


def build(position: dict[str, Any], head_dim: int, where: str = "position", length: int | None = None) -> PositionalEncoder:
    """The encoder that ``position`` (its ``scheme`` and settings) describes, for heads of ``head_dim`` components.

    Args:
        length: tokens of the context that the encoder is for. ``base: auto`` becomes the smallest base that supports it
            (bounds.py), and a scheme that cannot hold it is refused. A class of the user's own is tried with it (own_class.py).

    Raises:
        UserError: an unknown scheme, an unknown setting, one that makes no sense or one that is missing; a class of the user's own that cannot work.
    """
    own = {key: value for key, value in position.items() if key != "training"}
    if own.get("base") == "auto":
        if length is None:
            raise UserError(f"{where}: position.base=auto needs a context to support; pass length=, or give a number")
        own["base"] = smallest_base(length, head_dim)
    encoder = make(PositionalEncoder, "scheme", SCHEMES, own, where, "position.", head_dim=head_dim)
    label = f"{where}: position.scheme {own['scheme']!r}"
    if length is not None:
        ask(encoder, "require_length", length, label)
        if is_own(str(own["scheme"])):
            check_encoder(encoder, length, label)
    if transform := build_transform(position.get("training"), where):
        ask(encoder, "require_length", transform.reach, label)
    return encoder


def build_transform(training: dict[str, Any] | None, where: str = "position") -> PositionTransform | None:
    """What the group ``training`` of the settings does to the positions in training; None without it. Raises like `build`."""
    if training is None:
        return None
    if not isinstance(training, dict):
        raise UserError(f"{where}: position.training must be a group of settings (transform: …), not {training!r}")
    transform = make(PositionTransform, "transform", TRANSFORMS, training, where, "position.training.")
    if is_own(name := str(training["transform"])):
        check_reach(transform, f"{where}: position.training.transform {name!r}")
    return transform


def make(
    base: type, kind: str, known: dict[str, type], values: dict[str, Any], where: str, prefix: str, **given: Any
) -> PositionalEncoder | PositionTransform:
    """An instance of the class that ``values[kind]`` names, from the other values, checked and converted."""
    if kind not in values:
        raise UserError(f"{where}: {prefix}{kind} is missing; known here: {', '.join(known)}")
    name = str(values[kind])
    cls = find(base, known, name, where, prefix + kind)
    own = {key: value for key, value in values.items() if key != kind and value != MISSING}
    checked = check(cls, own, where, prefix) | given
    optional = (dataclasses.MISSING, dataclasses.MISSING)
    for field in dataclasses.fields(cls):
        if field.init and field.name not in checked and (field.default, field.default_factory) == optional:
            raise UserError(f"{where}: {prefix}{field.name} is missing; {values[kind]} has no default for it")
    return construct(cls, checked, f"{where}: {prefix}{kind} {name!r}") if is_own(name) else cls(**checked)


def find(base: type, known: dict[str, type], name: str, where: str, key: str) -> type:
    """The class called ``name``: one of ``known``, or the user's own as ``module:Class``."""
    if is_own(name):
        return import_class(base, name, f"{where}: {key} {name!r}")
    if name not in known:
        raise UserError(f"{where}: unknown {key} {name!r}{nearest(name, known)}")
    return known[name]


def settings(position: dict[str, Any], head_dim: int, where: str = "position", length: int | None = None) -> dict[str, Any]:
    """``position`` with every default spelt out and every value converted, as it enters a stage's identity. Arguments and errors are
    those of `build`."""
    values = {"scheme": position["scheme"]} | dataclasses.asdict(build(position, head_dim, where, length))
    del values["head_dim"]
    if transform := build_transform(position.get("training"), where):
        values["training"] = {"transform": position["training"]["transform"]} | dataclasses.asdict(transform)
    return values


def default_settings(position: dict[str, Any]) -> dict[str, Any]:
    """Those settings of ``position``'s scheme (and of its transform, in ``training``) that have a default, with it."""
    found = class_defaults(find(PositionalEncoder, SCHEMES, position["scheme"], "position", "scheme"))
    if training := position.get("training"):
        found["training"] = class_defaults(find(PositionTransform, TRANSFORMS, training["transform"], "position", "transform"))
    return found


def class_defaults(cls: type) -> dict[str, Any]:
    usual = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
    made = {f.name: f.default_factory() for f in dataclasses.fields(cls) if f.default_factory is not dataclasses.MISSING}
    return usual | made


__all__ = [
    "SCHEMES",
    "TRANSFORMS",
    "PositionTransform",
    "PositionalEncoder",
    "Rotation",
    "build",
    "build_transform",
    "default_settings",
    "settings",
]
