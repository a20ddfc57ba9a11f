"""A training stage from its settings: data, module, Trainer, resume, weights out."""

from __future__ import annotations

import json
import logging
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import Strategy

from lit_long.config import LayersConfig, StageConfig, TrainerConfig, UserError, typed
from lit_long.config.checkpoints import (
    CHECKPOINTS,
    check_checkpoints,
    milestone_updates,
    writes_in_background,
)
from lit_long.config.mesh import ROUNDED_UPDATES, check_mesh
from lit_long.config.updates import first_update, number_of_updates
from lit_long.data.curriculum import Phase, make_phases, phases_from
from lit_long.data.datamodule import LongContextDataModule
from lit_long.data.mixture import describe_plan
from lit_long.files import lines_of
from lit_long.model.attention import describe, use
from lit_long.pretrained import PretrainedWeights, open_pretrained
from lit_long.pretrained.weights import WEIGHTS, save_weights, trained_weights
from lit_long.processor import describe_machine
from lit_long.training.adapter import count_trained, save_adapted
from lit_long.training.callbacks import LateValidation, MetricsFile, Report, ResumePoint, domain_counts
from lit_long.training.context_parallel import check_compiled
from lit_long.training.module import LongContextModule
from lit_long.training.precision import compute_dtype, make_precision
from lit_long.training.resume import OneFile, Writer, newest_checkpoint
from lit_long.training.signals import Stopped, StopRequest
from lit_long.training.spike_guard import SpikeGuard
from lit_long.training.strategy import MeshStrategy
from lit_long.training.watchdog import Watchdog


