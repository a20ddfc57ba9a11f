"""Two ranks (FSDP2, gloo) that train pretrained weights for one update and let Lightning save a sharded checkpoint.

Run by test_sweep_from_weights.py as: sharded.py STORE LLAMA OUT; OUT.safetensors gets the whole weights, as an oracle.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning
from lightning.pytorch.plugins.environments import TorchElasticEnvironment

from lit_long.config import OptimConfig
from lit_long.config.mesh import Mesh
from lit_long.data.datamodule import LongContextDataModule
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.weights import save_weights
from lit_long.training.module import LongContextModule
from lit_long.training.strategy import MeshStrategy

if __name__ == "__main__":
    store, llama, out = sys.argv[1:]
    pretrained = open_pretrained(llama)
    data = LongContextDataModule(Path(store), weights={"program": 1.0}, context=64, tokens_per_update=128, updates=1)
    module = LongContextModule(pretrained.shape, pretrained.position, OptimConfig(), updates=1, init_from=pretrained)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=MeshStrategy(Mesh(shard=2)),
        plugins=[TorchElasticEnvironment()],
        max_steps=1,
        limit_val_batches=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(out)
    save_weights(module.model, Path(f"{out}.safetensors"), trainer.is_global_zero)
