"""FlashAttention on NVIDIA GPUs (Dao et al. 2022), from whichever package is there, and torch's own varlen_attn.

Nothing is imported before a GPU asks for it, and a package that is missing or broken is a sentence in the log, not a crash. The three generations
of the package differ in where they live and in whether they return the softmax's sums too; their arguments agree.

Shapes as in attention.py.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
WIDEST_HEAD = 256


class Generation(NamedTuple):
    """One generation of FlashAttention: its module, and the compute capabilities that it is written for."""

    name: str
    module: str
    capabilities: range  # major


GENERATIONS = (
    Generation("FlashAttention 4", "flash_attn.cute", range(9, 13)),
    Generation("FlashAttention 3", "flash_attn_interface", range(9, 10)),
    Generation("FlashAttention 2", "flash_attn", range(8, 13)),
)


class Found(NamedTuple):
    """The functions of the generation that is used here; or, without any, why none is."""

    name: str = ""
    dense: Callable | None = None
    varlen: Callable | None = None
    why_not: str = ""


@functools.cache
def find(capability: int) -> Found:
    """The newest generation that is installed and written for the device's (major) compute capability."""
    reasons = []
    for generation in GENERATIONS:
        if capability not in generation.capabilities:
            continue
        try:
            module = importlib.import_module(generation.module)
            return Found(generation.name, module.flash_attn_func, module.flash_attn_varlen_func)
        except ModuleNotFoundError:
            continue
        except Exception as error:  # built for another torch: undefined symbols, and whatever else a broken binary raises
            reasons.append(
                f"{generation.module} is installed but broken ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
            )
    return Found(why_not="; ".join(reasons) or "flash-attn is not installed: pip install 'lit-long[flash]'")


def why_no_flash(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Empty when FlashAttention can run; else the reason that it cannot."""
    if device.type != "cuda":
        return f"FlashAttention runs on NVIDIA GPUs, not on {device.type}"
    if dtype not in HALF:
        return f"FlashAttention computes in bfloat16 or float16, not in {str(dtype).removeprefix('torch.')}"
    if head_dim > WIDEST_HEAD:
        return f"FlashAttention's heads have at most {WIDEST_HEAD} components, not {head_dim}"
    return find(torch.cuda.get_device_capability(device)[0]).why_not


def why_no_varlen(device: torch.device, dtype: torch.dtype) -> str:
    """Empty when torch's varlen_attn can run; else the reason that it cannot."""
    if device.type != "cuda":
        return f"varlen_attn runs on NVIDIA GPUs, not on {device.type}"
    if dtype not in HALF:
        return f"varlen_attn computes in bfloat16 or float16, not in {str(dtype).removeprefix('torch.')}"
    return "" if varlen_function() else f"torch {torch.__version__} has no torch.nn.attention.varlen"


def version(device: torch.device) -> str:
    """Which FlashAttention runs on the GPU."""
    return find(torch.cuda.get_device_capability(device)[0]).name


def by_flash(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Causal attention, within documents when there are cu_seqlens: [B, H, T, K]."""
    if cu_seqlens is None:
        found = find(torch.cuda.get_device_capability(q_BHTK.device)[0])
        out = found.dense(*(x.transpose(1, 2) for x in (q_BHTK, k_BGTK, v_BGTK)), causal=True)
        return first(out).transpose(1, 2)
    return documents("flash", q_BHTK, k_BGTK, v_BGTK, cu_seqlens)


def by_varlen(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The same by torch's own kernel."""
    return documents("varlen", q_BHTK, k_BGTK, v_BGTK, cu_seqlens)


def documents(kernel: str, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, cu_seqlens: Tensor) -> Tensor:
    longest = q_BHTK.shape[2]  # a bound; the true length would be another number, and another compilation, in every batch
    out = packed(kernel, *(rowless(x) for x in (q_BHTK, k_BGTK, v_BGTK)), (cu_seqlens, cu_seqlens), (longest, longest))
    return out.unflatten(0, (q_BHTK.shape[0], longest)).transpose(1, 2)


def packed(
    kernel: str,
    q_NHK: Tensor,
    k_MGK: Tensor,
    v_MGK: Tensor,
    cu_seqlens: tuple[Tensor, Tensor],
    longest: tuple[int, int],
) -> Tensor:
    """Attention within pieces that follow one another: [N, H, K]. Of a piece's keys the last query sees all, each one before it one less.

    Args:
        kernel: flash or varlen. How the latter is told of causality and of shared heads changed between torch 2.10 and 2.13.
        cu_seqlens: where pieces begin in the queries and in the keys, and where the last ones end.
        longest: bounds of a piece's queries and keys.
    """
    if kernel == "flash":
        found = find(torch.cuda.get_device_capability(q_NHK.device)[0])
        names = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
        return first(found.varlen(q_NHK, k_MGK, v_MGK, **dict(zip(names, (*cu_seqlens, *longest))), causal=True))
    varlen = varlen_function()
    parameters = inspect.signature(varlen).parameters
    how = {"is_causal": True} if "is_causal" in parameters else {"window_size": (-1, 0)}
    if k_MGK.shape[1] != q_NHK.shape[1]:
        if "enable_gqa" in parameters:
            how["enable_gqa"] = True
        else:
            k_MGK, v_MGK = (x.repeat_interleave(q_NHK.shape[1] // x.shape[1], dim=1) for x in (k_MGK, v_MGK))
    return first(varlen(q_NHK, k_MGK, v_MGK, *cu_seqlens, *longest, **how))


def varlen_function() -> Callable | None:
    try:
        return importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None


def rowless(x_BHTK: Tensor) -> Tensor:
    """All rows' tokens in succession: [B·T, H, K]."""
    return x_BHTK.transpose(1, 2).flatten(0, 1)


def first(out: Tensor | tuple) -> Tensor:
    """The outputs, without the softmax's sums that some generations return too."""
    return out[0] if isinstance(out, tuple) else out
