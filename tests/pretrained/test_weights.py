"""Reading tensor by tensor: memory, sharded models, devices and precisions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.weights import load_pretrained
from tests.integration.mini import REPOSITORY
from tests.pretrained import gguf_files, test_huggingface, test_meta
from tests.pretrained.llamas import random_llama, save
from tests.ranks import run_ranks

HERE = Path(__file__).parent


@pytest.mark.slow
def test_peak_memory(tmp_path):
    """At most 1.2 times the weights (270 MB in fp32), in every format, into a model without memory or one that has it; a fifth while converting, as
    then a few tensors are held at a time."""
    theirs = random_llama(heads=16, kv=16, head_dim=64, ffn=2816, layers=5, vocab=1000).bfloat16()
    for name in ("safetensors", "bin", "meta"):
        (tmp_path / name).mkdir()
    save(theirs, tmp_path / "safetensors", max_shard_size="60MB")
    test_huggingface.to_bin(save(theirs, tmp_path / "bin"))
    test_meta.write(theirs, tmp_path / "meta", parts=2)
    gguf_files.write(theirs, tmp_path / "x.gguf", "F16")
    del theirs
    sources = [save(random_llama(), tmp_path / "small"), *(tmp_path / name for name in ("safetensors", "bin", "meta", "x.gguf"))]
    # glibc keeps freed memory in pieces below 32 MB for itself; a real Llama's tensors are larger, these are not
    own = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "LIT_LONG_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, HERE / "memory.py", *map(str, sources)]
    done = subprocess.run(words, env=os.environ | own, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    converting = {name: found.pop(name) for name in list(found) if name.endswith("converting")}
    assert len(converting) == 3 and all(multiple <= 0.2 for multiple in converting.values()), converting
    assert len(found) == 8
    assert all(0.95 < multiple <= 1.2 for multiple in found.values()), found


@pytest.mark.parametrize(("dimension", "shape"), [("shard", {"vocab": 161, "kv": 1}), ("tensor", {})])
def test_sharded_model(tmp_path, dimension, shape):
    """Two ranks (FSDP2, or tensor parallelism, gloo), one after the other: each fills its slices alone. 161 rows do not divide by two."""
    folder = save(random_llama(**shape).bfloat16(), tmp_path / "llama")
    run_ranks(2, HERE / "ranks.py", tmp_path, folder, dimension)


@pytest.fixture
def pretrained(tmp_path):
    return open_pretrained(str(save(random_llama(), tmp_path)))


def empty_model(pretrained):
    return Llama(pretrained.shape, build(pretrained.position, pretrained.shape.head_dim))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_is_the_models(pretrained, dtype):
    model = empty_model(pretrained).to(dtype)
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    load_pretrained(model, pretrained)
    for name, tensor in pretrained.tensors():
        found = model.get_parameter(name)
        assert found.dtype == dtype and found.equal(tensor.to(dtype)) and found.data_ptr() == places[name]
        assert found.requires_grad


def test_report(pretrained):
    reports = []
    load_pretrained(empty_model(pretrained), pretrained, lambda message, done: reports.append((message, done)))
    assert [done for _, done in reports] == sorted(done for _, done in reports)
    assert reports[-1] == (f"reading {pretrained.path.name}", 1.0) and len(reports) == 21
