"""The LightningModule: one batch is one optimizer update.

A batch is cut into micro-batches of a fixed number of tokens. Every micro-batch's loss is a sum of nats, divided once by the
number of tokens of the whole update over all ranks. So the mean is right whatever the ranks, the micro-batches and their numbers
of targets are, and no checkpoint can fall inside an update. The module runs under any Trainer: one device, DDP or FSDP2
(`MeshStrategy`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import SumMetric

from lit_long.batch import Batch
from lit_long.config import AdapterConfig, LayersConfig, ModelConfig, OptimConfig
from lit_long.model.fused_loss import AUTO, choose_loss
from lit_long.model.llama import Llama
from lit_long.model.loss import chunk_tokens
from lit_long.positions import PositionTransform, build_transform
from lit_long.positions.layers import LayerPattern, build_layers
from lit_long.pretrained import PretrainedWeights
from lit_long.pretrained.weights import fill_model, load_pretrained, load_weights
from lit_long.training.adapter import add_adapter
from lit_long.training.context_parallel import ContextShare
from lit_long.training.optimizers import make_optimizer
from lit_long.training.parallel import clip_gradients, eager, parallelize, size_of
from lit_long.training.precision import ROUNDED, ShardedMixed, compute_dtype
from lit_long.training.spike_guard import SpikeGuard
from lit_long.training.strategy import MeshStrategy, sum_of_tokens, token_group, token_ranks


class LongContextModule(lightning.LightningModule):
    """A Llama with its positional encoders, its optimizer and its schedule.

    Args:
        position: scheme and settings, as in configs/position/, for example ``{"scheme": "abf", "base": 500_000}``. Its group
            ``training`` changes the positions of training batches, never those of validation.
        layers: how they differ, as in configs/layers/; all are alike if not given.
        updates: length of the run in optimizer updates; the cosine ends there.
        switches: (update, positional settings), or (update, positional settings, layers): from that update on they are others (data/curriculum.py).
        init_from: a `.safetensors` file of weights to start from, or pretrained weights (`open_pretrained`); random with ``seed``
            if not given.
        spike_guard: what to do about updates that would do harm (spike_guard.py).
        adapter: what to train beside frozen weights instead of the weights themselves (adapter.py).
        micro_batch_tokens: tokens per forward and backward of a device; at least one sequence, or its share of one.
        loss_memory: bytes that logits, and what is made of them, may take at once.
        loss: auto, chunked, liger or cut (model/fused_loss.py).
        checkpointing, compiled: see training/parallel.py.
        accumulate: under FSDP2, whether micro-batches add up ``whole`` gradients, which every rank then has room for, or ``sharded`` ones,
            reduced each time.
    """

    def __init__(
        self,
        model: ModelConfig,
        position: dict[str, Any],
        optim: OptimConfig,
        *,
        updates: int,
        layers: LayersConfig | None = None,
        switches: Sequence[tuple[int, dict[str, Any]] | tuple[int, dict[str, Any], LayersConfig]] = (),
        init_from: Path | PretrainedWeights | None = None,
        adapter: AdapterConfig | None = None,
        seed: int = 0,
        micro_batch_tokens: int = 2048,
        loss_memory: int = 2**29,
        loss: str = AUTO,
        checkpointing: str = "none",
        compiled: bool = False,
        accumulate: str = "whole",
        spike_guard: SpikeGuard | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model_config, self.optim, self.updates = model, optim, updates
        layers = layers or LayersConfig()
        self.pattern = build_layers(layers, position, model.head_dim)
        self.transform = build_transform(position.get("training"))
        self.switches = [
            (start, build_layers(*(theirs or [layers]), own, model.head_dim), build_transform(own.get("training")))
            for start, own, *theirs in switches
        ]
        self.init_from, self.seed, self.adapter = init_from, seed, adapter
        self.micro_batch_tokens, self.loss_chunk = micro_batch_tokens, chunk_tokens(model.vocab_size, loss_memory)
        self.checkpointing, self.compiled, self.loss = checkpointing, compiled, loss
        self.accumulate, self.spike_guard = accumulate, spike_guard or SpikeGuard()
        self.model: Llama | None = None
        self.share: ContextShare | None = None
        self.validation_sums: dict[str, tuple[SumMetric, SumMetric]] = {}

    def configure_model(self) -> None:
        """Build the model, give it its weights, and shard it when the Trainer's strategy asks for that.

        No rank holds a whole one: it is sharded before it has any memory, and its weights, drawn or read, come tensor by tensor. Only an adapter
        (adapter.py) wants the whole model first.
        """
        if self.model is not None:
            return
        loss = choose_loss(self.loss, self.trainer.strategy.root_device, compute_dtype(self.trainer.precision))
        with torch.device("meta"):
            model = Llama(self.model_config, self.pattern, self.loss_chunk, loss)
        adapts = self.adapter is not None and self.adapter.rank > 0
        if adapts:
            self.give_weights(model.to_empty(device="cpu"))
            add_adapter(model, self.adapter, self.seed)
        mesh = self.device_mesh if isinstance(self.trainer.strategy, MeshStrategy) else None
        if mesh is not None and size_of(mesh, "context") > 1:
            self.share = ContextShare(mesh["context"])
        policy = ROUNDED if isinstance(self.trainer.precision_plugin, ShardedMixed) else None
        parallelize(model, mesh, self.checkpointing, self.compiled, policy)
        if not adapts:
            self.give_weights(model.to_empty(device=self.trainer.strategy.root_device))
        self.model = model

    def give_weights(self, model: Llama) -> None:
        """The weights that training starts from."""
        if self.init_from is None:
            fill_model(model, model.draw_weights(self.seed), lambda name: name)
        elif isinstance(self.init_from, PretrainedWeights):
            load_pretrained(model, self.init_from)
        else:
            load_weights(model, self.init_from)

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer, with linear warm-up, then cosine to ``min_lr_ratio``."""
        optimizer = make_optimizer(self.model, self.optim)
        return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, self.lr_ratio)}

    def lr_ratio(self, update: int) -> float:
        """Learning rate of update ``update`` (from 0), as a share of the peak."""
        warmup = math.ceil(round(self.optim.warmup_fraction * self.updates, 6))  # 0.07 · 100 is 7.000000000000001
        if update < warmup:
            return (update + 1) / warmup
        progress = min(1.0, (update - warmup) / max(1, self.updates - warmup))
        floor = self.optim.min_lr_ratio
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    def pattern_at(self, update: int) -> tuple[LayerPattern, PositionTransform | None]:
        """How layers attend in an update, and its transform."""
        found = (switch for switch in reversed(self.switches) if switch[0] <= update)
        _, pattern, transform = next(found, (0, self.pattern, self.transform))
        return pattern, transform

    def on_validation_start(self) -> None:
        """With the encoders of the update before, also where this process has not computed it."""
        self.model.pattern, _ = self.pattern_at(max(0, self.trainer.global_step - 1))

    def training_step(self, batch: Batch, batch_index: int) -> None:
        """One update: all micro-batches, clip, step; or none, when it would do harm."""
        self.model.pattern, _ = self.pattern_at(self.trainer.global_step)
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        batch = self.own_tokens(batch)
        tokens = self.total(batch.loss_tokens()).float()  # in bf16-true the default is bf16, which counts to 256
        scale = token_ranks(self.trainer.strategy) / tokens  # strategies average gradients over these ranks
        nats = torch.zeros((), dtype=torch.float32, device=self.device)
        micro_batches = self.micro_batches(batch)
        for index, micro_batch in enumerate(micro_batches):
            with self.gradient_sync(index == len(micro_batches) - 1):
                micro_nats, _ = self.model(micro_batch)
                self.manual_backward(micro_nats * scale)
            nats += micro_nats.detach()
        norm = clip_gradients(self.model.parameters(), self.optim.grad_clip)
        loss, norm = torch.stack((self.total(nats) / tokens, norm)).cpu()  # the only place where an update waits for the device
        lr = torch.tensor(optimizer.param_groups[0]["lr"])
        if skips := self.spike_guard.should_skip(float(loss), float(norm), self.trainer.global_step):
            optimizer.zero_grad()  # a step without gradients moves nothing, and yet it is counted
        optimizer.step()
        optimizer.zero_grad()
        if not skips:
            schedule.step()
        skipped = {"train/skipped": torch.tensor(float(self.spike_guard.skipped))} if self.spike_guard.policy == "skip" else {}
        self.log_dict({"train/loss": loss, "train/grad_norm": norm, "train/lr": lr} | skipped)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["spike_guard"] = self.spike_guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("spike_guard", checkpoint.get("judge"))  # as 0.1 called it; the first ones have none
        if state is not None:
            self.spike_guard.load_state_dict(state)

    def own_tokens(self, batch: Batch) -> Batch:
        """The tokens that this rank computes: all of its rows', unless ranks share sequences. Callbacks see whole rows."""
        return batch if self.share is None else self.share.cut(batch)

    def micro_batches(self, batch: Batch) -> list[Batch]:
        """The batch in pieces of at most ``micro_batch_tokens`` tokens, whole sequences each, as equal as they can be: compiled code is
        made for one shape."""
        count, length = batch.tokens.shape
        pieces = -(-count // max(1, self.micro_batch_tokens // length))
        bounds = [count * piece // pieces for piece in range(pieces + 1)]
        return [batch.rows(start, stop) for start, stop in itertools.pairwise(bounds)]

    @contextmanager
    def gradient_sync(self, last: bool) -> Iterator[None]:
        """Reduce gradients over ranks in the last micro-batch's backward only; with ``accumulate="sharded"`` over the ranks of a shard each
        time, which saves room for those of all weights."""
        wrapper = self.trainer.strategy.model
        if isinstance(wrapper, DistributedDataParallel) and not last:
            with wrapper.no_sync():
                yield
            return
        if hasattr(self.model, "set_requires_gradient_sync"):  # FSDP2
            self.model.set_requires_gradient_sync(last or self.accumulate == "sharded")
            self.model.set_requires_all_reduce(last)  # between copies (HSDP)
        yield

    def total(self, value: Tensor) -> Tensor:
        """Sum over all ranks with tokens of their own."""
        return sum_of_tokens(self.trainer.strategy, value)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Positions as ``position.training`` makes them, and the tokens that they lie within. Done here, so that callbacks count the FLOPs of what
        is computed. Draws go by the stage's own update, 0 at first: a branch begins with those of its parent's first updates, for later data."""
        _, transform = self.pattern_at(self.trainer.global_step)
        if transform is None or not self.trainer.training:
            return batch
        ranks = self.trainer.distributed_sampler_kwargs or {"rank": 0}  # on one device there are none
        first_row = ranks["rank"] * len(batch.tokens)  # ranks hold equal shares, in order
        return transform(batch, self.seed, self.trainer.global_step, first_row)._replace(reach=transform.reach)

    def validation_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        """Add to the nats and tokens of this loader's domain."""
        names = getattr(self.trainer.datamodule, "domains", None)
        name = names[dataloader_idx] if names else str(dataloader_idx)
        if name not in self.validation_sums:
            group = token_group(self.trainer.strategy)
            # "disable": what is no number is not left out, but makes the sum none
            sums = (SumMetric(process_group=group, nan_strategy="disable").to(self.device) for _ in range(2))
            self.validation_sums[name] = tuple(metric.set_dtype(torch.float32) for metric in sums)  # not the default of bf16-true
        for micro_batch in self.micro_batches(self.own_tokens(batch)):
            with eager(self.compiled):
                nats_and_tokens = self.model(micro_batch)
            for metric, value in zip(self.validation_sums[name], nats_and_tokens, strict=True):
                metric.update(value)

    def on_validation_epoch_end(self) -> None:
        for name, (nats, tokens) in self.validation_sums.items():
            self.log(f"val/{name}/loss", nats.compute() / tokens.compute())
            nats.reset(), tokens.reset()
