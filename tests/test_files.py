"""A log of what was done, which a process that is killed leaves readable."""

from __future__ import annotations

import pytest

from lit_long.files import Log


@pytest.mark.parametrize("torn", [b"", b'["half of a li', b"\0" * 30, b"\0" * 30 + b"\n", b'{"no": json}\n["later"]\n'])
def test_a_log_goes_on_after_whatever_a_kill_or_a_power_cut_left(tmp_path, torn):
    file = tmp_path / "new" / "a.log"
    log = Log(file, "recipe")
    entries = [["ü \n\r\u2028", 1], [], {"a": None}]
    for entry in entries:
        log.add(entry)
    whole = file.read_bytes()
    file.write_bytes(whole + torn)
    again = Log(file, "recipe")
    assert again.entries == log.entries == entries and file.read_bytes() == whole
    again.add("next")
    assert Log(file, "recipe").entries == [*entries, "next"]


def test_another_recipe_begins_anew(tmp_path):
    Log(tmp_path / "a.log", "one").add(1)
    assert Log(tmp_path / "a.log", "two").entries == []
    assert Log(tmp_path / "a.log", "one").entries == []
