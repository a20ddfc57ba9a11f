"""What of a row is the document: a field, or a text that several fields make; and whether the row counts at all.

``text: content`` takes one field, ``text: "{question}\\n\\n{answer}"`` puts fields into a text, as instruction data need. ``where`` keeps the
rows that hold the given values. A dot goes into a group: ``meta.redpajama_set_name``.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Any

from lit_long.config import SourceConfig, UserError


def columns(key: str, source: SourceConfig) -> list[str]:
    """Top-level fields that a source's rows must have. Raises UserError for a template that is none."""
    return sorted({name.partition(".")[0] for name in [*_fields(key, source), *source.where]})


def _fields(key: str, source: SourceConfig) -> list[str]:
    if "{" not in source.text:
        return [source.text]
    try:
        fields = [name for _, name, *_ in string.Formatter().parse(source.text) if name is not None]
    except ValueError as error:
        raise UserError(
            f"{key}.text: {source.text!r} is no template: {error}. Write fields as {{name}}, braces as {{{{."
        ) from None
    if not fields or not all(fields):
        raise UserError(f"{key}.text: {source.text!r} names no field, or one without a name. Write fields as {{name}}.")
    return fields


def document(key: str, source: SourceConfig, row: dict[str, Any], kind: str = "field") -> str | None:
    """The row's text, or None where ``where`` leaves it out.

    Raises:
        UserError: a missing field, or one that is no text; the message begins without a place.
    """
    for name, wanted in source.where.items():
        if str(_value(f"{key}.where", name, row, kind)) != wanted:
            return None
    if "{" not in source.text:
        return _text(key, source.text, row, kind)
    parts = string.Formatter().parse(source.text)
    return "".join(before + ("" if name is None else _text(key, name, row, kind)) for before, name, *_ in parts)


def _text(key: str, name: str, row: dict[str, Any], kind: str) -> str:
    value = _value(f"{key}.text", name, row, kind)
    if not isinstance(value, str):
        raise UserError(
            f"field '{name}' holds {'nothing (null)' if value is None else type(value).__name__} instead of text. "
            f"Set {key}.text to another field, or take such documents out."
        )
    return value


def _value(setting: str, name: str, row: dict[str, Any], kind: str) -> Any:
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            found = names(value) if isinstance(value, dict) else f"a {type(value).__name__}"
            raise UserError(
                f"has no {kind} '{name}', but {found}. Set {setting} to the one that holds {'it' if 'where' in setting else 'the text'}."
            )
        value = value[part]
    return value


def names(found: Iterable[object]) -> str:
    """For messages, not too many."""
    quoted = [f"'{name}'" for name in map(str, found)]
    return ", ".join(quoted[:12]) + (", …" if len(quoted) > 12 else "") if quoted else "none at all"
