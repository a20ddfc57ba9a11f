"""What a training stage leaves in its folder while it runs: points of its curves, and checkpoints to resume from."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_long.data.accounting import consumed
from lit_long.model.batch import Batch
from lit_long.training.strategy import row_sharers, sum_of_rows
from lit_long.training.throughput import peak_flops, peak_memory_gib, update_flops

STEP = "step-{:08d}"
Report = Callable[[str, float], None]  # a line for people, and the share that is done


COUNTED = ("tokens", "documents", "cut", "cropped")  # of a domain, so far; see data/accounting.py
DOMAIN = "data/{}/{}"


class MetricsFile(Callback):
    """Appends one JSON line per update, and per validation, to ``metrics.jsonl``: step, time, losses, throughput, MFU, the share of the
    update's time that was spent waiting for data, and what was consumed of each domain so far, over all ranks.

    On resuming, lines past the checkpoint are dropped: they will be measured, and written, again.
    """

    def __init__(self, file: Path, precision: str, report: Report) -> None:
        self.file, self.precision, self.report = file, precision, report
        self.peak: float | None = None
        self.started = 0.0
        self.consumed: Tensor | None = None  # [domains, counts]

    def on_train_start(self, trainer: Trainer, module: lightning.LightningModule) -> None:
        self.peak = peak_flops(module.device, self.precision)
        domains = trainer.datamodule.mixed
        self.consumed = torch.zeros(len(domains), len(COUNTED), dtype=torch.int64)
        if trainer.is_global_zero and self.file.exists():
            kept = [
                line for line in self.file.read_text().splitlines() if line and json.loads(line)["step"] <= trainer.global_step
            ]
            self.file.write_text("".join(line + "\n" for line in kept))
            if last := next((row for row in map(json.loads, reversed(kept)) if "train/loss" in row), None):
                counts = [list(domain_counts(last, name).values()) for name in domains]
                self.consumed += torch.tensor(counts, dtype=torch.int64)
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: lightning.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        now = time.perf_counter()
        seconds, self.started = now - self.started, now
        rates = self.rates(batch, seconds, module) | {"perf/data_wait_share": trainer.train_dataloader.waited / seconds}
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")} | rates
        self.write(trainer, values | self.count(trainer, batch))
        if trainer.is_global_zero:
            speed = rates["perf/tokens_per_second_per_device"] * trainer.world_size
            message = f"update {trainer.global_step}/{module.updates} · loss {values['train/loss']:.3f} · {speed:,.0f} tokens/s"
            self.report(message, trainer.global_step / module.updates)

    def rates(self, batch: Batch, seconds: float, module: lightning.LightningModule) -> dict[str, float]:
        """Tokens/s of this rank's device, the two MFUs and the most memory so far (see throughput.py). ``batch`` holds whole rows."""
        devices = row_sharers(module.trainer.strategy)
        full, causal = (flops / devices for flops in update_flops(module.model_config, batch))
        tokens = batch.tokens.numel() / devices
        rates = {"perf/tokens_per_second_per_device": tokens / seconds, "perf/seconds": seconds}
        if memory := peak_memory_gib(module.device):
            rates["perf/peak_memory_gib"] = memory
        if self.peak:
            rates |= {"perf/mfu": full / seconds / self.peak, "perf/mfu_causal": causal / seconds / self.peak}
        return rates

    def count(self, trainer: Trainer, batch: Batch) -> dict[str, float]:
        """What all ranks have consumed so far, by domain."""
        domains = trainer.datamodule.mixed
        counts = consumed(batch.account, len(domains)).to(trainer.strategy.root_device)
        self.consumed += sum_of_rows(trainer.strategy, counts).cpu()
        return {
            DOMAIN.format(name, what): int(value)
            for name, row in zip(domains, self.consumed, strict=True)
            for what, value in zip(COUNTED, row, strict=True)
        }

    def on_validation_end(self, trainer: Trainer, module: lightning.LightningModule) -> None:
        self.write(trainer, {k: v for k, v in trainer.callback_metrics.items() if k.startswith("val/")})
        self.started = time.perf_counter()

    def write(self, trainer: Trainer, values: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            row = {"step": trainer.global_step, "time": time.time()} | {key: float(value) for key, value in values.items()}
            with self.file.open("a") as file:
                file.write(json.dumps(row) + "\n")


class ResumePoint(Callback):
    """Saves everything that resuming needs every ``every`` updates; the newest one stays.

    A checkpoint gets its name only when it is complete, so a kill at any moment leaves a good one behind.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every

    def on_train_batch_end(
        self, trainer: Trainer, module: lightning.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        if trainer.global_step % self.every or trainer.global_step == module.updates:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        name = STEP.format(trainer.global_step)
        trainer.save_checkpoint(self.folder / f"{name}.writing")
        if trainer.is_global_zero:
            os.replace(self.folder / f"{name}.writing", self.folder / f"{name}.ckpt")
            for old in self.folder.iterdir():
                if old.stem != name:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
        trainer.strategy.barrier()


def domain_counts(row: dict[str, float], name: str) -> dict[str, int]:
    """What a line of ``metrics.jsonl`` says was consumed of a domain so far. Lines from before it was counted say nothing."""
    return {what: int(row.get(DOMAIN.format(name, what), 0)) for what in COUNTED}


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to resume from, if there is one."""
    return max(folder.glob("step-*.ckpt"), default=None)


def machine(device: torch.device) -> str:
    """The processor that the numbers come from, in a few words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = "CPU"
    return f"{model}, {os.cpu_count()} cores"
