"""The processor that computes: what it is called, what it can do, and MKL's fast path on AMD's.

MKL, which torch's wheels bring, takes slower kernels where its function `mkl_serv_intel_cpu_true` says that a processor is not Intel's. On AMD's the
fast ones give matrix products and attention 1.1 to 1.9 times the speed (docs/performance.md). So a stage on a CPU makes the function say yes, in its
own process: six bytes of its code, before the first product.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

AMD = "AuthenticAMD"
INTEL_CHECK = "mkl_serv_intel_cpu_true"
RETURN_1 = bytes.fromhex("b801000000c3")  # mov eax, 1; ret
READ_EXECUTE, WRITE = 0x5, 0x2  # mprotect(2)


@cache
def processor_info() -> dict[str, str]:
    """Of the first processor, as Linux tells it: ``vendor_id``, ``model name``, ``flags`` …; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def has_bf16_products() -> bool:
    """Whether the processor multiplies in bf16 itself."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(processor_info().get("flags", "").split())


def note_on_bf16(key: str) -> str:
    """What to tell whoever asked for bf16 on this processor by ``key``; "" where torch multiplies bf16 well enough: with oneDNN, which wants AVX-512.

    On one core of an AMD EPYC of family 23: 0.7 GFLOP/s in bf16, 31 in fp32.
    """
    flags = processor_info().get("flags", "").split()
    if not flags or "avx512f" in flags or has_bf16_products():
        return ""
    return f"{key}: this processor has no AVX-512, and torch multiplies bf16 tens of times more slowly than fp32 on it"


def describe_machine(device: torch.device) -> str:
    """The processor that the numbers come from, in a few words."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    name = f"{processor_info().get('model name', 'CPU')}, {os.cpu_count()} cores"
    return f"{name}, MKL's fast path" if has_mkl_fast_path() else name


def take_mkl_fast_path() -> str:
    """Let MKL take its fast path in this process, before anything is multiplied. Results differ by rounding.

    Returns:
        A line for the log; "" where there is nothing to take: no AMD processor, no Linux, a torch without MKL.
    """
    check = intel_check()
    if check is None or has_mkl_fast_path():
        return ""
    address = ctypes.cast(check, ctypes.c_void_p).value
    first = address - address % mmap.PAGESIZE
    pages = ctypes.c_void_p(first), ctypes.c_size_t(address + len(RETURN_1) - first)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(*pages, READ_EXECUTE | WRITE):  # some systems allow no code that changes
        return f"MKL: not its fast path, the system refuses: {os.strerror(ctypes.get_errno())}"
    ctypes.memmove(address, RETURN_1, len(RETURN_1))
    libc.mprotect(*pages, READ_EXECUTE)
    return "MKL: its fast path, on a processor of AMD's (mkl_fast_path=false turns it off)"


def has_mkl_fast_path() -> bool:
    """Whether MKL was told so in this process, by `take_mkl_fast_path` or a preloaded library; False where it need not be told."""
    check = intel_check()
    return check is not None and check() == 1


@cache
def intel_check() -> ctypes._CFuncPtr | None:
    """The function by which MKL checks for a processor of Intel's, where this is one of AMD's; None elsewhere, and in a torch without MKL."""
    if processor_info().get("vendor_id") != AMD or platform.machine() != "x86_64":
        return None
    import torch

    try:
        return getattr(ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")), INTEL_CHECK)
    except (OSError, AttributeError):
        return None
