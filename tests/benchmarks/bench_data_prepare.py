"""Preparing data on the CPU: tokens per second beside `tokenizers` alone, and what opening a store of 10 million documents takes.

Tokenising: Python source files of the installed packages as JSON lines, SmolLM2's tokenizer. Ours is all of `prepare`: digests of the files,
processes, reading, hashing, tokens and index on the disk. Theirs is `encode_batch` alone, on texts that are in memory. Both on the same
cores, each round in new processes, in turn.

make bench, or python -m tests.benchmarks.bench_data_prepare FILE.json to have the rows in a file
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
import tokenizers

from lit_long.config import CorpusConfig, SourceConfig
from lit_long.data.pool import available_cores
from lit_long.data.prepare import prepare
from lit_long.data.tokenizer import borrow_tokenizer
from tests.data.large_store import opening, synthetic_store
from tests.data.own import write_jsonl
from tests.integration.mini import REPOSITORY
from tests.pretrained.conftest import SMOLLM2

FILE_CHARACTERS = 20 * 2**20  # of a file: it becomes one shard
BATCH = 1000  # texts: what `datasets.map(batched=True)` hands to a tokenizer
ROUNDS = 2
SPEED_TARGET = 0.9
DOCUMENTS = 10_000_000
OPENING_SECONDS = 2.0
MEMORY_TARGET = 0.95  # resident with a small store, over that with a large one
Row = dict[str, Any]


def row(name: str, peer: str, mine: float, peers: float, ratio: float, target: float | None, unit: str) -> Row:
    versions = {"python": sys.version.split()[0], "tokenizers": tokenizers.__version__, "numpy": numpy.__version__}
    found = {"name": name, "peer": peer, "ours": mine, "theirs": peers, "ratio": ratio, "target": target, "unit": unit}
    verdict = "" if target is None else f" (target {target:g}){'' if ratio >= target else '   BELOW TARGET'}"
    print(f"{name}: {mine:,.3f} {unit}, {peer} {peers:,.3f}, {ratio:.2f} ×{verdict}", flush=True)
    return found | {"cores": available_cores(), "versions": versions}


def write_texts(folder: Path, files: int, characters: int) -> None:
    """JSON lines of source files in an order that mixes the packages."""
    paths = sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py"), key=lambda path: (path.name, str(path)))
    sources = iter(path for path in paths if path.stat().st_size > 200)
    folder.mkdir()
    for number in range(files):
        texts, size = [], 0
        while size < characters and (path := next(sources, None)):
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
            size += len(texts[-1])
        if texts:
            write_jsonl(folder / f"{number:03}.jsonl", texts)


def tokenising_rows(characters: int = FILE_CHARACTERS, rounds: int = ROUNDS) -> list[Row]:
    """On one core, and on all that there are: the best round of each."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        write_texts(Path(place, "in"), available_cores(), characters)
        for cores in sorted({1, available_cores()}):
            best: dict[str, float] = {}
            for _ in range(rounds):
                for who in ("ours", "encode_batch", "encode_batch_fast"):
                    found = alone(who, Path(place), cores)
                    best[who] = max(best.get(who, 0), found["tokens"] / found["seconds"] / 1e6)
                    if best.setdefault("tokens", found["tokens"]) != found["tokens"]:
                        raise RuntimeError("the two make different tokens: they do not do the same work")
            name = f"prepare, {best['tokens'] / 1e6:,.0f}M tokens, {cores} core{'s' * (cores > 1)}"
            for peer, target in (("encode_batch", SPEED_TARGET), ("encode_batch_fast", None)):
                ratio = best["ours"] / best[peer]
                rows.append(row(name, f"tokenizers {peer}", best["ours"], best[peer], ratio, target, "M tokens/s"))
    return rows


def alone(who: str, place: Path, cores: int) -> dict[str, float]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": str(cores)}
    command = [sys.executable, "-m", "tests.benchmarks.bench_data_prepare", who, str(place), str(cores)]
    finished = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


def here(who: str, place: Path, cores: int) -> dict[str, float]:
    """Seconds and tokens (the separators, which only ours writes, not counted), of as many files as there are cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    files = sorted((place / "in").iterdir())[:cores]
    if who == "ours":
        inside, store = place / "some", place / "store"
        for folder in (inside, store):
            shutil.rmtree(folder, ignore_errors=True)
        inside.mkdir()
        for file in files:
            os.link(file, inside / file.name)
        sources = {"mine": SourceConfig(path=str(inside), dedup=False)}
        start = time.perf_counter()
        manifest = prepare(CorpusConfig(tokenizer=SMOLLM2), store, sources=sources, builtin=False)
        seconds = time.perf_counter() - start
        splits = manifest["domains"]["mine"].values()
        return {"seconds": seconds, "tokens": sum(split["tokens"] - split["documents"] for split in splits)}
    texts = [json.loads(line)["text"] for file in files for line in file.open(encoding="utf-8")]
    tokenizer, *_ = borrow_tokenizer(SMOLLM2)
    encode = getattr(tokenizer, who)
    start = time.perf_counter()
    tokens = 0
    for first in range(0, len(texts), BATCH):
        for encoding in encode(texts[first : first + BATCH], add_special_tokens=False):
            tokens += len(encoding)
    return {"seconds": time.perf_counter() - start, "tokens": tokens}


def opening_rows(documents: int = DOCUMENTS, rounds: int = 3) -> list[Row]:
    """In fresh processes: from the start of the imports to the opened store (no torch), opening alone, and the process' memory."""
    with tempfile.TemporaryDirectory() as place:
        found = [synthetic_store(Path(place, str(count)), count) for count in (10_000, documents)]
        small, large = ([opening(folder) for _ in range(rounds)] for folder in found)
    both, only = (min(sum(run[key] for key in keys) for run in large) for keys in (("import_s", "open_s"), ("open_s",)))
    memory = [min(run["resident"] for run in runs) / 2**20 for runs in (large, small)]
    name = f"opening {documents:,} documents"
    return [
        row(f"{name}, imports and all", "limit", both, OPENING_SECONDS, OPENING_SECONDS / both, 1.0, "s"),
        row(name, "limit", only, OPENING_SECONDS, OPENING_SECONDS / only, 1.0, "s"),
        row(f"{name}, resident", "10,000 documents", *memory, memory[1] / memory[0], MEMORY_TARGET, "MiB"),
    ]


@pytest.mark.timeout(1800)
def test_tokenising():
    print()
    tokenising_rows()


def test_opening():
    print()
    opening_rows()


def main(argv: list[str]) -> None:
    if len(argv) == 3:
        print(json.dumps(here(argv[0], Path(argv[1]), int(argv[2]))))
        return
    rows = opening_rows() + tokenising_rows()
    if argv:
        Path(argv[0]).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
