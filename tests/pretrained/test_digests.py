from __future__ import annotations

import hashlib
import os
import subprocess
import sys

from lit_long.pretrained import digests
from tests.integration.mini import REPOSITORY


def test_large_files_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "LARGE", 100)
    monkeypatch.setenv("LIT_LONG_CACHE", str(tmp_path / "home"))
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
    (tmp_path / "digests.json").write_text("{")
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    for cache in (tmp_path, file):  # the second is no folder
        monkeypatch.setenv("LIT_LONG_CACHE", str(cache))
        assert digests.file_digest(file) == hashlib.sha256(b"abc").hexdigest()


DIGEST = """
import sys
from pathlib import Path
from lit_long.pretrained import digests
digests.LARGE = 1
real = digests.read_digest
digests.read_digest = lambda file: Path(sys.argv[2]).open("a").write("read ") and real(file)
print(digests.file_digest(Path(sys.argv[1])))
"""


def test_processes_that_ask_at_once_read_it_once(tmp_path):
    """As the ranks of a job do."""
    file, log = tmp_path / "file", tmp_path / "log"
    file.write_bytes(b"abc" * 10**7)
    environment = os.environ | {"LIT_LONG_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", DIGEST, file, log]
    processes = [subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {process.communicate(timeout=600)[0].strip() for process in processes} == {hashlib.sha256(b"abc" * 10**7).hexdigest()}
    assert log.read_text() == "read "


def test_blobs_of_the_hub_are_named_by_it(tmp_path):
    blob = tmp_path / ("a" * 64)
    blob.write_bytes(b"not read")
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert digests.file_digest(tmp_path / "model.safetensors") == "a" * 64
