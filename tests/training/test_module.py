"""The LightningModule under a plain Trainer: what an update is, its schedule, and how figures are counted."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import lightning
import pytest
import torch
from safetensors.torch import load_file

from lit_long.batch import NO_LOSS, Batch
from lit_long.config import ModelConfig, OptimConfig, StageConfig
from lit_long.config.mesh import ROUNDED_UPDATES
from lit_long.model.llama import Llama
from lit_long.planning.flops import matmul_weights, stage_flops, training_flops
from lit_long.positions import build
from lit_long.pretrained.weights import WEIGHTS, save_weights
from lit_long.training import throughput
from lit_long.training.module import LongContextModule
from lit_long.training.precision import TrueHalf
from lit_long.training.run import summarize
from lit_long.training.throughput import document_lengths, measured_peak, update_flops
from tests.data.own import TEXTS, store_of, write_text
from tests.integration.test_curriculum import run, stage
from tests.model.test_llama import SMALL, batch_of


def batches(updates, rows=6, length=32):
    """Batches whose rows have very different numbers of targets."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        batch = batch_of(torch.randint(97, (rows, length), generator=generator))
        targets = batch.targets.clone()
        targets[0, 2:] = NO_LOSS
        targets[3, 1:] = NO_LOSS
        yield batch._replace(targets=targets)


class Loader:
    """A loader with a length, as Lightning wants it."""

    def __init__(self, updates):
        self.batches = list(batches(updates))

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def fit(micro_batch_tokens, updates=4, loader=None, **optim):
    module = LongContextModule(
        SMALL,
        {"scheme": "rope"},
        OptimConfig(lr=1e-2, **optim),
        updates=updates,
        micro_batch_tokens=micro_batch_tokens,
        loss_memory=10 * 97 * 16,
    )
    losses = []

    class Record(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            losses.append(float(trainer.callback_metrics["train/loss"]))

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=updates,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[Record()],
    )
    trainer.fit(module, loader or Loader(updates))
    return losses, {name: p.detach().clone() for name, p in module.model.named_parameters()}


def by_hand(updates=4, clip=1.0):
    """The same updates in plain torch: one mean over the batch's targets, torch's own AdamW and clipping."""
    model = Llama(SMALL, build({"scheme": "rope"}, SMALL.head_dim))
    model.init_weights(0)
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        eps=1e-5,
    )
    losses = []
    for step, batch in enumerate(batches(updates)):
        ratio = 1.0 if step == 0 else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 1) / (updates - 1)))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * ratio
        loss = torch.nn.functional.cross_entropy(model.logits(batch).flatten(0, 1), batch.targets.flatten(), ignore_index=NO_LOSS)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses, dict(model.named_parameters())


@pytest.mark.parametrize("micro_batch_tokens", [1, 64, 10_000])
def test_an_update_is_torchs_own_whatever_the_micro_batches(micro_batch_tokens):
    """Rows with 1, 2 and 32 targets: a mean of micro-batches' means would be wrong."""
    losses, weights = fit(micro_batch_tokens)
    expected_losses, expected_weights = by_hand()
    assert losses == pytest.approx(expected_losses, abs=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[name].detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("rows", "tokens", "sizes"),
    [(8, 96, [2, 3, 3]), (6, 64, [2, 2, 2]), (5, 10_000, [5]), (3, 1, [1, 1, 1]), (7, 100, [2, 2, 3])],
)
def test_micro_batches_are_within_the_limit_and_as_equal_as_can_be(rows, tokens, sizes):
    module = LongContextModule(SMALL, {"scheme": "rope"}, OptimConfig(), updates=1, micro_batch_tokens=tokens)
    batch = batch_of(torch.arange(rows * 32).view(rows, 32) % 97)
    pieces = module.micro_batches(batch)
    assert sorted(len(piece.tokens) for piece in pieces) == sizes
    assert torch.equal(torch.cat([piece.tokens for piece in pieces]), batch.tokens)


def test_clipping_bites():
    unclipped, clipped = fit(64, grad_clip=1e9)[0], fit(64, grad_clip=1e-3)[0]
    assert unclipped[0] == clipped[0] and unclipped[-1] != clipped[-1]
    assert clipped == pytest.approx(by_hand(clip=1e-3)[0], abs=1e-5)


