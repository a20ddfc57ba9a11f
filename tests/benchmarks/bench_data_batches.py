"""Batches from a warm store on one core, beside Hugging Face `datasets` with torch's DataLoader; and the first batch from 10 million documents.

Ours is the loader that training uses: mixture, packing, masks, accounts. Theirs reads rows of the same number of tokens that were packed
beforehand (int32 in Arrow, with labels), as most recipes do, so it does less.

make bench, or python -m tests.benchmarks.bench_data_batches FILE.json to have the rows in a file
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_long.config import CorpusConfig, SourceConfig
from lit_long.data.datamodule import LongContextDataModule
from lit_long.data.prepare import prepare
from lit_long.data.token_store import Store, open_store
from tests.benchmarks.bench_data_prepare import Row, row, write_texts
from tests.data.large_store import synthetic_store
from tests.integration.mini import REPOSITORY

CONTEXTS = (2048, 32_768)
ROWS_TOKENS = 262_144  # of an update
UPDATES = 60
SPEED_TARGET = 5.0  # M tokens/s on a core
START_SECONDS = 2.0
DOCUMENTS = 10_000_000


def module(store: Store | Path, context: int, packing: str = "concat") -> LongContextDataModule:
    return LongContextDataModule(
        store, weights={"mine": 1.0}, context=context, tokens_per_update=ROWS_TOKENS, updates=UPDATES, packing=packing
    )


def ours(store: Store, context: int, packing: str) -> float:
    """M tokens/s, after the first two updates."""
    batches = iter(module(store, context, packing).train_dataloader())
    next(batches), next(batches)
    start = time.perf_counter()
    tokens = sum(batch.tokens.numel() for batch in batches)
    return tokens / (time.perf_counter() - start) / 1e6


def theirs(store: Store, context: int, folder: Path) -> float:
    import datasets

    datasets.disable_progress_bars()
    from torch.utils.data import DataLoader

    documents = store.documents("mine", "train")
    tokens = np.concatenate([documents[i] for i in range(len(documents))]).astype(np.int32)
    rows = tokens[: len(tokens) // context * context].reshape(-1, context)
    data = datasets.Dataset.from_dict({"input_ids": list(rows), "labels": list(rows)})
    data.save_to_disk(str(folder))
    data = datasets.load_from_disk(str(folder)).with_format("torch").shuffle(seed=0)
    loader = DataLoader(data, batch_size=ROWS_TOKENS // context, drop_last=True)
    batches, read = iter(loader), 0
    next(batches)
    start = time.perf_counter()
    while read < UPDATES:
        for batch in batches:
            read += 1
            if batch["input_ids"].shape[1] != context or read == UPDATES:
                break
        batches = iter(loader)
    return read * ROWS_TOKENS / (time.perf_counter() - start) / 1e6


def batch_rows() -> list[Row]:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        write_texts(Path(place, "in"), 1, 40 * 2**20)
        source = SourceConfig(path=str(Path(place, "in")))
        prepare(CorpusConfig(vocab_size=4096), Path(place, "store"), sources={"mine": source}, builtin=False)
        store = open_store(Path(place, "store"))
        for context in CONTEXTS:
            peer = max(theirs(store, context, Path(place, f"{context}-{i}")) for i in range(2))
            for packing in ("concat", "best_fit"):
                mine = max(ours(store, context, packing) for _ in range(3))
                name = f"batches of {context:,} tokens a sequence, {packing}, one core"
                rows.append(row(name, "a core's target", mine, SPEED_TARGET, mine / SPEED_TARGET, 1.0, "M tokens/s"))
                rows.append(row(name, "datasets + DataLoader", mine, peer, mine / peer, None, "M tokens/s"))
    return rows


START = """
import json, sys, time
from pathlib import Path
from lit_long.data.datamodule import LongContextDataModule
from lit_long.data.mixture import import_grain
import_grain()
def anonymous():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024
before, begun = anonymous(), time.perf_counter()
data = LongContextDataModule(Path(sys.argv[1]), weights={"mine": 1.0}, context=4096, tokens_per_update=65536, updates=1000)
data.plan()
next(iter(data.train_dataloader()))
print(json.dumps({"seconds": time.perf_counter() - begun, "memory": anonymous() - before, "all": anonymous()}))
"""


def start_rows(documents: int = DOCUMENTS, rounds: int = 3) -> list[Row]:
    """In fresh processes, from the open interpreter to the first batch: seconds, and anonymous memory (the mapped index is the page
    cache's)."""
    with tempfile.TemporaryDirectory() as place:
        found: list[dict[str, Any]] = []
        for count in (10_000, documents):
            folder = synthetic_store(Path(place, str(count)), count)
            runs = [
                json.loads(
                    subprocess.run(
                        [sys.executable, "-c", START, str(folder)], cwd=REPOSITORY, capture_output=True, text=True, check=True
                    ).stdout
                )
                for _ in range(rounds)
            ]
            found.append({key: min(run[key] for run in runs) for key in runs[0]})
    small, large = found
    name = f"first batch from {documents:,} documents"
    seconds = large["seconds"]
    return [
        row(name, "limit", seconds, START_SECONDS, START_SECONDS / seconds, 1.0, "s"),
        row(f"{name}, memory", "10,000 documents", large["all"], small["all"], small["all"] / large["all"], 0.95, "MiB"),
    ]


@pytest.mark.timeout(1800)
def test_start():
    print()
    start_rows()


@pytest.mark.timeout(1800)
def test_batches():
    print()
    affinity = os.sched_getaffinity(0)
    try:
        batch_rows()
    finally:
        os.sched_setaffinity(0, affinity)


def main(argv: list[str]) -> None:
    rows = start_rows() + batch_rows()
    if argv:
        Path(argv[0]).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
