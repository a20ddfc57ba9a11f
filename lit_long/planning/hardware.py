"""The GPUs that a plan knows: what they can do at most, from the vendor's data sheets, and what of it is assumed to be reached.

Peaks are dense tensor-core figures (data sheets print those with sparsity, twice as high). Bandwidths are per GPU and direction: half of
NVLink's total, and one network adapter a GPU as in the vendor's own 8-GPU servers. Memory is what a process finds of the advertised size.

Efficiency is an assumption: the share of the peak at which a GPU does the FLOPs it really computes, those of recomputation included. It is
the published speed of Llama 2 7B at 4,096 tokens without recomputation, rounded down: 9,600 tokens/s on an H100 (foundation-model-stack/
fms-fsdp, issue 89: 0.42) and 3,700 on an A100 (PyTorch blog "Maximizing training throughput using PyTorch FSDP": 0.51). The others
are taken to be like the H100.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_long.config import UserError, nearest

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU. FLOP/s in bf16 (dense) and in fp32, bytes of memory, bytes/s to GPUs of the same machine and of others."""

    name: str
    peak: float
    peak_fp32: float
    memory: float
    in_machine: float
    between_machines: float
    efficiency: float
    source: str


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", 312e12, 19.5e12, 79 * GIB, 300e9, 25e9, 0.5, "NVIDIA A100 80GB SXM data sheet; DGX A100: 8 × 200 Gb/s"),
        Gpu("H100", 989e12, 67e12, 79 * GIB, 450e9, 50e9, 0.4, "NVIDIA H100 SXM data sheet; DGX H100: 8 × 400 Gb/s"),
        Gpu("H200", 989e12, 67e12, 139 * GIB, 450e9, 50e9, 0.4, "NVIDIA H200 SXM data sheet; DGX H200: 8 × 400 Gb/s"),
        Gpu("B200", 2250e12, 75e12, 178 * GIB, 900e9, 50e9, 0.4, "NVIDIA DGX B200 data sheet: 8 × 400 Gb/s"),
        Gpu(
            "L40S",
            362e12,
            91.6e12,
            44 * GIB,
            32e9,
            25e9,
            0.4,
            "NVIDIA L40S data sheet: PCIe Gen4 x16; one 200 Gb/s adapter assumed",
        ),
    )
}
FIXED = 2 * GIB  # CUDA's context and libraries, NCCL's channels: an assumption
FRAGMENTATION = 0.04  # of the memory, that the caching allocator cannot use: an assumption
BUS = 0.8  # of the bandwidths, that collectives reach: an assumption


def usable(gpu: Gpu) -> float:
    """Bytes that tensors may take."""
    return gpu.memory * (1 - FRAGMENTATION) - FIXED


def find_gpu(name: str) -> Gpu:
    """The GPU called ``name``, in any case. Raises UserError with the nearest one."""
    if name.upper() not in GPUS:
        raise UserError(f"command line: gpu={name}: no such GPU{nearest(name.upper(), GPUS)}")
    return GPUS[name.upper()]
