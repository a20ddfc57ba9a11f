"""Prints, for each format, the peak memory of reading a model as a multiple of its weights in fp32; and before that, of converting it.

Run by test_weights.py as: memory.py SMALL SOURCE …, where SMALL is a small model that is read first.
Each is read in a process of its own, forked from here: a child's peak begins at what it is born with.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import torch

from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.weights import load_pretrained


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(source: str, device: str) -> float:
    pretrained = open_pretrained(source)
    shape, position = pretrained.shape, pretrained.position
    before = peak()
    if device == "converting":
        pretrained.convert()
        return (peak() - before) / (2 * pretrained.source.size)  # they are in two bytes each
    with torch.device(device):
        model = Llama(shape, build(position, shape.head_dim))
    load_pretrained(model, pretrained)
    return (peak() - before) / sum(parameter.nbytes for parameter in model.parameters())


def forked(source: str, device: str) -> float:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, repr(measure(source, device)).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    return float(os.read(reading, 100) or "nan")


if __name__ == "__main__":
    first, *sources = sys.argv[1:]
    measure(first, "meta")  # imports what is imported at first use, before the forks
    for suffix in ("export", "gguf", "meta", "pickles"):
        __import__(f"lit_long.pretrained.{suffix}")
    print(
        json.dumps(
            {
                f"{Path(source).name} {device}": forked(source, device)
                for source in sources
                for device in (*(["converting"] if hasattr(open_pretrained(source), "convert") else []), "meta", "cpu")
            }
        )
    )
