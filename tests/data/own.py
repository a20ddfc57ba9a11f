"""Real documents in files of every kind, for tests of sources."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet

from lit_long.config import CorpusConfig, SourceConfig
from lit_long.data.prepare import prepare
from lit_long.data.token_store import Store, open_store

CORPUS = CorpusConfig(vocab_size=300)
TEXTS = [
    f"Document {i}. " + f"Naïve words 漢字 number {i} follow one another, as words do.\n" * (1 + i * 7 % 23) for i in range(60)
]


def rows(texts: list[str], field: str = "text") -> bytes:
    return b"".join(json.dumps({"id": i, field: text}, ensure_ascii=i % 2 == 0).encode() + b"\n" for i, text in enumerate(texts))


def write_text(folder: Path, texts: list[str] = TEXTS) -> Path:
    folder.mkdir(parents=True)
    for i, text in enumerate(texts):
        file = folder / f"{i // 20}" / f"{i:03}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text.encode())
    return folder


def write_jsonl(file: Path, texts: list[str] = TEXTS, field: str = "text") -> Path:
    file.write_bytes(rows(texts, field))
    return file


def write_gz(file: Path, texts: list[str] = TEXTS) -> Path:
    file.write_bytes(gzip.compress(rows(texts), mtime=0))
    return file


def write_zst(file: Path, texts: list[str] = TEXTS) -> Path:
    with pyarrow.CompressedOutputStream(str(file), "zstd") as stream:
        stream.write(rows(texts))
    return file


def write_parquet(file: Path, texts: list[str] = TEXTS, field: str = "text") -> Path:
    pyarrow.parquet.write_table(
        pyarrow.table({"id": list(range(len(texts))), field: texts}), file, row_group_size=7, write_page_checksum=True
    )
    return file


def store_of(folder: Path, path: Path | str, processes: int = 1, **settings) -> Store:
    """The store of one source ``mine`` alone."""
    source = SourceConfig(path=str(path), **settings)
    prepare(CORPUS, folder, sources={"mine": source}, builtin=False, processes=processes)
    return open_store(folder)


def decoded(store: Store, split: str, domain: str = "mine") -> list[str]:
    documents = store.documents(domain, split)
    found = []
    for i in range(len(documents)):
        assert documents[i][0] == store.separator and len(documents[i]) == documents.lengths[i]
        found.append(store.tokenizer.decode(documents[i][1:].tolist(), skip_special_tokens=False))
    return found


def all_texts(store: Store) -> list[str]:
    return sorted(decoded(store, "train") + decoded(store, "validation"))
