"""Swappable positional encoders. ``scheme: abf`` names a built-in, ``scheme: my_module:MyEncoder`` the user's own subclass.

Building and checking one imports no torch; only computing a rotation does.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from lit_long.config import UserError, check, nearest
from lit_long.positions.encoder import PositionalEncoder, Rotation, rotate
from lit_long.positions.schemes import AdjustedBaseFrequency, PositionInterpolation, RoPE, XPosABF

SCHEMES: dict[str, type[PositionalEncoder]] = {
    "rope": RoPE,
    "pi": PositionInterpolation,
    "abf": AdjustedBaseFrequency,
    "xpos_abf": XPosABF,
}


def build(position: dict[str, Any], head_dim: int, where: str = "position") -> PositionalEncoder:
    """The encoder that ``position`` (its ``scheme`` and settings) describes, for heads of ``head_dim`` components.

    Raises:
        UserError: an unknown scheme, an unknown setting or one that makes no sense.
    """
    settings = dict(position)
    scheme = settings.pop("scheme", None)
    if scheme is None:
        raise UserError(f"{where}: position.scheme is missing; known here: {', '.join(SCHEMES)}")
    found = find_scheme(str(scheme), where)
    return found(head_dim=head_dim, **check(found, settings, where, "position."))


def find_scheme(scheme: str, where: str) -> type[PositionalEncoder]:
    if ":" not in scheme:
        if scheme not in SCHEMES:
            raise UserError(f"{where}: unknown position.scheme {scheme!r}{nearest(scheme, SCHEMES)}")
        return SCHEMES[scheme]
    module, _, name = scheme.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}: position.scheme {scheme!r} cannot be imported: {error}") from None
    if not (isinstance(found, type) and issubclass(found, PositionalEncoder) and dataclasses.is_dataclass(found)):
        raise UserError(f"{where}: position.scheme {scheme!r} must be a dataclass derived from PositionalEncoder")
    return found


def settings(position: dict[str, Any], head_dim: int, where: str = "position") -> dict[str, Any]:
    """``position`` with every default spelt out and every value converted, as it enters a stage's identity."""
    values = dataclasses.asdict(build(position, head_dim, where))
    del values["head_dim"]
    return {"scheme": position["scheme"]} | values


__all__ = ["SCHEMES", "PositionalEncoder", "Rotation", "build", "find_scheme", "rotate", "settings"]
