"""What of a row is the document: a field, or a text that several fields make; and whether the row counts at all.

``text: content`` takes one field, ``text: "{question}\\n\\n{answer}"`` puts fields into a text. ``where`` keeps the rows that hold the given
values. A dot goes into a group: ``meta.redpajama_set_name``, unless a field's name has it. Of instruction data the whole row is the document (conversations.py).
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from lit_long.config import SourceConfig
from lit_long.data.conversations import canonical, columns_of
from lit_long.data.fields import fields_of, fill, value_of


def columns(key: str, source: SourceConfig) -> list[str]:
    """Fields that a source's rows must have, in groups or not. Raises UserError for a template that is none."""
    of_text = columns_of(key, source) if source.instruct.schema else fields_of(f"{key}.text", source.text)
    return sorted({*of_text, *source.where})


def document(key: str, source: SourceConfig, row: dict[str, Any], kind: str = "field") -> str | None:
    """The row's text, or None where ``where`` leaves it out; of instruction data a conversation's JSON, None where it has no answer.

    Raises:
        UserError: a missing field, or one that is no text; the message begins without a place.
    """
    for name, wanted in source.where.items():
        if not holds(value_of(f"{key}.where", name, row, kind), wanted):
            return None
    if source.instruct.schema:
        return canonical(key, source, row, kind)
    return fill(f"{key}.text", source.text, row, kind)


def holds(value: Any, wanted: str) -> bool:
    """Whether a field's value is the one that was written: true, false and null as JSON has them, numbers however they are written."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(ValueError):
            return value == float(wanted)
    return wanted == str(value) or (not isinstance(value, str) and wanted == json.dumps(value, default=str))
