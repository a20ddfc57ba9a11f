"""FlashAttention on NVIDIA GPUs (Dao et al. 2022), from whichever package is there, and torch's own varlen_attn.

Nothing is imported before a GPU asks for it, and a package that is missing or broken is a sentence in the log, not a crash. Generation 2 brings its own
operations. Generations 3 and 4 are put behind torch's (`torch.nn.attention.activate_flash_attention_impl`): varlen_attn then runs their kernels, and
torch.compile and checkpointing that keeps what attention gives know it.

What runs is found once, by `ready`, before the blocks of a model are entered: the compiler traces no import.

Shapes as in attention.py.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
WIDEST_HEAD = 256


class Generation(NamedTuple):
    """One generation of FlashAttention.

    module        what to import
    install       the command that brings it
    distribution  that must be installed; "" where several bring it. (FlashAttention 2's own wheel holds an old `flash_attn.cute` that cannot train.)
    torch_name    what torch calls it; "" where it is called by itself
    """

    name: str
    module: str
    install: str
    distribution: str = ""
    torch_name: str = ""


FLASH_2 = Generation("FlashAttention 2", "flash_attn", "pip install --no-build-isolation flash-attn")
FLASH_3 = Generation(
    "FlashAttention 3",
    "flash_attn_interface",
    "pip install --no-build-isolation ./flash-attention/hopper",  # of its repository; the name flash-attn-3 holds nothing
    torch_name="FA3",
)
FLASH_4 = Generation("FlashAttention 4", "flash_attn.cute.interface", "pip install flash-attn-4", "flash-attn-4", "FA4")


class Order(NamedTuple):
    """What the generations of FlashAttention for some GPUs are, best first, and which of them are faster there than what torch brings along."""

    gpus: str
    generations: tuple[Generation, ...]
    faster: tuple[Generation, ...]


# By major compute capability. On Hopper and Blackwell SDPA is cuDNN's kernel, which FlashAttention 2 does not reach.
ORDERS = {
    8: Order("Ampere, Ada", (FLASH_2,), (FLASH_2,)),
    9: Order("Hopper", (FLASH_3, FLASH_4, FLASH_2), (FLASH_3,)),
    10: Order("Blackwell, data centre", (FLASH_4,), (FLASH_4,)),
    12: Order("Blackwell, desktop", (FLASH_2,), (FLASH_2,)),
}


class Found(NamedTuple):
    """The generation that is used on a GPU; or, without any, why none is."""

    generation: Generation | None = None
    why_not: str = ""


class Kernel(NamedTuple):
    """What the blocks call.

    dense   q, k, v [B, T, H or G, K], window → [B, T, H, K], causal; None: whole sequences go through ``packed``, too
    packed  q [N, H, K], k, v [M, G, K], cu_seqlens of queries and of keys, bounds of their lengths, window → [N, H, K], causal within each piece

    Kernels count a window's tokens without the query's own; here it is among them.
    """

    packed: Callable[..., Tensor]
    dense: Callable[..., Tensor] | None = None


_kernels: dict[str, Kernel] = {}  # flash and varlen, once they are ready


@functools.cache
def find(capability: int, insists: bool = False) -> Found:
    """The best generation that is installed for the device's (major) compute capability.

    Args:
        insists: takes one that is slower there than torch's own kernels, too.
    """
    order = ORDERS.get(capability, Order("", (), ()))
    if not order.generations:
        return Found(why_not=f"no FlashAttention is written for compute capability {capability}.x")
    reasons = []
    for generation in order.generations if insists else order.faster:
        if reason := why_not(generation):
            reasons.append(reason)
        else:
            return Found(generation)
    return Found(why_not="; ".join(reasons))


def why_not(generation: Generation) -> str:
    """Why a generation cannot be used; empty when it can."""
    name = generation.module
    try:
        if generation.distribution:
            importlib.metadata.version(generation.distribution)
        module = importlib.import_module(name)
        if generation.torch_name and not hasattr(torch.nn.attention, "activate_flash_attention_impl"):
            return f"{generation.name} needs a torch that can put it behind its own operations (2.11 or newer), not {torch.__version__}"
        if not generation.torch_name and not hasattr(module, "flash_attn_varlen_func"):
            return f"{name} is installed but has no flash_attn_varlen_func"
    except importlib.metadata.PackageNotFoundError:
        return f"{generation.name} ({generation.distribution}) is not installed"
    except ModuleNotFoundError as error:
        if name == error.name or name.startswith(f"{error.name}."):
            return f"{generation.name} ({name}) is not installed"
        return f"{name} is installed but lacks the package {error.name}"
    except Exception as error:  # built for another torch: undefined symbols, and whatever else a broken binary raises
        return f"{name} is installed but broken ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
    return ""


def why_no_flash(device: torch.device, dtype: torch.dtype, head_dim: int, insists: bool = False) -> str:
    """Empty when FlashAttention can run, and pays or is insisted on; else the reason that it does not."""
    if device.type != "cuda":
        return f"FlashAttention runs on NVIDIA GPUs, not on {device.type}"
    if dtype not in HALF:
        return f"FlashAttention computes in bfloat16 or float16, not in {str(dtype).removeprefix('torch.')}"
    if head_dim > WIDEST_HEAD:
        return f"FlashAttention's heads have at most {WIDEST_HEAD} components, not {head_dim}"
    return find(torch.cuda.get_device_capability(device)[0], insists).why_not


def why_no_varlen(device: torch.device, dtype: torch.dtype) -> str:
    """Empty when torch's varlen_attn can run; else the reason that it cannot."""
    if device.type != "cuda":
        return f"varlen_attn runs on NVIDIA GPUs, not on {device.type}"
    if dtype not in HALF:
        return f"varlen_attn computes in bfloat16 or float16, not in {str(dtype).removeprefix('torch.')}"
    return "" if varlen_function() else f"torch {torch.__version__} has no torch.nn.attention.varlen"


def version(device: torch.device, insists: bool = False) -> str:
    """Which FlashAttention runs on the GPU."""
    return find(torch.cuda.get_device_capability(device)[0], insists).generation.name


def ready(kernel: str, device: torch.device, insists: bool = False) -> None:
    """Find the functions of flash or varlen, for the blocks to call: outside of them, since a compiler cannot trace how they are found."""
    if kernel in _kernels or kernel == "sdpa":
        return
    generation = find(torch.cuda.get_device_capability(device)[0], insists).generation if kernel == "flash" else None
    _kernels[kernel] = flash_2() if generation == FLASH_2 else torchs_own(generation.torch_name if generation else "")


def flash_2() -> Kernel:
    """FlashAttention 2's own functions."""
    module = importlib.import_module(FLASH_2.module)
    dense, varlen = module.flash_attn_func, module.flash_attn_varlen_func

    def packed(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, longest_q: int, longest_k: int, window: int | None
    ) -> Tensor:
        cu_k = cu_k.clone() if cu_k is cu_q else cu_k  # the compiler traces no autograd function that gets a tensor twice
        return first(varlen(q, k, v, cu_q, cu_k, longest_q, longest_k, causal=True, **within(window)))

    def within(window: int | None) -> dict[str, tuple[int, int]]:
        return {} if window is None else {"window_size": (window - 1, 0)}

    return Kernel(packed, lambda q, k, v, window: first(dense(q, k, v, causal=True, **within(window))))


def torchs_own(implementation: str) -> Kernel:
    """torch's varlen_attn, by its own kernel or that of an ``implementation`` (FA3, FA4) put behind it for this process. How it is told of causality and
    of shared heads changed between torch 2.10 and 2.13."""
    if implementation:
        torch.nn.attention.activate_flash_attention_impl(implementation)
    varlen = varlen_function()
    known = inspect.signature(varlen).parameters
    causal = {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}
    shares = "enable_gqa" in known

    def packed(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, longest_q: int, longest_k: int, window: int | None
    ) -> Tensor:
        how = dict(causal) if window is None else {"window_size": (window - 1, 0)}
        if k.shape[1] != q.shape[1]:
            if shares:
                how["enable_gqa"] = True
            else:
                k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        return first(varlen(q, k, v, cu_q, cu_k, longest_q, longest_k, **how))

    return Kernel(packed)


def varlen_function() -> Callable | None:
    try:
        return importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None


def attend(
    kernel: str,
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTK: Tensor,
    cu_seqlens: Tensor | None,
    longest: int,
    window: int | None = None,
) -> Tensor:
    """Causal attention, within documents when there are cu_seqlens, and within a window if there is one, by flash or varlen: [B, H, T, K].

    Args:
        longest: a bound of the documents' lengths.
    """
    B, _, T, _ = q_BHTK.shape
    dense = _kernels[kernel].dense
    if cu_seqlens is None and dense is not None:
        return dense(*(x.transpose(1, 2) for x in (q_BHTK, k_BGTK, v_BGTK)), window).transpose(1, 2)
    if cu_seqlens is None:
        cu_seqlens, longest = torch.arange(0, B * T + 1, T, dtype=torch.int32, device=q_BHTK.device), T
    rowless_qkv = (rowless(x) for x in (q_BHTK, k_BGTK, v_BGTK))
    out = _kernels[kernel].packed(*rowless_qkv, cu_seqlens, cu_seqlens, longest, longest, window)
    return out.unflatten(0, (B, T)).transpose(1, 2)


def packed(
    kernel: str,
    q_NHK: Tensor,
    k_MGK: Tensor,
    v_MGK: Tensor,
    cu_seqlens: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    window: int | None = None,
) -> Tensor:
    """Attention within pieces that follow one another: [N, H, K]. Of a piece's keys the last query sees all, each one before it one less.

    Args:
        kernel: flash or varlen, which is `ready`.
        cu_seqlens: where pieces begin in the queries and in the keys, and where the last ones end.
        longest: bounds of a piece's queries and keys.
    """
    return _kernels[kernel].packed(q_NHK, k_MGK, v_MGK, *cu_seqlens, *longest, window)


def rowless(x_BHTK: Tensor) -> Tensor:
    """All rows' tokens in succession: [B·T, H, K]."""
    return x_BHTK.transpose(1, 2).flatten(0, 1)


def first(out: Tensor | tuple) -> Tensor:
    """The outputs, without the softmax's sums that some generations return too."""
    return out[0] if isinstance(out, tuple) else out
