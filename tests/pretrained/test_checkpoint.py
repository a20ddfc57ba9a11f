"""Reading a sharded folder, and writing weights, one tensor at a time. Folders that ranks left: training/test_resume.py."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import nn

from lit_long.pretrained.weights import read_checkpoint, save_weights
from tests.integration.mini import REPOSITORY

MEASURE = """
import resource, sys
from pathlib import Path
from lit_long.pretrained.weights import read_checkpoint
def read(folder):
    return sum(tensor.nbytes for _, tensor in read_checkpoint(Path(folder)))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
read(sys.argv[1])  # imports what is imported at first use
before = peak()
print(read(sys.argv[2]), peak() - before)
"""


def save(folder, size, count):
    """A checkpoint with ``count`` matrices of size²·4 bytes, and AdamW's moments of them."""
    weights = {f"model.layers.{n}.weight": torch.full((size, size), float(n)) for n in range(count)}
    moments = {name: {"exp_avg": torch.rand(size, size), "exp_avg_sq": torch.rand(size, size)} for name in weights}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"state_dict": weights, "optimizer_0": {"state": moments}}, checkpoint_id=folder, no_dist=True)
    return folder


def test_the_peak_is_a_few_tensors_not_the_model(tmp_path):
    """16 matrices of 16 MiB and twice as much of moments: 768 MiB."""
    small, large = save(tmp_path / "small", 8, 2), save(tmp_path / "large", 2048, 16)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    words = [sys.executable, "-c", MEASURE, small, large]
    finished = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    read, peak = map(int, finished.stdout.split())
    assert read == 16 * 2**24 and peak < 5 * 2**24, f"{peak / 2**24} tensors at once"
    assert "UserWarning" not in finished.stderr


def test_a_folder_is_read_whole(tmp_path):
    found = dict(read_checkpoint(save(tmp_path / "small", 8, 3)))
    assert list(found) == [f"layers.{n}.weight" for n in range(3)]
    assert all(found[f"layers.{n}.weight"].equal(torch.full((8, 8), float(n))) for n in range(3))


def test_the_file_of_weights_is_what_safetensors_reads(tmp_path):
    """Names, shapes and precisions, views that are not contiguous, a number alone, an odd number of bytes."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.randn(3, 5).T)
            self.b = nn.Parameter(torch.randn(7, dtype=torch.bfloat16))
            self.c = nn.Parameter(torch.tensor(2.5))
            self.ü = nn.Parameter(torch.randn(2, 3, 4, dtype=torch.float64))

    model = Model()
    save_weights(model, tmp_path / "weights.safetensors")
    found = load_file(tmp_path / "weights.safetensors")
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == expected[name].dtype and found[name].equal(expected[name]) for name in expected)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]