def test_schedule():
    module = LongContextModule(SMALL, {"scheme": "rope"}, OptimConfig(warmup_fraction=0.1, min_lr_ratio=0.1), updates=100)
    ratios = [module.lr_ratio(step) for step in range(101)]
    assert ratios[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert ratios[10] == pytest.approx(1.0) and ratios[55] == pytest.approx(0.55) and ratios[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(ratios[9:]))


@pytest.mark.parametrize(("fraction", "updates", "warmup"), [(0.07, 100, 7), (0.14, 50, 7), (0.02, 16, 1), (0.035, 123, 5)])
def test_warm_up_lasts_as_long_as_was_asked(fraction, updates, warmup):
    """In whole updates, rounded up; what a product of floats adds does not count."""
    module = LongContextModule(SMALL, {"scheme": "rope"}, OptimConfig(warmup_fraction=fraction), updates=updates)
    ratios = [module.lr_ratio(step) for step in range(warmup)]
    assert ratios == [(step + 1) / warmup for step in range(warmup)]


# ------------------------------------------------------------------------------------------------------- figures


def test_flops_are_those_torch_counts():
    """torch's own FlopCounter on forward and backward of plain matrix products; attention from its shapes."""
    from torch.utils.flop_counter import FlopCounterMode

    model = Llama(SMALL, build({"scheme": "rope"}, SMALL.head_dim), loss_chunk=10_000)
    model.init_weights(0)
    batch = batch_of(torch.randint(97, (2, 64)))
    with FlopCounterMode(display=False) as counter:
        nats, _ = model(batch)
        nats.backward()
    products = sum(v for op, v in counter.get_flop_counts()["Global"].items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    assert products == 6 * matmul_weights(SMALL) * 128
    full, causal = update_flops(SMALL, batch)
    attention = 12 * SMALL.n_layers * SMALL.n_heads * SMALL.head_dim * 2 * 64**2
    assert full == products + attention and causal == products + attention / 2


def test_papers_flops_column():
    """LLaMA 2 Long, Table 10: a GPT-shaped 7B (FFN 8h², no vocabulary), 100,000 updates of 4M tokens, share p at 4,096."""
    width, layers, tokens = 4096, 32, 100_000 * 4 * 2**20
    shape = ModelConfig(
        vocab_size=0, d_model=width, n_layers=layers, n_heads=32, n_kv_heads=32, head_dim=128, d_ffn=8 * width // 3
    )
    shape.d_ffn = 8 * width / 3  # three matrices of SwiGLU as wide as GPT's two
    for share, published in ((0.0, 3.783e22), (0.2, 3.405e22), (0.4, 3.026e22), (0.8, 2.270e22)):
        short, long = share * tokens, (1 - share) * tokens
        total = training_flops(shape, short, short * 4096) + training_flops(shape, long, long * 32_768)
        assert total == pytest.approx(published, rel=2e-4)


def test_masked_documents_cost_what_they_are_long():
    ids = torch.tensor([[0] * 3 + [1] * 5, [1] * 6 + [-1] * 2])
    batch = Batch(ids, ids, ids, ids, mask_documents=True)
    assert document_lengths(batch) == [3, 5, 6]
    full, causal = update_flops(SMALL, batch)
    assert full - causal == pytest.approx(12 * SMALL.n_layers * 64 * (2 * 64 - (9 + 25 + 36) / 2))


def test_peak_is_measured():
    assert 1e8 < measured_peak(torch.float32, size=256, rounds=2) < 1e15


@pytest.mark.parametrize(("flops", "largest"), [(3e8, 128), (4e11, 1024)])
def test_a_slow_processor_does_not_measure_its_peak_for_long(flops, largest, monkeypatch):
    """3e8 in bf16 were measured on one without bf16 products: five products of 1,024³ took 35 seconds at the start of each stage."""
    sizes = []

    def seconds(a, rounds):
        sizes.append(len(a))
        return 2 * len(a) ** 3 / flops

    monkeypatch.setattr(throughput, "product_seconds", seconds)
    assert measured_peak(torch.bfloat16) == pytest.approx(flops) and max(sizes) == largest
    assert sum(5 * 2 * size**3 for size in sizes) / flops < 0.2


@pytest.mark.parametrize("micro_batch_tokens", [64, 10_000])
def test_an_update_is_divided_by_its_divisor(micro_batch_tokens):
    """As many nats a counted target as torch's own cross-entropy gives, whatever the micro-batches."""
    loader = Loader(1)
    (batch,) = loader.batches
    divisor = (torch.arange(32) % 3 == 0).float().expand(6, -1)
    loader.batches = [batch._replace(divisor=divisor)]
    model = Llama(SMALL, build({"scheme": "rope"}, SMALL.head_dim))
    model.init_weights(0)
    nats = torch.nn.functional.cross_entropy(model.logits(batch).flatten(0, 1), batch.targets.flatten(), reduction="sum")
    counted = int((divisor * (batch.targets != NO_LOSS)).sum())
    assert 0 < counted < 50
    assert fit(micro_batch_tokens, 1, loader)[0] == pytest.approx([float(nats.detach()) / counted], rel=1e-5)


def test_stage_cost_grows_with_tokens():
    from lit_long.config import StageConfig

    small, large = (StageConfig(kind="train", context=256, tokens=t, model=SMALL) for t in (1000, 2000))
    assert stage_flops(large) == 2 * stage_flops(small) > 0


def test_a_validation_of_a_model_that_is_broken_is_no_number():
    """One of four rows meets the broken embedding: without its nats, and with its tokens, the others' loss would come out too small."""
    module = LongContextModule(SMALL, {"scheme": "rope"}, OptimConfig(), updates=1, micro_batch_tokens=32)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    tokens = torch.arange(4 * 32).view(4, 32) % 50
    tokens[3, 5] = 96
    loader = Loader(0)
    loader.batches = [batch_of(tokens)]
    (sound,) = trainer.validate(module, loader, verbose=False)
    assert 3 < sound["val/0/loss"] < 6
    with torch.no_grad():
        module.model.embed_tokens.weight[96] = float("nan")
    (broken,) = trainer.validate(module, loader, verbose=False)
    assert math.isnan(broken["val/0/loss"])


def test_weights_of_tokens_stay_exact_in_bf16_true():
    """They are summed: bf16 would make 0.3 of 0.30078, and of sums what it can."""
    seen = []

    class Look(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
            seen.append((batch.weights.dtype, float(batch.loss_tokens()), next(module.parameters()).dtype))

    loader = Loader(1)
    loader.batches = [batch._replace(weights=torch.full(batch.tokens.shape, 0.3)) for batch in loader.batches]
    module = LongContextModule(SMALL, {"scheme": "rope"}, OptimConfig(), updates=1)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[Look()],
        plugins=[TrueHalf("bf16-true")],
    )
    trainer.fit(module, loader)
    ((dtype, total, computed),) = seen
    assert dtype == torch.float32 and computed == torch.bfloat16
    assert total == pytest.approx(0.3 * int((loader.batches[0].targets != NO_LOSS).sum()), rel=1e-6)


def test_norms_do_not_train_in_bf16_true_and_the_log_says_so(tmp_path, capsys):
    """The rate is less than half of the distance from 1 to the next number of bf16, however often it is added."""
    text = write_text(tmp_path / "text", TEXTS)
    store = store_of(tmp_path / "store", text, validation_share=0.3).folder
    for precision in ("bf16-true", "bf16-mixed"):
        config = replace(stage(), optim=OptimConfig(lr=1e-3), trainer=replace(stage().trainer, precision=precision))
        run(config, tmp_path / precision, store)
        assert (f"precision: {ROUNDED_UPDATES}" in capsys.readouterr().out) == (precision == "bf16-true")
        weights = load_file(tmp_path / precision / WEIGHTS)
        norms = [bool((tensor == 1).all()) for name, tensor in weights.items() if name.endswith("norm.weight")]
        assert norms == 3 * [precision == "bf16-true"]


@pytest.mark.parametrize("source", ["drawn", "read"])
def test_weights_come_to_life_on_the_strategys_device(source, tmp_path, monkeypatch):
    """And nowhere else: from the host's memory they would be moved as a whole."""
    weights = tmp_path / "weights.safetensors"
    save_weights(Llama(SMALL, build({"scheme": "rope"}, SMALL.head_dim)), weights)
    start = {"init_from": weights} if source == "read" else {}
    module = LongContextModule(SMALL, {"scheme": "rope"}, OptimConfig(), updates=1, **start)
    strategy = SimpleNamespace(root_device=torch.device("cuda", 3))
    module._trainer = SimpleNamespace(strategy=strategy, precision="32-true", precision_plugin=None)
    made, to_empty = [], Llama.to_empty
    monkeypatch.setattr(Llama, "to_empty", lambda self, *, device: made.append(device) or to_empty(self, device="cpu"))
    module.configure_model()
    assert made == [strategy.root_device]


def test_a_gpu_that_the_module_has_left_is_named(tmp_path, monkeypatch):
    """Lightning moves the module to the CPU at the end of `fit`."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA H100 {device.index}")
    speeds = [
        {"perf/tokens_per_second_per_device": 20 * mfu, "perf/mfu_causal": mfu} for mfu in (0.3, 0.4, 0.1)
    ]  # the last wrote a checkpoint
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"train/loss": 1.0} | speed) + "\n" for speed in speeds))
    module = LongContextModule(SMALL, {"scheme": "rope"}, OptimConfig(), updates=1)
    module.model = Llama(SMALL, module.pattern)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 3)), world_size=1, global_step=3)
    result = summarize(StageConfig(), tmp_path, module, trainer, 1.0)
    assert result["machine"] == "NVIDIA H100 3"
    assert (result["tokens_per_second"], result["mfu_causal"]) == (6.0, 0.3), "medians of the updates"
