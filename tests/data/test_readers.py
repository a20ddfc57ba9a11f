"""``where``: rows by the value of a field, of whatever type it is in the file."""

from __future__ import annotations

import pytest

from lit_long.data.readers import make_document, matches
from tests.config.test_text import source

ROWS = [  # as /cases/where_bool.jsonl
    {"text": "a", "ok": True, "lang": "en", "year": 2020, "score": 0.5, "meta": {"set": None}},
    {"text": "b", "ok": False, "lang": "no", "year": 2021, "score": 1.0, "meta": {"set": "x"}},
    {"text": "c", "ok": True, "lang": "no", "year": 2020, "score": 1.0, "meta": {"set": "null"}},
]


@pytest.mark.parametrize(
    ("word", "kept"),
    [("lang=no", "bc"), ("ok=true", "ac"), ("ok=True", "ac"), ("ok=false", "b"), ("year=2020", "ac"), ("year=2_021", "b"), ("score=0.50", "a"),
     ("score=1", "bc"), ("meta.set=x", "b"), ("meta.set=null", "ac"), ("lang=false", ""), ("year=no", "")],
)  # fmt: skip
def test_rows_are_chosen_by_what_was_typed(word, kept):
    own = source("path=x", f"where.{word}")
    assert "".join(text for row in ROWS if isinstance(text := make_document("s", own, row), str)) == kept


def test_texts_are_compared_as_they_are():
    assert matches("010", "010") and not matches("8", "010") and not matches("0.5", "0.50") and not matches("true", "True")
    assert matches([1, "a"], '[1, "a"]') and not matches(True, "1")


def test_large_numbers_are_compared_exactly():
    assert (
        matches(2**53 + 1, str(2**53 + 1))
        and not matches(2**53 + 1, str(2**53))
        and matches(5, "5.0")
        and matches(1e3, "1e3")
        and matches(0.1, "0.10")
    )
