from __future__ import annotations

import hashlib
import os

from lit_long.pretrained import digests


def test_large_files_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "LARGE", 100)
    monkeypatch.setattr(digests, "MEMORY", tmp_path / "home" / "digests.json")
    reads = []
    real = digests.read_digest
    monkeypatch.setattr(digests, "read_digest", lambda file: reads.append(file.name) or real(file))
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x" * 99)
    large.write_bytes(b"y" * 101)
    for _ in range(2):
        assert digests.file_digest(small) == hashlib.sha256(b"x" * 99).hexdigest()
        assert digests.file_digest(large) == hashlib.sha256(b"y" * 101).hexdigest()
    assert reads == ["small", "large", "small"]
    large.write_bytes(b"z" * 101)
    os.utime(large, ns=(1, 1))
    assert digests.file_digest(large) == hashlib.sha256(b"z" * 101).hexdigest()


def test_a_memory_that_cannot_be_used_costs_only_time(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "LARGE", 1)
    (tmp_path / "broken.json").write_text("{")
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    for memory in (tmp_path / "broken.json", tmp_path / "file" / "digests.json"):  # the second lies below a file
        monkeypatch.setattr(digests, "MEMORY", memory)
        assert digests.file_digest(file) == hashlib.sha256(b"abc").hexdigest()


def test_blobs_of_the_hub_are_named_by_it(tmp_path):
    blob = tmp_path / ("a" * 64)
    blob.write_bytes(b"not read")
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert digests.file_digest(tmp_path / "model.safetensors") == "a" * 64
