"""How fast an update was, against what the device could do (FLOPs: see planning/flops.py).

The peak is the dense tensor-core figure for a GPU in the table, and a measured matrix product for CPUs.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import torch
from torch import Tensor

from lit_long.batch import Batch
from lit_long.config import AdapterConfig, ModelConfig
from lit_long.planning.flops import Windows, seen, training_flops
from lit_long.planning.hardware import GPUS


def update_flops(
    config: ModelConfig, batch: Batch, windows: Windows = (), adapter: AdapterConfig | None = None
) -> tuple[float, float]:
    """FLOPs of one update on ``batch`` as mfu counts them, and as mfu_causal does (true document lengths when masked)."""
    rows, length = batch.tokens.shape
    wide = [min(window or length, length) for window in windows] or [length]
    full = training_flops(config, rows * length, rows * length * sum(wide) / len(wide), adapter)
    lengths = document_lengths(batch) if batch.mask_documents else [length] * rows
    return full, training_flops(config, rows * length, sum(each * seen(each, windows) for each in lengths), adapter)


def document_lengths(batch: Batch) -> list[int]:
    """Tokens of all documents of the batch, padding left out."""
    starts = torch.ones_like(batch.document_ids, dtype=torch.bool)
    starts[:, 1:] = batch.document_ids[:, 1:] != batch.document_ids[:, :-1]
    runs = torch.bincount(starts.flatten().cumsum(0) - 1)
    inside = batch.document_ids.flatten()[starts.flatten()] >= 0
    return runs[inside].tolist()


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of ``device`` at ``precision``, or None for a GPU that is not in the table."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((gpu.peak for key, gpu in GPUS.items() if key in name), None)
    return measured_peak(torch.bfloat16 if precision.startswith("bf16") else torch.float32)


def measured_peak(dtype: torch.dtype, size: int = 1024, rounds: int = 5, patience: float = 0.1) -> float:
    """FLOP/s of the best of a few size³ matrix products on the CPU threads of this process; of smaller ones where one would take longer than
    ``patience`` seconds (bf16 on a processor without bf16 products: 1,024³ would take seven).
    """
    edge = min(size, 128)
    while True:
        seconds = product_seconds(torch.randn(edge, edge).to(dtype), rounds)
        if edge == size or 8 * seconds > patience:
            return 2 * edge**3 / seconds
        edge = min(size, 2 * edge)


def product_seconds(a: Tensor, rounds: int) -> float:
    """The best time of ``a @ a``."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return best


def peak_memory_gib(device: torch.device) -> float | None:
    """The most memory so far: allocated on a GPU; on a CPU resident, of this process (None where there is no /proc)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20
    except (OSError, TypeError):
        return None
