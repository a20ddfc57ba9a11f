"""A step of Muon over the hidden matrices of `model=mini` and `model=tiny`, beside torch's Muon, on one thread.

Where the processor has bf16 products ours is torch's, and the ratio is 1.

python -m tests.benchmarks.bench_optimizer FILE.json
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from lit_long.config import OptimConfig
from lit_long.processor import describe_machine, take_mkl_fast_path
from lit_long.training.optimizers import make_optimizer
from tests.benchmarks.bench_data_prepare import Row, row

SHAPES = {"mini": (4, 128, 352), "tiny": (4, 256, 704)}  # layers, d_model, d_ffn


class Hidden(torch.nn.Module):
    """Matrices of so many layers, with gradients: four of attention, three of the feed-forward network."""

    def __init__(self, layers: int, width: int, d_ffn: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = [*[(width, width)] * 4, (d_ffn, width), (d_ffn, width), (width, d_ffn)] * layers
        self.matrices = torch.nn.ParameterList(torch.randn(shape, generator=generator) for shape in shapes)
        for parameter in self.matrices:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def seconds(optimizer: torch.optim.Optimizer) -> float:
    start = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - start


def muon_rows(rounds: int = 5) -> list[Row]:
    """Medians of alternating steps, after one of each."""
    torch.set_num_threads(1)
    take_mkl_fast_path()
    machine = describe_machine(torch.device("cpu"))
    rows = []
    for name, shape in SHAPES.items():
        ours = make_optimizer(Hidden(*shape), OptimConfig(name="muon"))
        theirs = torch.optim.Muon(Hidden(*shape).matrices, adjust_lr_fn="match_rms_adamw")
        pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds + 1)][1:]
        mine, peer = (statistics.median(times) for times in zip(*pairs, strict=True))
        rows.append(row(f"step of Muon, {name}, one thread, {machine}", "torch.optim.Muon", mine, peer, peer / mine, 0.95, "s"))
    return rows


if __name__ == "__main__":
    made = muon_rows()
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(made, indent=1) + "\n")
