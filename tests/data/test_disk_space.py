"""How much disk is asked for before anything is read."""

from __future__ import annotations

import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lit_long.config import CorpusConfig, DataConfig, SourceConfig, StageConfig
from lit_long.data import sources as reading
from lit_long.data.disk_space import estimate_disk_space
from lit_long.data.sources import resolve_source
from lit_long.launch.runner import CORPUS_BYTES, estimate_bytes
from lit_long.stages.plan import CORPUS, place_stage
from tests.data.own import store_of, write_gz, write_jsonl, write_parquet, write_text, write_zst

WRITERS = {
    "text": write_text,
    "in.jsonl": write_jsonl,
    "in.jsonl.gz": write_gz,
    "in.jsonl.zst": write_zst,
    "in.parquet": write_parquet,
}


def space(source, folder, **corpus):
    return estimate_disk_space(CorpusConfig(**corpus), {"mine": resolve_source("mine", source)}, folder)


@pytest.mark.parametrize("name", WRITERS)
def test_the_least_is_no_more_than_what_is_written(name, tmp_path):
    """Otherwise a disk that is large enough would be refused. What is told lies between a quarter and four times the truth."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-c]*.py"))]
    path = WRITERS[name](tmp_path / name, texts)
    about, least = space(SourceConfig(path=str(path)), tmp_path / "store")
    store = store_of(tmp_path / "store", path)
    written = sum(file.stat().st_size for file in (store.folder / "mine" / "shards").glob("*.tokens"))
    assert 0 < least <= written and about / 4 <= written <= about * 4
    assert space(SourceConfig(path=str(path)), store.folder)[1] == 0  # all is there


def test_what_changes_it(tmp_path):
    path = str(write_jsonl(tmp_path / "in.jsonl"))
    about, least = space(SourceConfig(path=path), tmp_path)
    assert space(SourceConfig(path=path, keep=0.5), tmp_path) == (
        pytest.approx(about / 2, abs=2),
        pytest.approx(least / 2, abs=2),
    )
    assert space(SourceConfig(path=path), tmp_path, vocab_size=128_000) == (
        pytest.approx(2 * about, abs=2),
        pytest.approx(2 * least, abs=2),
    )
    assert space(SourceConfig(path=path, min_characters=500), tmp_path) == (about, 0)
    assert space(SourceConfig(path=path, max_characters=500), tmp_path) == (about, 0)


def test_shards_that_are_there_count(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PART_BYTES", 3000)
    path = write_jsonl(tmp_path / "in.jsonl")
    store = store_of(tmp_path / "store", path)
    source = SourceConfig(path=str(path))
    shards = sorted((store.folder / "mine" / "shards").glob("*.tokens"))
    for file in shards[2:]:
        file.unlink()
    there = sum(file.stat().st_size for file in shards[:2])
    assert space(source, tmp_path)[0] - space(source, store.folder)[0] == there > 0


def test_a_sweep_asks_for_it(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", ["words " * 100_000])
    source = resolve_source("mine", SourceConfig(path=str(path)))
    data = DataConfig(sources={"mine": source}, weights={"mine": 1.0})
    both = replace(data, weights={"mine": 0.5, "docs": 0.5})
    alone, beside = (
        estimate_bytes(place_stage(tmp_path, CORPUS, StageConfig(kind="data", data=found))) for found in (data, both)
    )
    assert (
        alone
        == estimate_disk_space(data.corpus, data.sources, tmp_path)[1]
        == path.stat().st_size * np.dtype("u2").itemsize // 4 // 10
    )
    assert beside == alone + CORPUS_BYTES
