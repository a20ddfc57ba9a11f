"""Fields of a row: by name, inside groups (``meta.redpajama_set_name``), or put into a text (``"{question} {answer}"``)."""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Any

from lit_long.config import UserError


def fields_of(setting: str, template: str) -> list[str]:
    """Names in a template, or the one field that it is. Raises UserError for a template that is none."""
    if "{" not in template:
        return [template]
    try:
        fields = [name for _, name, *_ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(f"{setting}: {template!r} is no template: {error}. Write fields as {{name}}, braces as {{{{.") from None
    if not fields or not all(fields):
        raise UserError(f"{setting}: {template!r} names no field, or one without a name. Write fields as {{name}}.")
    return fields


def fill(setting: str, template: str, row: dict[str, Any], kind: str) -> str:
    """The text that a template, or a field's name, makes of a row.

    Raises:
        UserError: a missing field, or one that is no text; the message begins without a place.
    """
    if "{" not in template:
        return _text(setting, template, row, kind)
    parts = string.Formatter().parse(template)
    return "".join(before + ("" if name is None else _text(setting, name, row, kind)) for before, name, *_ in parts)


def _text(setting: str, name: str, row: dict[str, Any], kind: str) -> str:
    value = value_of(setting, name, row, kind)
    if not isinstance(value, str):
        raise UserError(
            f"field '{name}' holds {'nothing (null)' if value is None else type(value).__name__} instead of text. "
            f"{advice(setting, 'another field')}, or take such documents out."
        )
    return value


def value_of(setting: str, name: str, row: dict[str, Any], kind: str) -> Any:
    """The value of a field. Raises UserError if there is none."""
    found = _inside(row, name)
    if found is None:
        value: Any = row
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                break
            value = value[part]
        there = names(value) if isinstance(value, dict) else f"a {type(value).__name__}"
        meant = {"where": "the one that holds it", "schema": "the form that the rows have"}
        wanted = meant.get(setting.rpartition(".")[2], "the one that holds the text")
        raise UserError(f"has no {kind} '{name}', but {there}. {advice(setting, wanted)}.")
    return found[0]


def _inside(row: Any, name: str) -> tuple[Any] | None:
    """The value that ``name`` has in a row, or in its groups; a name may hold dots itself."""
    if not isinstance(row, dict):
        return None
    if name in row:
        return (row[name],)
    heads = (name[:at] for at, sign in enumerate(name) if sign == ".")
    return next((found for head in heads if head in row and (found := _inside(row[head], name[len(head) + 1 :]))), None)


def advice(setting: str, wanted: str) -> str:
    """For messages; paths that commands name (``text=``) have no settings."""
    return (
        f"Set {setting} to {wanted}"
        if setting.startswith("data.")
        else "Documents are taken from the field 'text'; rename it there"
    )


def column_of(name: str, columns: Iterable[str]) -> str | None:
    """The column that holds a field: itself, or the group that it lies in."""
    fitting = [column for column in columns if name == column or name.startswith(f"{column}.")]
    return max(fitting, key=len, default=None)


def names(found: Iterable[object]) -> str:
    """For messages, not too many."""
    quoted = [f"'{name}'" for name in map(str, found)]
    return ", ".join(quoted[:12]) + (", …" if len(quoted) > 12 else "") if quoted else "none at all"
