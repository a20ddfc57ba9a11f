"""Texts that evaluations read."""

from __future__ import annotations

import gzip

import pytest

from lit_long.config import UserError
from lit_long.evaluation.in_memory_corpus import own_texts


def test_own_texts_are_what_the_path_holds(tmp_path):
    """The same reader as training's: any name, compression and mixture; keys are those of the command."""
    said = []
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json.gz").write_bytes(gzip.compress(b'{"text": "one"}\n{"text": "two\\u2028"}\n'))
    (tmp_path / "in" / "b.JSON").write_text('[{"text": "three"}]')
    (tmp_path / "in" / "README.md").write_text("About.")
    assert own_texts(f"{tmp_path}/in", said.append) == {"text": ["one", "two\u2028", "three"]}
    assert said == [f"text={tmp_path}/in: 1 file left out: 1 about the data (README.md)"]
    (tmp_path / "in" / "c.jsonl").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match=r"^text=.*c\.jsonl: is a pointer of Git LFS"):
        own_texts(f"{tmp_path}/in")
    (tmp_path / "in" / "c.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(UserError, match=r"^text=.*has no field 'text', but 'body'\. Documents are taken from the field 'text'"):
        own_texts(f"{tmp_path}/in")
    (tmp_path / "d.txt").write_text('[{"text": "x"}]')
    with pytest.raises(
        UserError, match=r"d\.txt: looks like JSON, which is no prose\. .*the ending \.json; else move it elsewhere"
    ):
        own_texts(f"{tmp_path}/d.txt")
