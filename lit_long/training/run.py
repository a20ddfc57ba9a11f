"""A training stage from its settings: data, module, Trainer, resume, weights out."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from lit_long.checkpoints.external import External, open_external
from lit_long.checkpoints.weights import WEIGHTS, save_weights
from lit_long.config import StageConfig, TrainerConfig, UserError
from lit_long.data import accounting
from lit_long.data.curriculum import make_phases
from lit_long.data.module import LongContextDataModule
from lit_long.model.attention import describe, use
from lit_long.training.adapter import save_adapted, trained_part
from lit_long.training.callbacks import MetricsFile, Report, ResumePoint, domain_counts, machine, newest_checkpoint
from lit_long.training.module import LongContextModule


def number_of_updates(config: StageConfig) -> int:
    """Optimizer updates of a stage: its tokens in whole updates, at least one."""
    return max(1, round(config.tokens / config.tokens_per_update))


def train(config: StageConfig, folder: Path, store: Path, parent: Path | None, report: Report) -> dict[str, Any]:
    """Run, or resume, the training stage in ``folder`` and return its result.

    Args:
        store: folder of the prepared token store.
        parent: folder of the stage whose weights this one starts from.
        report: hears of every update.
    """
    updates = number_of_updates(config)
    phases = make_phases(config.curriculum, config.context, config.tokens_per_update, updates, str(folder / "stage.yaml"))
    data = LongContextDataModule(
        store,
        weights={name: weight for name, weight in config.data.weights.items() if weight},
        context=config.context,
        tokens_per_update=config.tokens_per_update,
        updates=updates,
        seed=config.seed,
        mask_documents=config.data.mask_documents,
        validation_sequences=config.validation.sequences,
        packing=config.data.packing,
        sampling=config.data.sampling,
        repeats={name: passes for name, passes in config.data.repeats.items() if passes},
        max_epochs=config.data.max_epochs,
        phases=phases,
        instruct={name: source.instruct for name, source in config.data.sources.items() if source.instruct.schema},
    )
    planned = data.plan()
    report(f"data: {accounting.describe(planned)}", 0.0)
    if config.validation.times:
        data.check_validation()
    module = LongContextModule(
        config.model,
        config.position,
        config.optim,
        updates=updates,
        switches=[(phase.start, phase.position or config.position) for phase in phases] if config.curriculum.phases else (),
        init_from=starting_weights(config, parent),
        adapter=config.adapter,
        seed=config.seed,
        micro_batch_tokens=config.trainer.micro_batch_tokens,
        loss_memory=config.trainer.loss_memory,
        checkpointing=config.trainer.checkpointing,
        compiled=config.trainer.compile,
    )
    checkpoints = folder / "checkpoints"
    every = -(-updates // config.validation.times) if config.validation.times else 0
    trainer = lightning.Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.nodes,
        strategy=strategy(config.trainer),
        precision=config.trainer.precision,
        plugins=[TorchElasticEnvironment()] if TorchElasticEnvironment.detect() else None,
        max_steps=updates,
        val_check_interval=every or None,
        check_val_every_n_epoch=None,
        limit_val_batches=None if every else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[
            MetricsFile(folder / "metrics.jsonl", config.trainer.precision, report),
            ResumePoint(checkpoints, config.trainer.checkpoint_every),
        ],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    checkpoint = newest_checkpoint(checkpoints)
    started = time.perf_counter()
    with use(config.trainer.attention):
        report(f"attention: {describe(trainer.strategy.root_device, computed_in(config), config.model.head_dim)}", 0.0)
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False)
    if trainer.interrupted or trainer.global_step < updates:
        raise KeyboardInterrupt
    if every and updates % every:
        trainer.validate(module, data, verbose=False)
    seconds = time.perf_counter() - started
    if config.adapter.rank:
        save_adapted(module.model, config.adapter, folder, config.model.init or parent.name, trainer.is_global_zero)
    else:
        save_weights(module.model, folder / WEIGHTS, trainer.is_global_zero)
    if not trainer.is_global_zero:
        return {}
    result = summary(config, folder, module, trainer, seconds) | {"data": account(planned, folder / "metrics.jsonl")}
    return result | (trained_part(module.model) if config.adapter.rank else {})


def account(planned: dict[str, dict[str, Any]], metrics: Path) -> dict[str, dict[str, Any]]:
    """What was planned to be taken of each domain, and beside it what was: ``consumed``, by the names that MetricsFile writes."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    last = next(row for row in reversed(rows) if "train/loss" in row)
    return {name: row | {"consumed": domain_counts(last, name)} for name, row in planned.items()}


def starting_weights(config: StageConfig, parent: Path | None) -> Path | External | None:
    """The parent's weights, else those that ``model.init`` names; None when training starts from scratch."""
    if parent is not None:
        return parent / WEIGHTS
    return open_external(config.model.init) if config.model.init else None


def computed_in(config: StageConfig) -> torch.dtype:
    """The precision of attention."""
    return torch.bfloat16 if config.trainer.precision.startswith("bf16") else torch.float32


def strategy(trainer: TrainerConfig) -> str | Strategy:
    """The Lightning strategy of ``trainer.strategy``."""
    if trainer.strategy == "single":
        if trainer.devices != 1:
            raise UserError(
                f"trainer.strategy=single runs on one device, not trainer.devices={trainer.devices}; use trainer=fsdp"
            )
        return "auto"
    if trainer.strategy == "fsdp":
        # One ordinary checkpoint file, which resumes on any number of ranks, a single one included.
        return ModelParallelStrategy(
            data_parallel_size=trainer.nodes * trainer.devices, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    raise UserError(f"trainer.strategy must be single or fsdp, not {trainer.strategy!r}")


def summary(
    config: StageConfig, folder: Path, module: LongContextModule, trainer: lightning.Trainer, seconds: float
) -> dict[str, Any]:
    """``result.json`` of a training stage. ``seconds`` are those of this process; a resumed stage took longer in all."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "train/loss" in row]
    validation = [row for row in rows if any(key.startswith("val/") for key in row)]
    speeds = sorted(row["perf/tokens_per_second_per_device"] for row in steps)
    last = validation[-1] if validation else {}
    return {
        "kind": "train",
        "context": config.context,
        "tokens": len(steps) * config.tokens_per_update,
        "updates": len(steps),
        "parameters": sum(p.numel() for p in module.model.parameters()),
        "train_loss": steps[-1]["train/loss"],
        "validation": {key.split("/")[1]: value for key, value in last.items() if key.startswith("val/")},
        "tokens_per_second": speeds[len(speeds) // 2] * config.trainer.nodes * config.trainer.devices,
        "mfu_causal": steps[-1].get("perf/mfu_causal"),
        "peak_memory_gib": steps[-1].get("perf/peak_memory_gib"),
        "seconds": seconds,
        "precision": config.trainer.precision,
        "machine": machine(module.device),
        "versions": {"torch": torch.__version__, "lightning": lightning.__version__},
    }
