"""One of two ranks that take a model to be trained: prints the peak of resident memory while it is built, as a multiple of the whole model.

Run by test_mesh.py as: memory_ranks.py SCRATCH|FILE|FOLDER, with nothing, a stage's weights or a model as the hub has it.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import lightning
import torch

from lit_long.config import ModelConfig, OptimConfig
from lit_long.config.mesh import Mesh
from lit_long.pretrained import open_pretrained
from lit_long.training.module import LongContextModule
from lit_long.training.resume import Writer
from lit_long.training.run import quieten
from lit_long.training.strategy import MeshStrategy

MODEL = ModelConfig(vocab_size=1024, d_model=512, n_layers=12, n_heads=8, n_kv_heads=8, head_dim=64, d_ffn=1536, context=64)


class Built(Exception):
    pass


class Watch(lightning.Callback):
    """Stops where the model is built, and says what that took."""

    def setup(self, trainer, module, stage):
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def on_fit_start(self, trainer, module):
        whole = sum(parameter.numel() for parameter in module.model.parameters()) * 4
        share = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self.before) / whole
        os.write(1, f"{share:.3f}\n".encode())  # in one piece: two ranks write
        raise Built


if __name__ == "__main__":
    quieten()
    torch.manual_seed(0)
    source = Path(sys.argv[1]) if sys.argv[1] != "SCRATCH" else None
    if source is not None and source.is_dir():
        source = open_pretrained(str(source))
    module = LongContextModule(MODEL, {"scheme": "rope"}, OptimConfig(), updates=1, init_from=source)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=MeshStrategy(Mesh(shard=2), Writer(False)),
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Watch()],
    )
    try:
        trainer.fit(module, torch.utils.data.DataLoader([0]))
    except Built:
        os._exit(0)
