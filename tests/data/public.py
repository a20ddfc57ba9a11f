"""Documents in the schemas of the public data sets that configs/data/ names, small and made up, in their places."""

from __future__ import annotations

import json
from pathlib import Path

from lit_long.config.command import find_file
from lit_long.config.compose import read_option

SETS = ("CommonCrawl", "C4", "Github", "Wikipedia", "Book", "ArXiv", "StackExchange")
PUBLIC = ("base_mix", "long_mix", "no_long", "upsample_long", "fu_upsample", "together_32k", "prolong")


def text(name: str, number: int) -> str:
    """Between 10 and 2,430 words, half of them short."""
    length = 10 * 3 ** (number % 6)
    return f"{name} {number}: " + " ".join(f"{name}{(number * 31 + i * i) % 97}" for i in range(length))


def rows(path: str) -> list[dict]:
    """Rows of a data set by its place."""
    if "SlimPajama" in path:
        return [{"text": text(name, i), "meta": {"redpajama_set_name": f"RedPajama{name}"}} for i in range(30) for name in SETS]
    if "TextbookChapters" in path:
        return [{"textbook": "t", "chapter": text("chapter", i)} for i in range(30)]
    if "dolly" in path:
        return [
            {"instruction": f"Say {i}", "context": text("context", i), "response": f"It is {i}.", "category": "qa"}
            for i in range(30)
        ]
    if "sharegpt" in path:
        return [
            {"conversations": [{"from": "human", "value": f"Say {i}"}, {"from": "gpt", "value": f"It is {i}."}]}
            for i in range(30)
        ]
    if "booksum" in path:
        return [{"chapter": text("chapter", i), "summary_text": f"It is about {i}."} for i in range(30)]
    if "mqa" in path:
        return [{"prompt": text("documents", i), "completion": f"It is {i}."} for i in range(30)]
    if path.startswith("data/instruct/"):
        asked = {"question": "What is it?", "answer": "It.", "chunk_start": 0, "chunk_end": 8, "kind": "normal", "depth": 0.0}
        return [{"document": text("document", i)} | asked for i in range(30)]
    return [{"text": text(path.split("/")[1], i), "id": i} for i in range(30)]


def stand_ins(name: str, folder: Path) -> list[str]:
    """``key=value`` words that put files of the same schema, below ``folder``, in the place of an option's sources."""
    find_file("configs/data", name, "data")
    words = []
    for source, settings in read_option("data", name).get("sources", {}).items():
        path = settings["path"]
        if "split_by" in settings:  # of text files by their names
            books = folder / source
            books.mkdir(exist_ok=True)
            for number in range(2):
                (books / f"Author {number} - Title.txt").write_text(f"Book {number}. " * 200)
            words.append(f"data.sources.{source}.path={books}")
            continue
        file = folder / f"{path.replace('hf:', '').replace('/', '_').replace('*', '')}.jsonl"
        if not file.exists():
            file.write_text("".join(json.dumps(row) + "\n" for row in rows(path)))
        words.append(f"data.sources.{source}.path={file}")
    return words
