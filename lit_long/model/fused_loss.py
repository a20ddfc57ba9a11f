"""Head and cross-entropy by other people's GPU kernels, which take the place of the chunked loss (loss.py) where they are faster.

    liger    Liger's fused linear cross-entropy: chunks of tokens as ours, with a kernel of its own for softmax and gradient
    cut      cut-cross-entropy (Wijmans et al. 2024): the logits are never in memory at all; without its filter of small gradients

Packages are imported when a loss is asked for, and one that is missing or broken is a sentence, not a crash.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from lit_long.batch import NO_LOSS
from lit_long.config import UserError, nearest

AUTO, CHUNKED = "auto", "chunked"
PACKAGES = {"liger": ("liger_kernel.transformers.functional", "liger-kernel"), "cut": ("cut_cross_entropy", "cut-cross-entropy")}
HALF = (torch.bfloat16, torch.float16)


def choose_loss(wanted: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend for training on ``device`` in ``dtype``. ``auto`` is the chunked loss: the others were not yet seen to be faster.

    Raises:
        UserError: an unknown backend, or one that cannot run here.
    """
    names = (AUTO, CHUNKED, *PACKAGES)
    if wanted not in names:
        raise UserError(f"trainer.loss={wanted}: no such loss{nearest(wanted, names)}")
    if wanted in (AUTO, CHUNKED):
        return CHUNKED
    if reason := why_not(wanted, device, dtype):
        raise UserError(f"trainer.loss={wanted} cannot run here: {reason}; use trainer.loss=chunked")
    return wanted


def why_not(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """Empty when a fused loss can run; else the reason that it cannot."""
    module, package = PACKAGES[backend]
    if device.type != "cuda":
        return f"{package} runs on GPUs, not on {device.type}"
    if backend == "cut" and dtype not in HALF:
        return f"{package} computes in bfloat16 or float16, not in {str(dtype).removeprefix('torch.')}"
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        return f"{package} is not installed: pip install {package}"
    except Exception as error:  # made for another torch or triton
        return f"{package} is installed but broken ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
    return ""


def fused_nats(backend: str, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, kernel: str = "cce_exact") -> Tensor:
    """Σ nats fp32 [] of hidden states under the head, both in the precision that is computed in. All targets count alike.

    Args:
        kernel: of cut-cross-entropy's; tests take the one that runs on a CPU.
    """
    package = importlib.import_module(PACKAGES[backend][0])
    if backend == "liger":  # fp32 sums over its chunks, as ours
        how = dict(ignore_index=NO_LOSS, reduction="sum", accum_dtype=torch.float32)
        return package.liger_fused_linear_cross_entropy(hidden_ND, head_VD, targets_N, **how)
    return package.linear_cross_entropy(hidden_ND, head_VD, targets_N, ignore_index=NO_LOSS, reduction="sum", impl=kernel).float()
