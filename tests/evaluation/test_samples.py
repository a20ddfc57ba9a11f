"""The file of samples: what a killed evaluation leaves is found again, and nothing is mixed."""

from __future__ import annotations

import json

import pytest

from lit_long.config import UserError
from lit_long.evaluation.samples import Key, Samples

ABOUT = {"task": "needle", "prompt": "v1", "seed": 0}
FIRST, SECOND = Key("docs", 128, 0), Key("docs", 128, 1)


def test_goes_on_after_a_torn_line(tmp_path):
    file = tmp_path / "samples" / "needle.jsonl"
    with Samples(file, ABOUT) as samples:
        samples.add(FIRST, {"written": "ä\n", "score": 1.0})
        assert json.loads(file.read_text().splitlines()[1])["score"] == 1.0  # on disk at once
        samples.add(SECOND, {"written": "b", "score": 0.0})
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    with Samples(file, ABOUT) as samples:
        assert list(samples.records) == [FIRST] and samples.records[FIRST]["written"] == "ä\n"
        samples.add(SECOND, {"written": "b", "score": 0.0})
    assert file.read_bytes() == whole


def test_even_the_first_line_may_be_torn(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"task": "nee')
    with Samples(tmp_path / "x.jsonl", ABOUT) as samples:
        assert not samples.records
        samples.add(FIRST, {"score": 1.0})
    with Samples(tmp_path / "x.jsonl", ABOUT) as samples:
        assert list(samples.records) == [FIRST]


def test_order_is_that_of_the_keys(tmp_path):
    with Samples(tmp_path / "x.jsonl", ABOUT) as samples:
        for key in (SECOND, Key("code", 256, 0), FIRST):
            samples.add(key, {})
        assert [(each["domain"], each["length"], each["index"]) for each in samples] == [
            ("code", 256, 0),
            ("docs", 128, 0),
            ("docs", 128, 1),
        ]


def test_samples_of_something_else_are_refused(tmp_path):
    file = tmp_path / "x.jsonl"
    with Samples(file, ABOUT) as samples:
        samples.add(FIRST, {"score": 1.0})
    before = file.read_bytes()
    with (
        pytest.raises(UserError, match=r"another evaluation, which differs in prompt, seed; name another out="),
        Samples(file, ABOUT | {"prompt": "v2", "seed": 1}),
    ):
        pass
    for junk in ("not json\n", '{"task": "needle", "prompt": "v1", "seed": 0}\n{"no": "key"}\n', "[1]\n"):
        (tmp_path / "junk.jsonl").write_text(junk)
        with pytest.raises(UserError, match=r"junk.jsonl: "), Samples(tmp_path / "junk.jsonl", ABOUT):
            pass
        assert (tmp_path / "junk.jsonl").read_text() == junk
    assert file.read_bytes() == before
