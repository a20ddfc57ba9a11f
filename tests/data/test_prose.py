"""What `make prose` unpacks, on small packages of the same form; the real ones come from Debian and npm."""

from __future__ import annotations

import gzip
import importlib.util
import json
import zlib

import numpy as np
import pytest
import rdata

from tests.integration.mini import REPOSITORY


@pytest.fixture(scope="module")
def fetch():
    spec = importlib.util.spec_from_file_location("fetch_prose", REPOSITORY / "experiments" / "fetch_prose.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def serialized(value, place) -> bytes:
    """What R's `serialize` writes, by rdata's own writer."""
    rdata.write_rds(place / "x.rds", value)
    return gzip.decompress((place / "x.rds").read_bytes())


def test_novels_out_of_an_r_package(fetch, tmp_path):
    novels = {"emma": ["EMMA", "", "Émile said “no”."], "persuasion": ["Persuasion", ""]}
    blocks, places = b"", {}
    for name, lines in novels.items():
        raw = serialized(np.array(lines), tmp_path)
        block = len(raw).to_bytes(4, "big") + zlib.compress(raw)
        places[name] = np.array([len(blocks), len(block)], dtype=np.int32)
        blocks += block
    folder = tmp_path / "package" / "data"
    folder.mkdir(parents=True)
    rdata.write_rds(folder / "Rdata.rdx", {"variables": places, "references": {}})
    (folder / "Rdata.rdb").write_bytes(blocks)
    assert dict(fetch.read_rdb(tmp_path)) == {"emma": "EMMA\n\nÉmile said “no”.\n", "persuasion": "Persuasion\n"}


def test_chapters_are_in_order_and_speeches_have_names(fetch, tmp_path):
    for name in ("etymology", "extracts", "chapter_10", "chapter_9", "chapter_1", "epilogue"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    assert fetch.moby_dick(tmp_path).split() == ["etymology", "extracts", "chapter_1", "chapter_9", "chapter_10", "epilogue"]
    speech = {"year": 1790, "name": "George Washington", "party": "none", "text": " Fellow-Citizens: "}
    (tmp_path / "1790_george_washington_n.json").write_text(json.dumps(speech))
    assert list(fetch.speeches(tmp_path)) == [("George Washington - 1790", "Fellow-Citizens:\n")]
