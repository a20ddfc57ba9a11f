"""The built-in corpus, prepared by processes that are killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.data.test_shards import files_of

SCRIPT = """
import json, sys
from pathlib import Path
from lit_long.config import CorpusConfig
from lit_long.data.prepare import prepare

if __name__ == "__main__":
    prepare(CorpusConfig(**json.loads(sys.argv[1])), Path(sys.argv[2]), lambda message, done: print(message, flush=True))
"""


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0


MOMENTS = {
    "reading": lambda folder: lines(folder / "sources.log") > 20,
    "reading on": lambda folder: lines(folder / "sources.log") > 400,
    "trained": lambda folder: (folder / "trained.json").is_file(),
    "encoding": lambda folder: lines(folder / "code" / "train" / "tokens.log") > 3,
    "encoding on": lambda folder: lines(folder / "docs" / "train" / "tokens.log") > 3,
}


@pytest.mark.slow
def test_killed_again_and_again_it_goes_on_to_the_same_store(store, corpus, tmp_path):
    script, folder = tmp_path / "prepare.py", tmp_path / "store"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), json.dumps(asdict(corpus)), str(folder)]
    kept: dict[Path, bytes] = {}
    for moment, happened in MOMENTS.items():
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
        while not happened(folder):
            assert process.poll() is None, f"it ended before {moment}"
            time.sleep(0.005)
        process.kill()
        process.wait()
        for file, content in kept.items():
            assert file.read_bytes().startswith(content), f"{moment}: {file} was begun anew"
        kept = {file: (read := file.read_bytes())[: read.rfind(b"\n") + 1] for file in folder.rglob("*.log")}
        assert not (folder / "manifest.json").exists()
    (folder / "code" / "train" / "tokens.bin").open("ab").write(b"half of a docu")
    finished = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True)
    assert "reading sources" not in finished.stdout and "training the tokenizer" not in finished.stdout
    of_its_stage = {"DONE", "lock", "result.json", "stage.yaml"}
    assert files_of(folder) == {name: content for name, content in files_of(store.folder).items() if name not in of_its_stage}
