"""In which precision parameters are kept, and matrices multiplied; what Lightning's own plugins leave open.

32-true      all in fp32
bf16-true    all in bf16, AdamW's moments too
bf16-mixed   parameters, gradients and moments in fp32. On a CPU and on one GPU torch's autocast rounds what a product takes, and the residual
             stream is in fp32. Sharded over GPUs, FSDP2 gathers rounded parameters instead (`ShardedMixed`)
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.plugins import HalfPrecision, Precision
from torch.distributed.fsdp import MixedPrecisionPolicy

from lit_long.config import TrainerConfig
from lit_long.config.mesh import gathers_rounded

# Inputs stay as they are: the tables of a rotation are in fp32.
ROUNDED = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


class TrueHalf(HalfPrecision):
    """Lightning's bf16-true, but that batches stay as they are: tokens' weights in the loss are summed, and bf16 would round them by 0.4 %."""

    def convert_input(self, data: Any) -> Any:
        return data


class ShardedMixed(Precision):
    """bf16-mixed without autocast: parameters are gathered in bf16, half of the bytes, and so the stream is in bf16; gradients are reduced in fp32. The
    module shards by `ROUNDED` then."""

    precision = "bf16-mixed"


def make_precision(trainer: TrainerConfig) -> Precision | None:
    """The plugin of ``trainer.precision``; None where Lightning's own is right."""
    if gathers_rounded(trainer):
        return ShardedMixed()
    return TrueHalf("bf16-true") if trainer.precision == "bf16-true" else None


def compute_dtype(precision: str) -> torch.dtype:
    """The precision of attention and of the head, from Lightning's name of the whole."""
    return torch.bfloat16 if precision.startswith("bf16") else torch.float32


def parameter_dtype(precision: str) -> torch.dtype:
    """What parameters are kept in."""
    return torch.bfloat16 if precision == "bf16-true" else torch.float32
