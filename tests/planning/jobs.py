"""Jobs that several tests plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lit_long.config import ModelConfig
from lit_long.config.mesh import Mesh
from lit_long.planning.job import Job

LLAMA_7B = ModelConfig(context=4096)
LLAMA3_8B = ModelConfig(128_256, 4096, 32, 32, 8, 128, 14_336, 1e-5, False, 8192, 500_000.0)
LLAMA_70B = ModelConfig(32_000, 8192, 80, 64, 8, 128, 28_672, 1e-5, False, 4096, 10_000.0)
SMALL = ModelConfig(1024, 128, 4, 4, 2, 32, 344, 1e-5, True, 256, 10_000.0)
FIFTEEN = ModelConfig(8192, 384, 8, 6, 3, 64, 1024, 1e-5, True, 512, 10_000.0)  # 16,128,384 parameters

# What a block of another family has besides, in two: for planning, and for ranks that share matrices (tests/parallel/test_mesh.py)
HEADS = {"qk_norm": "head", "qkv_bias": True}
LAYER = {"qk_norm": "layer", "norm": "post", "activation": "relu2", "qkv_bias": True, "o_bias": True, "mlp_bias": True}
LAYER |= {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 2.0}


def job(model: ModelConfig, rows: int = 1, **settings: Any) -> Job:
    """One update of one sequence of the model's context for each data rank, unless ``settings`` say otherwise.

    Args:
        rows: sequences of a micro-batch.
    """
    context = settings.pop("context", model.context)
    mesh = settings.pop("mesh", Mesh())
    sequences = settings.pop("sequences", mesh.data_ranks)
    each = Job(model, context, context * sequences, context * sequences * 100, mesh)
    return replace(each.with_rows(rows), **settings)
