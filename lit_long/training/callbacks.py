"""What a training stage leaves in its folder while it runs: points of its curves, and checkpoints to resume from."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_long.batch import Batch
from lit_long.config import UserError
from lit_long.config.checkpoints import STEP
from lit_long.data.mixture import count_consumed
from lit_long.files import lines_of
from lit_long.training.resume import DELETING, WRITING, Writer, discard
from lit_long.training.signals import Stopped, StopRequest
from lit_long.training.strategy import row_sharers, sum_of_rows
from lit_long.training.throughput import peak_flops, peak_memory_gib, update_flops

Report = Callable[[str, float], None]  # a line for people, and the share that is done
QUICK_SECONDS = 15  # torchrun and SLURM kill 30 s after asking; the update has to end, too


COUNTED = ("tokens", "documents", "cut", "cropped")  # of a domain, so far; see data/mixture.py
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
        self.seconds_before = 0.0  # of the updates that this process went on from

    def setup(self, trainer: Trainer, module: lightning.LightningModule, stage: str) -> None:
        """Drop a line that a kill cut short, before another is appended to it."""
        if trainer.is_global_zero and self.file.exists():
            with self.file.open("r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def on_train_start(self, trainer: Trainer, module: lightning.LightningModule) -> None:
        self.peak = peak_flops(module.device, self.precision)
        domains = trainer.datamodule.mixed
        self.consumed = torch.zeros(len(domains), len(COUNTED), dtype=torch.int64)
        if trainer.is_global_zero and (updates := self.go_back(trainer.global_step)):
            counts = [list(domain_counts(updates[-1], name).values()) for name in domains]
            self.consumed += torch.tensor(counts, dtype=torch.int64)
            self.seconds_before = sum(row["perf/seconds"] for row in updates if "perf/seconds" in row)
        self.started = time.perf_counter()

    def go_back(self, step: int) -> list[dict[str, float]]:
        """Cut the file off after the lines of update ``step``, at once: killed here, none of those before is lost. Returns the lines of updates.

        Raises:
            UserError: it has not one of each.
        """
        lines = self.file.read_bytes().splitlines(keepends=True) if self.file.exists() else []
        kept = [(line, row) for line in lines if (row := json.loads(line))["step"] <= step]
        updates = [row for _, row in kept if "train/loss" in row]
        if [row["step"] for row in updates] != list(range(1, step + 1)):
            raise UserError(
                f"{self.file}: has {len(updates)} lines of updates, not one of each of the {step} after which the checkpoint was saved, so that "
                "what this stage took would be told wrong. Restore the file, or delete the stage's folder and run the same command again"
            )
        if len(kept) < len(lines):
            os.truncate(self.file, sum(len(line) for line, _ in kept))  # they are the first ones
        return updates

    def validated(self, trainer: Trainer) -> bool:
        """Whether the file has the validation of the update that training stands at. All ranks must ask."""
        found = trainer.is_global_zero and any(
            row["step"] == trainer.global_step and any(key.startswith("val/") for key in row)
            for row in map(json.loads, lines_of(self.file.read_text()))
        )
        return trainer.strategy.broadcast(found)

    def on_save_checkpoint(self, trainer: Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Nobody measures again what was measured before a checkpoint: not even when the power fails may it be lost."""
        if trainer.is_global_zero:
            with self.file.open("a") as file:
                os.fsync(file.fileno())

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
        windows = module.model.pattern.windows(module.model_config.n_layers)
        full, causal = (flops / devices for flops in update_flops(module.model_config, batch, windows, module.adapter))
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
        self.consumed += sum_of_rows(trainer.strategy, count_consumed(batch.account, len(domains))).cpu()
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


