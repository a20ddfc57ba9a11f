"""What a stage computes does not depend on the mesh it runs on. The oracle is the same stage on one process: losses, norms of gradients
and validation of every update, counts of data, and weights at the end. Clipping bites in every update.

The stages have grouped-query attention, documents that are masked, several micro-batches, and ranks with different numbers of targets; those
with tied embeddings draw random positions.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from lit_long.config import (
    CorpusConfig,
    DataConfig,
    LayerGroupConfig,
    LayersConfig,
    ModelConfig,
    OptimConfig,
    SourceConfig,
    StageConfig,
    TrainerConfig,
    UserError,
    plain,
)
from lit_long.config.mesh import mesh_of
from lit_long.config.schema import ValidationConfig
from lit_long.data.datamodule import LongContextDataModule
from lit_long.data.prepare import prepare
from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.weights import save_weights
from lit_long.stages.folder import is_done, read_result, write_stage
from lit_long.stages.run import run_stage
from lit_long.training.precision import make_precision
from lit_long.training.resume import Writer
from lit_long.training.run import make_strategy
from tests.data.own import TEXTS, write_text
from tests.parallel import memory_ranks
from tests.planning.jobs import HEADS, LAYER
from tests.pretrained.llamas import random_llama, save
from tests.ranks import run_ranks

UPDATES, PER_UPDATE, CONTEXT = 8, 1024, 64
DOMAINS = ("long", "short")
RANDOM = {"training": {"transform": "randomised", "length": CONTEXT}}  # drawn by the row's number in the whole update
LOCAL = LayersConfig({"global": LayerGroupConfig({"scheme": "nope"}), "local": LayerGroupConfig(window=20)}, ["global", "local"])
TWO = {
    "fsdp": {"tied": False, "layers": LOCAL},
    "fsdp-tied": {"checkpointing": "full", "accumulate": "sharded"},
    "tensor-external": {"tied": False, "tensor_parallel": 2},
    "tensor-tied": {"tensor_parallel": 2, "checkpointing": "full", "switches": HEADS, "layers": LOCAL},
    "tensor-layer": {"tensor_parallel": 2, "tied": False, "switches": LAYER},
    "replicate": {"tied": False, "replicate": 2},
    "tensor-bf16": {"tensor_parallel": 2, "precision": "bf16-true"},
    "fsdp-bf16": {"precision": "bf16-true"},
    "fsdp-rounded": {"precision": "bf16-mixed", "accumulate": "sharded"},
}
FOUR = {
    "shard-tensor-external": {"tied": False, "tensor_parallel": 2},
    "shard-tensor-tied": {"tensor_parallel": 2, "checkpointing": "selective", "switches": LAYER},
    "replicate-shard": {"replicate": 2, "accumulate": "sharded"},
    "replicate-tensor": {"tied": False, "replicate": 2, "tensor_parallel": 2},
    "tensor-4": {"tensor_parallel": 4},
    "fsdp-compiled": {"compile": True, "checkpointing": "full", "layers": LOCAL},
    "tensor-compiled": {"tensor_parallel": 2, "compile": True, "switches": HEADS},
}


def stage(tied: bool = True, switches: dict | None = None, layers: LayersConfig | None = None, **trainer) -> StageConfig:
    kv = 4 if trainer.get("tensor_parallel") == 4 else 2
    return StageConfig(
        context=CONTEXT,
        tokens=UPDATES * PER_UPDATE,
        tokens_per_update=PER_UPDATE,
        model=ModelConfig(
            vocab_size=300,
            d_model=32,
            n_layers=2,
            n_heads=8,
            n_kv_heads=kv,
            head_dim=8,
            d_ffn=96,
            tie_embeddings=tied,
            context=CONTEXT,
            **(switches or {}),
        ),
        position={"scheme": "rope", "base": 10_000.0} | (RANDOM if tied else {}),
        layers=layers or LayersConfig(),
        data=DataConfig(weights={"long": 0.5, "short": 0.5}, packing="best_fit"),
        optim=OptimConfig(lr=3e-3, grad_clip=0.05),
        validation=ValidationConfig(times=2, sequences=3),
        trainer=TrainerConfig(**{"precision": "32-true", "micro_batch_tokens": 256, "loss_memory": 300 * 10 * 48} | trainer),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the prepared store ``store``, and ``llama``, made by transformers."""
    place = tmp_path_factory.mktemp("mesh")
    texts = {"long": [text for text in TEXTS if len(text) > 500][:6], "short": [text for text in TEXTS if len(text) < 500][:12]}
    sources = {name: SourceConfig(path=str(write_text(place / name, texts[name])), validation_share=0.1) for name in DOMAINS}
    prepare(CorpusConfig(vocab_size=300), place / "store", sources=sources, builtin=False, processes=1)
    model = random_llama(heads=8, kv=2, vocab=300, ffn=96, head_dim=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.25 if parameter.ndim > 1 else 1.0)
    save(model, place / "llama")
    return place


