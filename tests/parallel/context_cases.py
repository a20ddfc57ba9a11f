"""Short trainings whose sequences ranks share, and the same on one process. Run by test_context_parallel.py as:
context_cases.py OUT REPLICATE SHARD CONTEXT TENSOR CASE …; rank 0 writes what it found to OUT."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
import torch._dynamo
import torch.distributed as dist
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from torch._dynamo.utils import counters

from lit_long.batch import NO_LOSS, PADDING, Batch
from lit_long.config import LayerGroupConfig, LayersConfig, ModelConfig, OptimConfig
from lit_long.config.mesh import Mesh
from lit_long.training.module import LongContextModule
from lit_long.training.strategy import MeshStrategy

UPDATES, LENGTH, CLIP = 8, 48, 0.5
ROPE = {"scheme": "rope", "base": 10_000.0}
DOCUMENTS = torch.tensor(
    [
        [0] * 48,
        [0] * 12 + [1] * 12 + [2] * 24,  # boundaries at the cuts
        [0] * 5 + [1] * 20 + [2] * 16 + [PADDING] * 7,
        [0] * 30 + [1] + [2] * 17,
    ]
)
# A window that ends within a chunk, beyond it, and within a document
LOCAL = LayersConfig(
    {"local": LayerGroupConfig(window=15), "global": LayerGroupConfig({"scheme": "nope"}, None, {"form": "log", "base": 8})},
    ["local", "global"],
)
# What differs from the first: the model, the encoder, masking, weights of targets, what is done to the blocks
CASES: dict[str, dict[str, Any]] = {
    "documents": {},
    "whole": {"masked": False, "tied": False, "checkpointing": "full", "position": {"scheme": "dynamic_ntk", "original": 20}},
    "weights": {"weights": True, "kv_heads": 4, "position": {"scheme": "yarn", "base": 10_000.0, "factor": 4.0, "original": 16}},
    "pose": {
        "checkpointing": "selective",
        "position": {
            "scheme": "dynamic_ntk",  # whose tables are those of the target
            "original": 20,
            "training": {"transform": "pose", "window": 20, "target": 64, "chunks": 2},
        },
    },
    "randomised": {"masked": False, "position": ROPE | {"training": {"transform": "randomised", "length": 64}}},
    "layers": {"layers": LOCAL},
    "compiled": {"compiled": True},
    "compiled layers": {"compiled": True, "layers": LOCAL},
    "compiled selective": {"compiled": True, "checkpointing": "selective", "masked": False},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
}


def batch_of(seed: int, masked: bool, weighted: bool) -> Batch:
    """Rows with 2, 30, 41 and 47 targets: the first row's lie in the first chunk, the second's have a hole."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(97, (4, LENGTH), generator=generator)
    targets = tokens.roll(-1, 1)
    targets[0, 2:] = NO_LOSS
    targets[1, 10:28] = NO_LOSS
    targets[DOCUMENTS == PADDING] = NO_LOSS
    targets[3, -1] = NO_LOSS
    places = torch.arange(LENGTH).expand(4, -1)
    starts = torch.ones_like(DOCUMENTS, dtype=torch.bool)
    starts[:, 1:] = DOCUMENTS[:, 1:] != DOCUMENTS[:, :-1]
    positions = places - torch.where(starts, places, 0).cummax(1).values if masked else places
    weights = torch.rand(4, LENGTH, generator=generator) if weighted else None
    divisor = weights.round() if weighted else None
    return Batch(tokens, targets, DOCUMENTS, positions, masked, weights=weights, divisor=divisor)


class Loader:
    """Batches as Lightning wants them: a list would be many loaders to it."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class Rows(lightning.LightningDataModule):
    """The rows of every update, dealt to the ranks that have rows of their own."""

    def __init__(self, masked: bool, weighted: bool) -> None:
        super().__init__()
        self.masked, self.weighted = masked, weighted

    def dealt(self, *seeds: int) -> Loader:
        ranks = self.trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        rows = 4 // ranks["num_replicas"]
        own = rows * ranks["rank"], rows * (ranks["rank"] + 1)
        return Loader([batch_of(seed, self.masked, self.weighted).rows(*own) for seed in seeds])

    def train_dataloader(self) -> Loader:
        return self.dealt(*range(UPDATES))

    def val_dataloader(self) -> Loader:
        return self.dealt(100, 101)


class Curve(lightning.Callback):
    """Losses and gradient norms of all updates, and losses of all validations."""

    def __init__(self) -> None:
        self.losses, self.norms, self.validation = [], [], []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.norms.append(float(trainer.callback_metrics["train/grad_norm"]))

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.validation.append(float(trainer.callback_metrics["val/0/loss"]))


def fit(
    sizes: Mesh | None = None,
    *,
    masked: bool = True,
    weights: bool = False,
    tied: bool = True,
    kv_heads: int = 2,
    position: dict[str, Any] = ROPE,
    precision: str = "32-true",
    **how: Any,
) -> dict[str, Any]:
    """A run of 8 updates with clipping, and what there is to compare of it. On one process unless ``sizes`` are given."""
    shape = ModelConfig(100, 64, 2, 4, kv_heads, 16, 96, tie_embeddings=tied, context=LENGTH)
    optim = OptimConfig(lr=3e-3, grad_clip=CLIP)
    module = LongContextModule(shape, position, optim, updates=UPDATES, micro_batch_tokens=LENGTH, **how)
    curve = Curve()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=sizes.ranks if sizes else 1,
        strategy=MeshStrategy(sizes) if sizes else "auto",
        precision=precision,
        plugins=[TorchElasticEnvironment()] if sizes else None,
        max_steps=UPDATES,
        val_check_interval=UPDATES // 2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[curve],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch._dynamo.reset()
    counters.clear()
    trainer.fit(module, Rows(masked, weights))
    assert not counters["graph_break"]
    final = {
        name: p.full_tensor() if hasattr(p, "full_tensor") else p.detach().clone() for name, p in module.model.named_parameters()
    }
    curves = {"losses": curve.losses, "norms": curve.norms, "validation": curve.validation}
    return curves | {"weights": final, "compilations": counters["stats"]["unique_graphs"]}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    out, mesh, names = Path(sys.argv[1]), Mesh(*map(int, sys.argv[2:6])), sys.argv[6:]
    found = {name: fit(mesh, **CASES[name]) for name in names}
    if dist.get_rank() == 0:
        torch.save(found, out)
    dist.destroy_process_group()
