"""A store of as many documents as one likes, without their texts; and what opening it takes, measured in a process of its own.

Everything that opening looks at is real: manifest, tokenizer, indices of both splits, a file for every 64 MiB of text. The token files
have holes instead of content, which take no room on the disk, so a store of 10 million documents is 280 MB.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from lit_long.data.token_store import INDEX, count_lengths, open_store, shard_file
from lit_long.data.tokenizer import SEPARATOR, train_tokenizer
from lit_long.pretrained.digests import read_digest
from tests.data.own import TEXTS

REPOSITORY = Path(__file__).parents[2]
SHARD_TOKENS = 2**24  # about what 64 MiB of text become
HELD_OUT = 50  # every so-many-th document


def synthetic_store(folder: Path, documents: int) -> Path:
    """A store of one source ``mine``, its lengths like those of web pages: 1,500 tokens in the mean, most of them shorter."""
    (folder / "mine" / "shards").mkdir(parents=True)
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.save(str(folder / "tokenizer.json"))
    index = np.zeros(documents, INDEX)
    index["tokens"] = np.clip(np.random.default_rng(0).lognormal(6.4, 1.35, documents), 8, 2**20)
    ends = np.cumsum(index["tokens"])
    index["shard"] = ends // SHARD_TOKENS
    first = np.searchsorted(index["shard"], np.arange(index["shard"][-1] + 1))  # document of each shard
    begins = (ends - index["tokens"])[first]
    index["start"] = ends - index["tokens"] - begins[index["shard"]]
    sizes = np.diff([*begins, ends[-1]]).tolist()
    for number, size in enumerate(sizes):
        file = shard_file(folder / "mine" / "shards", number)
        with file.with_suffix(".tokens").open("wb") as opened:
            opened.truncate(2 * size)
        file.with_suffix(".json").write_text(json.dumps({"names": [f"{number}.jsonl"]}))
    held = np.arange(documents) % HELD_OUT == 0
    splits = {}
    for split, chosen in (("train", ~held), ("validation", held)):
        (folder / "mine" / split).mkdir()
        np.save(folder / "mine" / split / "index.npy", index[chosen])
        splits[split] = count_lengths(index["tokens"][chosen]) | {
            "bytes": int(4 * index["tokens"][chosen].sum()),
            "index": "0" * 64,
        }
    manifest = {
        "format": 2,
        "digest": "0" * 64,
        "tokenizer": read_digest(folder / "tokenizer.json"),
        "vocab_size": 300,
        "separator": tokenizer.token_to_id(SEPARATOR),
        "dtype": "uint16",
        "inputs": {},
        "domains": {"mine": splits},
        "sources": {"mine": {"shards": [{"tokens": n, "sha256": hashlib.sha256(str(n).encode()).hexdigest()} for n in sizes]}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert len(open_store(folder).documents("mine", "train")) == int((~held).sum())
    return folder


OPENING = """
import json, sys, time
begun = time.perf_counter()
from pathlib import Path
from lit_long.data.token_store import open_store
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * {page}
imported, before = time.perf_counter(), resident()
store = open_store(Path(sys.argv[1]))
documents = store.documents("mine", "train")
opened, after = time.perf_counter(), resident()
lengths = [len(documents[i * 7919 % len(documents)]) for i in range(1000)]
read = time.perf_counter()
assert lengths == [documents.lengths[i * 7919 % len(documents)] for i in range(1000)]
print(json.dumps(dict(import_s=imported - begun, open_s=opened - imported, read_1000_s=read - opened, bytes=after - before, resident=after,
    documents=len(documents), torch="torch" in sys.modules)))
"""


def opening(folder: Path) -> dict:
    """Seconds of importing, of opening and of looking at 1,000 documents; by how many bytes opening made the process larger, and how
    large it then is (``resident``)."""
    script = OPENING.format(page=os.sysconf("SC_PAGE_SIZE"))
    finished = subprocess.run([sys.executable, "-c", script, str(folder)], cwd=REPOSITORY, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)