def write(folder: Path, name: str, config: StageConfig) -> Path:
    (folder / name).mkdir()
    write_stage(folder / name, name, plain(config), folder / "store", None)
    return folder / name


def from_elsewhere(config: StageConfig, folder: Path) -> StageConfig:
    """The stage with pretrained weights, which sharded models read into their shards."""
    found = open_pretrained(str(folder))
    return replace(config, model=replace(found.shape, init=str(folder)), position=found.position)


def run_cases(folder: Path, ranks: int, cases: dict[str, dict]) -> dict[str, tuple[Path, StageConfig]]:
    """The cases' stages on so many ranks, one after the other: folder and settings of each."""
    configs = {name: stage(**keys, strategy="fsdp", devices=ranks) for name, keys in cases.items()}
    configs = {
        name: from_elsewhere(config, folder / "llama") if "external" in name else config for name, config in configs.items()
    }
    stages = {name: (write(folder, f"{ranks}-{name}", config), config) for name, config in configs.items()}
    said = run_ranks(ranks, Path(__file__).with_name("mesh_ranks.py"), *(place for place, _ in stages.values()))
    assert all(is_done(place) for place, _ in stages.values()), said
    return stages


@pytest.fixture(scope="module")
def two(folder):
    return run_cases(folder, 2, TWO)


@pytest.fixture(scope="module")
def four(folder):
    return run_cases(folder, 4, FOUR)


@pytest.fixture(scope="module")
def straight(folder):
    """The folder of the same stage on one process; each is run once."""
    done: dict[str, Path] = {}

    def run(config: StageConfig, **trainer) -> Path:
        own = TrainerConfig(precision=config.trainer.precision, micro_batch_tokens=config.trainer.micro_batch_tokens)
        config = replace(config, trainer=replace(own, **trainer))
        key = f"one-{len(done)}" if (text := json.dumps(plain(config))) not in done else ""
        if key:
            done[text] = write(folder, key, config)
            run_stage(done[text], lambda message, share: None)
        return done[text]

    return run


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def values(folder: Path, name: str) -> list[float]:
    return [row[name] for row in rows(folder) if name in row]


def assert_equal(place: Path, oracle: Path, config: StageConfig) -> None:
    for name, tolerance in (
        ("train/loss", 1e-5),
        ("train/grad_norm", 2e-5),
        ("train/lr", 0.0),
        *((f"val/{domain}/loss", 1e-5) for domain in DOMAINS),
        *((f"data/{domain}/{what}", 0) for domain in DOMAINS for what in ("tokens", "documents", "cut", "cropped")),
    ):
        ours, theirs = values(place, name), values(oracle, name)
        assert len(theirs) == (2 if name.startswith("val/") else UPDATES)
        assert ours == pytest.approx(theirs, abs=tolerance), name
    assert min(values(place, "train/grad_norm")) > 2 * config.optim.grad_clip
    weights, expected = (load_file(at / "weights.safetensors") for at in (place, oracle))
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    # What a device is said to have done: its part of the update, whoever shares rows with it.
    done = [row["perf/tokens_per_second_per_device"] * row["perf/seconds"] for row in rows(place) if "train/loss" in row]
    assert done == pytest.approx([PER_UPDATE / mesh_of(config.trainer).ranks] * UPDATES)
    assert read_result(place)["parameters"] == read_result(oracle)["parameters"]


@pytest.mark.parametrize("case", [case for case in TWO if "precision" not in TWO[case]])
def test_two_ranks_compute_what_one_process_does(two, straight, case):
    place, config = two[case]
    assert_equal(place, straight(config), config)


@pytest.mark.slow
@pytest.mark.parametrize("case", FOUR)
def test_four_ranks_compute_what_one_process_does(four, straight, case):
    place, config = four[case]
    assert_equal(place, straight(config), config)


