"""Preparing is a pure function of files, settings and tokenizer, whatever the processes and however often it is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lit_long.config import SourceConfig, UserError
from lit_long.data import shards, sources
from lit_long.data.prepare import prepare
from lit_long.data.token_store import open_store, verify
from tests.data.own import CORPUS, TEXTS, all_texts, store_of, write_jsonl, write_text

REPOSITORY = Path(__file__).parents[2]


def files_of(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture
def many(tmp_path):
    """A source of twelve shards, for each file is one."""
    (tmp_path / "in").mkdir()
    for i in range(12):
        write_jsonl(tmp_path / "in" / f"{i:02}.jsonl", TEXTS[i * 5 : i * 5 + 5])
    return tmp_path / "in"


def test_one_process_or_two_write_the_same_bytes(many, tmp_path):
    store_of(tmp_path / "one", many)
    store_of(tmp_path / "two", many, processes=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


SCRIPT = """
import sys
from pathlib import Path
from lit_long.data import shards
from tests.data.own import store_of
wait = shards.write_atomically
def slow(file, content):
    wait(file, content)
    print("shard", flush=True)
    sys.stdin.readline()
shards.write_atomically = slow
store_of(Path(sys.argv[2]), Path(sys.argv[1]))
"""


def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(many, tmp_path):
    store_of(tmp_path / "whole", many)
    command = [sys.executable, "-c", SCRIPT, str(many), str(tmp_path / "killed")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY, env=environment) as process:
        for _ in range(5):
            assert process.stdout.readline() == b"shard\n"
            if _ < 4:
                process.stdin.write(b"\n")
                process.stdin.flush()
        process.send_signal(signal.SIGKILL)
    folder = tmp_path / "killed" / "mine" / "shards"
    there = sorted(folder.glob("*.json"))
    assert len(there) == 5 and not (tmp_path / "killed" / "manifest.json").exists()
    with pytest.raises(UserError, match="no prepared data"):
        open_store(tmp_path / "killed")
    (folder / ".000005.tokens.1.writing").write_bytes(b"half")  # what a kill in the middle of a write leaves
    before = [file.stat().st_mtime_ns for file in there]
    store_of(tmp_path / "killed", many)
    assert [file.stat().st_mtime_ns for file in there] == before, "finished shards were made again"
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_what_was_made_from_something_else_is_made_again(many, tmp_path):
    store_of(tmp_path / "store", many)
    write_jsonl(many / "03.jsonl", ["Another text."])
    (many / "11.jsonl").unlink()
    store_of(tmp_path / "store", many)
    store_of(tmp_path / "fresh", many)
    assert files_of(tmp_path / "store") == files_of(tmp_path / "fresh")


def test_a_changed_tokenizer_tokenises_again(many, tmp_path):
    store_of(tmp_path / "store", many)
    expected = files_of(tmp_path / "store")
    file = tmp_path / "store" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(UserError, match=r"tokenizer\.json is not the one"):
        open_store(tmp_path / "store")
    store_of(tmp_path / "store", many)
    assert files_of(tmp_path / "store") == expected


def test_damaged_shards_are_found(many, tmp_path):
    store = store_of(tmp_path / "store", many)
    assert verify(store) == []
    file = tmp_path / "store" / "mine" / "shards" / "000004.tokens"
    content = file.read_bytes()
    file.write_bytes(content[:-2])
    with pytest.raises(UserError, match=r"000004\.tokens has \d+ bytes instead of \d+"):
        open_store(tmp_path / "store")
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert verify(open_store(tmp_path / "store")) == [file]


def test_a_full_disk_is_said_and_what_was_written_stays(many, tmp_path, monkeypatch):
    real, written = os.fsync, []

    def full(number):
        written.append(number)
        if len(written) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "fsync", full)
        with pytest.raises(UserError, match="No space left on the disk that holds .*goes on where it was"):
            store_of(tmp_path / "store", many)
    assert len(list((tmp_path / "store").rglob("shards/*.json"))) == 3
    assert all_texts(store_of(tmp_path / "store", many)) == sorted(TEXTS)


def test_documents_are_packed_like_any_other(tmp_path, monkeypatch):
    from lit_long.data.datamodule import LongContextDataModule

    monkeypatch.setattr(sources, "PART_BYTES", 3000)
    store = store_of(tmp_path / "store", write_text(tmp_path / "in"), validation_share=0.3)
    assert len(store.sources["mine"]["shards"]) > 5
    data = LongContextDataModule(store, weights={"mine": 1.0}, context=64, tokens_per_update=256, updates=3)
    batches = list(data.train_dataloader())
    assert [batch.tokens.shape for batch in batches] == [(4, 64)] * 3 and data.domains == ["mine"]
    (held,) = data.val_dataloader()
    (batch,) = held
    assert batch.tokens.shape[1] == 64


def test_beside_the_builtin_corpus(corpus, store, tmp_path):
    write_jsonl(tmp_path / "in.jsonl")
    prepare(corpus, tmp_path / "store", sources={"mine": SourceConfig(path=f"{tmp_path}/in.jsonl")})
    both = open_store(tmp_path / "store")
    assert both.domains == ["code", "docs", "mine"]
    documents = both.documents("code", "train")
    assert documents.names == store.documents("code", "train").names
    assert all_texts(both) == sorted(TEXTS)


def test_the_sample_for_the_tokenizer_is_the_same_for_any_place(tmp_path):
    one = store_of(tmp_path / "one", write_jsonl(tmp_path / "in.jsonl"))
    (tmp_path / "else").mkdir()
    two = store_of(tmp_path / "two", write_jsonl(tmp_path / "else" / "in.jsonl"))
    assert one.manifest["digest"] == two.manifest["digest"] and CORPUS.vocab_size == one.manifest["vocab_size"]


def test_another_setting_of_the_source_makes_its_shards_again(many, tmp_path):
    """In the same folder, as a program may prepare twice; the commands give other settings another folder."""
    store_of(tmp_path / "store", many)
    store_of(tmp_path / "store", many, min_characters=400)
    store_of(tmp_path / "fresh", many, min_characters=400)
    assert files_of(tmp_path / "store") == files_of(tmp_path / "fresh")