class LateValidation(Callback):
    """On resuming, the validation of the checkpoint's update, if a kill came between the checkpoint and its end: Lightning takes it for done.

    The last of the callbacks: it starts when the others have.

    Args:
        every: updates from one validation to the next; 0 for none.
    """

    def __init__(self, metrics: MetricsFile, every: int) -> None:
        self.metrics, self.every = metrics, every

    def on_train_start(self, trainer: Trainer, module: lightning.LightningModule) -> None:
        if self.every and trainer.global_step and trainer.global_step % self.every == 0 and not self.metrics.validated(trainer):
            loop = trainer.fit_loop.epoch_loop.val_loop
            trainer.validating, loop.restarting = True, False
            loop.run()
            trainer.training = True


class ResumePoint(Callback):
    """Saves everything that resuming needs every ``every`` updates, and when the process is asked to end (signals.py).

    Args:
        keep: of these the newest so many stay.
        milestones: updates after which a checkpoint is saved, too, and stays.
        writer: the one that the Trainer's strategy writes with (resume.py).
    """

    def __init__(self, folder: Path, every: int, keep: int, milestones: set[int], writer: Writer, stop: StopRequest) -> None:
        self.folder, self.every, self.keep, self.milestones = folder, every, keep, milestones
        self.writer, self.stop = writer, stop
        self.saved = 0  # the update after which the newest checkpoint was taken
        self.to_prune = False

    def on_train_start(self, trainer: Trainer, module: lightning.LightningModule) -> None:
        """Here because Lightning has put its own handlers of signals in place now: they would send to other ranks in the midst of anything."""
        self.stop.listen()
        self.saved, self.to_prune = trainer.global_step, True  # a kill may have come before that
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in (path for path in self.folder.iterdir() if path.suffix in (WRITING, DELETING)):
                discard(left)
        trainer.strategy.barrier()

    def on_train_batch_end(
        self, trainer: Trainer, module: lightning.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        step, last = trainer.global_step, trainer.global_step == module.updates
        stopping = trainer.strategy.reduce_boolean_decision(self.stop.wanted, all=False) and not last
        due = step in self.milestones or (step % self.every == 0 and not last)
        self.prune(trainer, wait=due or stopping)
        if due or (stopping and trainer.strategy.reduce_boolean_decision(self.is_quick())):
            trainer.save_checkpoint(self.folder / STEP.format(step))
            self.saved, self.to_prune = step, True
            self.prune(trainer, wait=stopping)
        if stopping:
            trainer.strategy.barrier()  # a rank that has ended makes torchrun end the others
            went_on = f"the same command goes on from update {self.saved}" if self.saved else "the same command begins again"
            raise Stopped(f"interrupted after update {step} of {module.updates}; {went_on}")

    def is_quick(self) -> bool:
        """Whether one more checkpoint can be expected to be ready before whoever asks us to end uses force."""
        return self.writer.seconds is None or self.writer.seconds < QUICK_SECONDS

    def prune(self, trainer: Trainer, wait: bool) -> None:
        """When writing has ended, remove what is neither new nor a milestone; its error is raised here."""
        if self.writer.poll(wait) and self.to_prune and trainer.is_global_zero:
            for old in sorted(self.folder.glob("step-*.ckpt"))[: -self.keep]:
                if int(old.stem.partition("-")[2]) not in self.milestones:
                    discard(old)
            self.to_prune = False

    def on_train_end(self, trainer: Trainer, module: lightning.LightningModule) -> None:
        self.prune(trainer, wait=True)

    def on_exception(self, trainer: Trainer, module: lightning.LightningModule, exception: BaseException) -> None:
        """What is being written may still become complete, if all ranks stop for the same reason."""
        if isinstance(exception, UserError):
            with suppress(BaseException):
                self.writer.poll(wait=True)


def domain_counts(row: dict[str, float], name: str) -> dict[str, int]:
    """What a line of ``metrics.jsonl`` says was consumed of a domain so far. Lines from before it was counted say nothing."""
    return {what: int(row.get(DOMAIN.format(name, what), 0)) for what in COUNTED}