@pytest.mark.parametrize("case", [case for case in TWO if "bf16" in case])
def test_half_precision_differs_by_no_more_than_its_rounding(two, straight, case):
    """What rounding makes is measured on one process, whose micro-batches are of another size: sums in another order."""
    place, config = two[case]
    oracle = values(straight(config), "train/loss")
    noise = max(abs(a - b) for a, b in zip(values(straight(config, micro_batch_tokens=64), "train/loss"), oracle, strict=True))
    found = max(abs(a - b) for a, b in zip(values(place, "train/loss"), oracle, strict=True))
    assert 0 < noise < 1e-3 and found < 4 * noise
    assert torch.tensor(oracle).bfloat16().tolist() != oracle, "sums of nats are not in half precision"


def test_on_gpus_mixed_precision_gathers_half(two, straight):
    """Parameters, and with them the stream, in bf16; what is kept, and reduced, and the rotation's tables in fp32. Nearer to fp32 than pure bf16."""
    place, config = two["fsdp-rounded"]
    found = json.loads((place / "precisions.json").read_text())
    assert found == {name: ["bfloat16"] for name in ("gathered", "weights", "stream")} | {
        name: ["float32"] for name in ("reduced", "rotation", "masters", "gradients")
    }
    exact, half = (
        values(straight(replace(config, trainer=replace(config.trainer, precision=name))), "train/loss")
        for name in ("32-true", "bf16-true")
    )
    rounding, ours = (max(abs(a - b) for a, b in zip(each, exact, strict=True)) for each in (half, values(place, "train/loss")))
    assert 0 < ours < rounding


def test_where_mixed_precision_gathers_half():
    def chosen(**keys):
        return type(make_precision(TrainerConfig(**keys))).__name__

    assert chosen(accelerator="gpu", strategy="fsdp", precision="bf16-mixed") == "ShardedMixed"
    for keys in (
        {"accelerator": "gpu"},
        {"strategy": "fsdp"},
        {"accelerator": "gpu", "strategy": "fsdp", "precision": "32-true"},
    ):
        assert chosen(**{"precision": "bf16-mixed"} | keys) == "NoneType"
    assert chosen(accelerator="gpu", strategy="fsdp", precision="bf16-true") == "TrueHalf"


def test_ranks_have_different_numbers_of_targets(folder):
    """Without which a mean of ranks' means would pass the tests above."""
    config = stage()
    numbers = []
    for rank in range(2):
        data = LongContextDataModule(
            folder / "store",
            weights=config.data.weights,
            context=CONTEXT,
            tokens_per_update=PER_UPDATE,
            updates=UPDATES,
            packing=config.data.packing,
        )
        data.trainer = SimpleNamespace(distributed_sampler_kwargs={"rank": rank, "num_replicas": 2})
        numbers.append([int(batch.loss_tokens()) for batch in data.train_dataloader()])
    assert sum(a != b for a, b in zip(*numbers, strict=True)) >= UPDATES - 1


def test_a_mesh_needs_its_processes(monkeypatch):
    two_machines = stage(strategy="fsdp", devices=2, nodes=2)
    with pytest.raises(UserError, match="needs 4 processes, and 1 were started; several machines need a launcher"):
        make_strategy(two_machines, Writer())
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="needs 4 processes, and 3 were started"):
        make_strategy(two_machines, Writer())
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert make_strategy(two_machines, Writer()).sizes == (1, 4, 1, 1)


@pytest.mark.parametrize("source", ["SCRATCH", "parent", pytest.param("hub", marks=pytest.mark.slow)])
def test_no_rank_holds_a_whole_model(source, tmp_path):
    """Resident memory of two ranks that build one: half of it each, and a tensor more; drawn, or read from a parent's weights, or from those of
    a model on the hub, as transformers writes it."""
    if source == "hub":
        save(random_llama(heads=8, kv=8, vocab=1024, ffn=1536, layers=12, head_dim=64), tmp_path / "hub")
        source = str(tmp_path / "hub")
    if source == "parent":
        save_weights(
            Llama(memory_ranks.MODEL, build({"scheme": "rope"}, memory_ranks.MODEL.head_dim)), tmp_path / "weights.safetensors"
        )
        source = str(tmp_path / "weights.safetensors")
    said = run_ranks(2, memory_ranks.__file__, source)
    found = [float(line) for line in said.splitlines()]
    assert len(found) == 2 and all(0.3 < share < 0.8 for share in found), said
