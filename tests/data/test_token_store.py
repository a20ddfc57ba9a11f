from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from lit_long.config import CorpusConfig, UserError
from lit_long.data.builtin_corpus import read_source
from lit_long.data.prepare import _digest, prepare
from lit_long.data.token_store import open_store
from lit_long.data.tokenizer import SEPARATOR, encode_documents, train_tokenizer
from tests.data.large_store import opening, synthetic_store


def scrambled(length):
    points = [point for point in range(0x300) if point] + list(range(0x4E00, 0x4F00)) + list(range(0x1F600, 0x1F650))
    return "".join(chr(random.Random(0).choice(points)) if i % 3 else chr(points[i % len(points)]) for i in range(length))


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n\t  x", "naïve 漢字 🦙", f"the string {SEPARATOR} in a text", "\x00\x7f", scrambled(2000)]
)
def test_encoding_is_lossless_and_the_separator_is_no_text(store, text):
    (tokens,) = encode_documents(store.tokenizer, [text], store.separator)
    separator = store.separator
    assert tokens[0] == separator and separator not in tokens[1:]
    assert store.tokenizer.decode(tokens[1:].tolist(), skip_special_tokens=False) == text


def test_tokenizer_has_the_wanted_size_and_compresses(store, corpus):
    assert store.tokenizer.get_vocab_size() == corpus.vocab_size == store.manifest["vocab_size"]
    entry = store.manifest["domains"]["code"]["train"]
    assert entry["bytes"] / entry["tokens"] > 2


def test_a_vocabulary_smaller_than_the_bytes_is_an_error():
    with pytest.raises(UserError, match=r"data\.corpus\.vocab_size is 256"):
        train_tokenizer(["text"], 256)


def test_stored_documents_are_the_sources(store):
    path = Path(textwrap.__file__)
    source = read_source("textwrap", path)
    for domain, text in (("code", source.code), ("docs", source.docs[0][1])):
        documents = store.documents(domain, "train")
        index = max(i for i, name in enumerate(documents.names) if name == "textwrap")
        assert store.tokenizer.decode(documents[index].tolist()) == text


def test_documents_are_views_of_the_file(store):
    documents = store.documents("code", "train")
    assert np.shares_memory(documents[5], documents.tokens)
    assert documents.tokens.dtype == np.uint16
    with pytest.raises(IndexError):
        documents[len(documents)]


def test_manifest_counts(store):
    separator = store.separator
    for domain in store.domains:
        for split in ("train", "validation"):
            documents = store.documents(domain, split)
            entry = store.manifest["domains"][domain][split]
            starts = np.flatnonzero(documents.tokens == separator)
            lengths = np.diff([*starts, len(documents.tokens)])
            assert entry["documents"] == len(starts) == len(documents.names)
            assert entry["tokens"] == lengths.sum()
            assert entry["documents_over_2048"] == (lengths > 2048).sum()
            decoded = store.tokenizer.decode(documents.tokens.tolist())
            assert entry["bytes"] == len(decoded.encode())
    assert store.manifest["domains"]["code"]["validation"]["documents_over_2048"] > 8


def test_progress_is_reported(store):
    reports = json.loads((store.folder.parents[2] / "reports.json").read_text())
    done = [fraction for _, fraction in reports]
    assert done == sorted(done) and done[0] == 0 and done[-1] == 1
    assert len({message for message, _ in reports}) >= 4


def test_another_process_prepares_the_same_bytes(store, corpus, tmp_path):
    script = (
        "import sys; from pathlib import Path; from lit_long.config import CorpusConfig; from lit_long.data.prepare import prepare\n"
        f"print(prepare(CorpusConfig(packages={corpus.packages}, validation={corpus.validation[::-1]}, vocab_size=1024), "
        "Path(sys.argv[1]), lambda message, done: None)['digest'])"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env={"PYTHONHASHSEED": "7"})
    assert output.stdout.strip() == store.manifest["digest"]


@pytest.fixture
def copied(store, tmp_path):
    return Path(shutil.copytree(store.folder, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["docs/train/tokens.bin", "code/validation/offsets.npy", "tokenizer.json"])
def test_the_digest_sees_every_byte(store, copied, name):
    assert _digest(copied, store.manifest["domains"]) == store.manifest["digest"]
    content = bytearray((copied / name).read_bytes())
    content[-1] ^= 1
    (copied / name).write_bytes(content)
    assert _digest(copied, store.manifest["domains"]) != store.manifest["digest"]


def test_missing_and_damaged_stores_are_named(copied, tmp_path):
    with pytest.raises(UserError, match="no prepared data in .*nowhere"):
        open_store(tmp_path / "nowhere")
    tokens = copied / "docs" / "train" / "tokens.bin"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-2])
    with pytest.raises(UserError, match="docs/train/tokens.bin has .* bytes instead of .*prepare"):
        open_store(copied)
    tokens.write_bytes(whole)
    open_store(copied)
    (copied / "code" / "train" / "offsets.npy").unlink()
    with pytest.raises(UserError, match="damaged: .*offsets.npy"):
        open_store(copied)


def test_a_foreign_tokenizer_is_refused(copied):
    path = copied / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(UserError, match="tokenizer.json is not the one"):
        open_store(copied)


@pytest.mark.parametrize(
    "content, message", [("{", "not valid JSON"), ('{"format": 0}', "another version"), ('{"format": 2}', "damaged")]
)
def test_bad_manifests(copied, content, message):
    (copied / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        open_store(copied)


def test_an_interrupted_rewrite_leaves_no_manifest(copied, monkeypatch):
    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr("lit_long.data.prepare.build_corpus", fail)
    with pytest.raises(RuntimeError):
        prepare(CorpusConfig(), copied, lambda message, done: None)
    with pytest.raises(UserError, match="no prepared data"):
        open_store(copied)


def test_unknown_domain(store):
    with pytest.raises(UserError, match="'books'.*code, docs"):
        store.documents("books", "train")


def test_the_manifest_is_what_prepare_returned(store):
    assert json.loads((store.folder / "manifest.json").read_text()) == store.manifest


DOCUMENTS = 2_000_000


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """What opening took, of a small store and of a large one; the latter's indices have 56 MB."""
    place = tmp_path_factory.mktemp("opening")
    return [opening(synthetic_store(place / str(count), count)) for count in (10_000, DOCUMENTS)]


def test_memory_does_not_grow_with_the_documents(opened):
    small, large = opened
    assert large["documents"] == DOCUMENTS * 49 // 50
    assert large["bytes"] - small["bytes"] < 2 * 2**20  # the shards' checksums in the manifest, and nothing for a document


def test_it_is_quick_and_needs_no_torch(opened):
    for found in opened:
        assert found["open_s"] < 1 and not found["torch"]
    assert opened[1]["read_1000_s"] < 2  # documents from all over it, each in a file that was not open yet
