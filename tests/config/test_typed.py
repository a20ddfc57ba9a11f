"""Counts, types and the errors they give."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from lit_long.config import UserError, nearest, plain, typed
from lit_long.config.typed import count, written


@dataclass
class Inner:
    rate: float = 0.5
    names: list[str] = field(default_factory=list)


@dataclass
class Outer:
    tokens: int = 1
    flag: bool = False
    label: str = "x"
    pair: tuple[float, float] = (0.9, 0.95)
    maybe: str | None = None
    shares: dict[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("32k", 32_768), ("4M", 4 * 2**20), ("1B", 2**30), ("1.5k", 1536), ("1e9", 10**9), (1e6, 10**6), ("128", 128), (7, 7)],
)
def test_counts(written, meant):
    value = typed(Outer, {"tokens": written}, "here").tokens
    assert value == meant and isinstance(value, int)


@pytest.mark.parametrize(("number", "text"), [(32_768, "32k"), (2**20, "1M"), (3000, "3000"), (1536, "1536"), (0, "0")])
def test_counts_are_written_as_they_are_read(number, text):
    assert written(number) == text and count(text, "here", "tokens") == number


@pytest.mark.parametrize(
    ("name", "known", "end"),
    [
        ("root", ["prompt", "seed"], "; known here: prompt, seed"),  # three letters in common are no likeness
        ("evaluation", ["activation"], "; known here: activation"),
        ("kye", ["key", "seed"], "; did you mean 'key'?"),
        ("bas", (one for one in ["base", "extend"]), "; did you mean 'base'?"),
        ("qqq", (one for one in ["base", "extend"]), "; known here: base, extend"),
        ("qqq", [], ""),
    ],
)
def test_only_what_is_alike_is_suggested(name, known, end):
    assert nearest(name, known) == end


@pytest.mark.parametrize("wrong", ["six", "1.5", 1.5, True, None, "k", "32kk", [1], float("inf"), float("nan")])
def test_what_is_no_count(wrong):
    with pytest.raises(UserError, match=r"file\.yaml: tokens must be a whole number"):
        typed(Outer, {"tokens": wrong}, "file.yaml")


def test_everything_at_once():
    values = {"flag": True, "pair": [1, "2e-1"], "maybe": None, "shares": {"a": "1e-3"}, "inner": {"rate": 2, "names": ["a"]}}
    built = typed(Outer, values, "here")
    assert built == Outer(flag=True, pair=(1.0, 0.2), shares={"a": 1e-3}, inner=Inner(2.0, ["a"]))
    assert typed(Outer, plain(built), "here") == built


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokns": 1}, "unknown key 'tokns'; did you mean 'tokens'"),
        ({"inner": {"rat": 1}}, "unknown key 'inner.rat'; did you mean 'inner.rate'"),
        ({"inner": {"zzz": 1}}, "known here: names, rate"),
        ({"inner": 3}, "inner must be a group of settings"),
        ({"flag": "yes"}, "flag must be true or false"),
        ({"label": [1]}, "label must be a word"),
        ({"pair": [1]}, "pair must be 2 values"),
        ({"shares": [1]}, "shares must be a group"),
        ({"shares": {"a": "b"}}, "shares.a must be a number"),
        ({"inner": {"names": "a"}}, "inner.names must be a list"),
    ],
)
def test_errors_name_layer_key_and_remedy(values, message):
    with pytest.raises(UserError, match="here: ") as raised:
        typed(Outer, values, "here")
    assert message in str(raised.value)