def quieten() -> None:
    """Keep Lightning's banners and known harmless warnings out of the log. (When it is imported it sets its loggers' levels itself.)"""
    for name in ("lightning.pytorch", "lightning.fabric", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def train(config: StageConfig, folder: Path, store: Path, parent: Path | None, report: Report) -> dict[str, Any]:
    """Run, or resume, the training stage in ``folder`` and return its result.

    Args:
        store: folder of the prepared token store.
        parent: folder of the stage whose weights this one starts from, or of a branch, whose run it goes on with.
        report: hears of every update.
    """
    quieten()
    check_checkpoints(config, str(folder / "stage.yaml"))
    first, updates = first_update(config), number_of_updates(config)
    phases = make_phases(config.curriculum, config.context, config.tokens_per_update, first + updates, str(folder / "stage.yaml"))
    data = LongContextDataModule(
        store,
        weights={name: weight for name, weight in config.data.weights.items() if weight},
        context=config.context,
        tokens_per_update=config.tokens_per_update,
        updates=first + updates,
        first=first,
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
    report(f"data: {describe_plan(planned)}", 0.0)
    if config.validation.times:
        data.check_validation()
    module = LongContextModule(
        config.model,
        config.position,
        config.optim,
        updates=updates,
        layers=config.layers,
        switches=[switch(config, phase) for phase in phases_from(first, phases)] if config.curriculum.phases else (),
        init_from=find_starting_weights(config, parent),
        adapter=config.adapter,
        seed=config.seed,
        micro_batch_tokens=config.trainer.micro_batch_tokens,
        loss_memory=config.trainer.loss_memory,
        loss=config.trainer.loss,
        checkpointing=config.trainer.checkpointing,
        compiled=config.trainer.compile,
        accumulate=config.trainer.accumulate,
        spike_guard=SpikeGuard(config.trainer.on_bad_step, config.trainer.spike),
    )
    checkpoints, writer = folder / CHECKPOINTS, Writer(writes_in_background(config.trainer))
    every = -(-updates // config.validation.times) if config.validation.times else 0
    metrics = MetricsFile(folder / "metrics.jsonl", config.trainer.precision, report)
    trainer = lightning.Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.nodes,
        strategy=make_strategy(config, writer),
        precision=None if make_precision(config.trainer) else config.trainer.precision,
        plugins=make_plugins(config.trainer, writer),
        max_steps=updates,
        val_check_interval=every or None,
        check_val_every_n_epoch=None,
        limit_val_batches=None if every else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[
            metrics,
            ResumePoint(
                checkpoints,
                config.trainer.checkpoint_every,
                config.trainer.keep_checkpoints,
                milestone_updates(config),
                writer,
                StopRequest(),
            ),
            Watchdog(folder, config.trainer.timeout_minutes),
            LateValidation(metrics, every),
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
        kernels = trainer.strategy.root_device, compute_dtype(config.trainer.precision), config.model.head_dim
        if config.trainer.compile and config.trainer.context_parallel > 1:
            check_compiled(*kernels)
        attention = describe(*kernels)
        if trainer.is_global_zero:
            print(f"attention: {attention}", flush=True)  # log.txt; progress.json holds the last message only
            if config.trainer.precision == "bf16-true":
                print(f"precision: {ROUNDED_UPDATES}", flush=True)
        try:
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False)
        except Stopped as stopped:
            raise KeyboardInterrupt(str(stopped)) from None
    if trainer.interrupted or trainer.global_step < updates:
        raise KeyboardInterrupt
    if every and not metrics.validated(trainer):  # not due at the last update, or killed before its end
        trainer.validate(module, data, verbose=False)
    seconds = time.perf_counter() - started
    if config.adapter.rank:
        save_adapted(module.model, config.adapter, folder, config.model.init or parent.name, trainer.is_global_zero)
    else:
        save_weights(module.model, folder / WEIGHTS, trainer.is_global_zero)
    if not trainer.is_global_zero:
        return {}
    result = summarize(config, folder, module, trainer, metrics.seconds_before + seconds) | {
        "attention": attention,
        "data": add_consumed(planned, folder / "metrics.jsonl"),
    }
    return result | (count_trained(module.model, config.optim) if config.adapter.rank else {})


def switch(config: StageConfig, phase: Phase) -> tuple[int, dict[str, Any], LayersConfig]:
    """The update that a phase begins with, and its positional settings and layers."""
    layers = typed(LayersConfig, phase.layers, "curriculum") if phase.layers else config.layers
    return phase.start, phase.position or config.position, layers


def add_consumed(planned: dict[str, dict[str, Any]], metrics: Path) -> dict[str, dict[str, Any]]:
    """What was planned to be taken of each domain, and beside it what was: ``consumed``, by the names that MetricsFile writes."""
    rows = [json.loads(line) for line in lines_of(metrics.read_text())]
    last = next(row for row in reversed(rows) if "train/loss" in row)
    return {name: row | {"consumed": domain_counts(last, name)} for name, row in planned.items()}


def find_starting_weights(config: StageConfig, parent: Path | None) -> Path | PretrainedWeights | None:
    """The parent's weights, else those that ``model.init`` names; None when training starts from scratch."""
    if parent is not None:
        return trained_weights(config, parent)
    return open_pretrained(config.model.init) if config.model.init else None


def make_strategy(config: StageConfig, writer: Writer) -> str | Strategy:
    """The Lightning strategy of ``trainer.*``.

    Raises:
        UserError: the model cannot be dealt to that mesh, or there are not as many processes as it has ranks.
    """
    mesh, elastic = check_mesh(config), TorchElasticEnvironment.detect()
    started = TorchElasticEnvironment().world_size() if elastic else 1
    if started != mesh.ranks and (elastic or config.trainer.nodes > 1):
        raise UserError(
            f"trainer.nodes={config.trainer.nodes} · trainer.devices={config.trainer.devices} needs {mesh.ranks} processes, and "
            f"{started} were started; several machines need a launcher that starts them (launcher=…)"
        )
    patience = timedelta(minutes=(config.trainer.timeout_minutes or 30) + 5)
    return "auto" if config.trainer.strategy == "single" else MeshStrategy(mesh, writer, patience)


def make_plugins(trainer: TrainerConfig, writer: Writer) -> list[Any]:
    """Who started the ranks, who writes checkpoints on one device, and precisions that are not Lightning's own."""
    started = [TorchElasticEnvironment()] if TorchElasticEnvironment.detect() else []
    precision = make_precision(trainer)
    return started + ([precision] if precision else []) + ([OneFile(writer)] if trainer.strategy == "single" else [])


def summarize(
    config: StageConfig, folder: Path, module: LongContextModule, trainer: lightning.Trainer, seconds: float
) -> dict[str, Any]:
    """``result.json`` of a training stage. ``seconds`` are those of this process, and of the updates before it where the stage was resumed."""
    rows = [json.loads(line) for line in lines_of((folder / "metrics.jsonl").read_text())]
    steps = [row for row in rows if "train/loss" in row]
    validation = [row for row in rows if any(key.startswith("val/") for key in row)]
    speed, mfu = (median_of(steps, f"perf/{name}") for name in ("tokens_per_second_per_device", "mfu_causal"))
    last = validation[-1] if validation else {}
    return {
        "kind": "train",
        "context": config.context,
        "tokens": trainer.global_step * config.tokens_per_update,
        "updates": trainer.global_step,
        "parameters": sum(p.numel() for p in module.model.parameters()),
        "train_loss": steps[-1]["train/loss"],
        "validation": {key.split("/")[1]: value for key, value in last.items() if key.startswith("val/")},
        "tokens_per_second": speed * trainer.world_size,
        "mfu_causal": mfu,
        "peak_memory_gib": steps[-1].get("perf/peak_memory_gib"),
        "seconds": seconds,
        "skipped_updates": module.spike_guard.skipped,
        "precision": config.trainer.precision,
        "machine": describe_machine(trainer.strategy.root_device),  # Lightning has moved the module off it
        "versions": {"torch": torch.__version__, "lightning": lightning.__version__},
    }


def median_of(rows: list[dict[str, float]], name: str) -> float | None:
    """Of the updates, the upper of two; None where it was not measured."""
    values = sorted(row[name] for row in rows if name in row)
    return values[len(values) // 2] if values else None
