"""Training stages with phases, packings and repeats in this process: interrupted and resumed, switching encoders, and what they account for."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from lit_long.config import (
    CurriculumConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    StageConfig,
    TrainerConfig,
    UserError,
)
from lit_long.config.checkpoints import STEP
from lit_long.config.schema import PhaseConfig, ValidationConfig
from lit_long.data.held_out import held_out_sequences
from lit_long.data.token_store import open_store
from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.pretrained.weights import WEIGHTS, load_weights
from lit_long.training import resume
from lit_long.training.run import train
from tests.data.own import TEXTS, store_of, write_text
from tests.integration.mini import losses

ROPE = {"scheme": "rope", "base": 10_000.0}
UPDATES = 12


class Interruption(Exception):
    pass


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    return store_of(folder / "store", write_text(folder / "text", TEXTS), validation_share=0.3).folder


@pytest.fixture(scope="module")
def small_store(tmp_path_factory):
    """Of so few documents that a run passes them more than once."""
    folder = tmp_path_factory.mktemp("small")
    return store_of(folder / "store", write_text(folder / "text", TEXTS[:8]), validation_share=0.2).folder


def stage(*phases, updates=UPDATES, position=ROPE, times=0, **data):
    return StageConfig(
        context=64,
        tokens=updates * 256,
        tokens_per_update=256,
        model=ModelConfig(vocab_size=300, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ffn=32, context=64),
        position=position,
        data=DataConfig(**{"weights": {"mine": 1.0}} | data),
        curriculum=CurriculumConfig([PhaseConfig(**phase) for phase in phases]),
        optim=OptimConfig(lr=1e-2),
        validation=ValidationConfig(times=times, sequences=4),
        trainer=TrainerConfig(precision="32-true", threads=1, checkpoint_every=2),
    )


def run(config, folder, store, kill_at=None):
    """The stage's result; or it breaks off as soon as update ``kill_at`` is reported."""
    folder.mkdir(parents=True, exist_ok=True)

    def report(message, done):
        if kill_at and message.startswith(f"update {kill_at}/"):
            raise Interruption

    if kill_at is None:
        return train(config, folder, store, None, report)
    with pytest.raises(Interruption):
        train(config, folder, store, None, report)
    return None


def rows(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if "train/loss" in row]


SWITCH = ({"until": 0.5, "scale": 0.25}, {"until": 1.0})


@pytest.mark.parametrize("packing, times", [("concat", 0), ("concat", UPDATES // 2), ("best_fit", 0), ("single", 0)])
def test_killed_across_a_switch_and_an_epoch_is_uninterrupted(small_store, tmp_path, packing, times):
    """Broken off before the switch (the checkpoint lies before it), after it, and past the end of an epoch; also where the last line of
    metrics before a checkpoint is a validation's, which counts nothing."""
    config = stage(*SWITCH, packing=packing, times=times)
    straight = run(config, tmp_path / "straight", small_store)
    for update in (UPDATES // 2 - 1, UPDATES // 2 + 2, UPDATES - 1):
        assert run(config, tmp_path / "killed", small_store, kill_at=update) is None
    resumed = run(config, tmp_path / "killed", small_store)
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight") and len(losses(tmp_path / "killed")) == UPDATES
    assert resumed["data"] == straight["data"]
    counts = [{k: v for k, v in row.items() if k.startswith("data/")} for row in rows(tmp_path / "killed")]
    assert counts == [{k: v for k, v in row.items() if k.startswith("data/")} for row in rows(tmp_path / "straight")]
    assert all(a["data/mine/tokens"] < b["data/mine/tokens"] for a, b in itertools.pairwise(counts))
    assert straight["data"]["mine"]["epochs"] > 1.0, "the run must cross the end of an epoch"
    kept = [file.name for file in (tmp_path / "killed" / "checkpoints").iterdir()]
    assert kept == [f"step-{UPDATES - 2:08}.ckpt"], (
        "only the newest is kept, and none of the end, which weights.safetensors holds"
    )


def test_killed_while_a_checkpoint_is_written(small_store, tmp_path, monkeypatch):
    """Half a checkpoint is none: the one before it is taken."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    config = stage(*SWITCH)
    run(config, straight, small_store)

    def half(writing, path, whole=resume.publish):
        if path.name == STEP.format(6):
            writing.write_bytes(writing.read_bytes()[: writing.stat().st_size // 2])
            raise Interruption
        whole(writing, path)

    with monkeypatch.context() as patch:
        patch.setattr(resume, "publish", half)
        patch.setattr(resume, "discard", lambda path: None)  # as a kill leaves it
        with pytest.raises(Interruption):
            run(config, killed, small_store)
    assert STEP.format(6) + resume.WRITING in {path.name for path in (killed / "checkpoints").iterdir()}
    run(config, killed, small_store)
    assert losses(killed) == losses(straight)


@pytest.fixture(scope="module")
def switched(store, tmp_path_factory):
    """Runs of one curriculum: with base 100 in its first phase, with 100 throughout, and with 10,000 throughout."""
    folder = tmp_path_factory.mktemp("encoders")
    other = ROPE | {"base": 100.0}
    first, second = SWITCH
    return {
        name: (folder / name, run(config, folder / name, store))
        for name, config in {
            "switching": stage(first | {"position": other}, second, times=1),
            "first": stage(*SWITCH, position=other),
            "second": stage(*SWITCH),
        }.items()
    }


def test_the_encoder_switches_with_the_phase(switched):
    found = {name: losses(folder) for name, (folder, _) in switched.items()}
    half = UPDATES // 2
    assert found["switching"][:half] == found["first"][:half] != found["second"][:half]
    assert found["switching"][half] != found["first"][half]
    assert found["switching"][half:] != found["second"][half:]  # the weights are others


def test_what_is_measured_at_the_end_is_under_the_stages_own_encoder(store, switched):
    folder, result = switched["switching"]
    measured = {}
    batch = held_out_sequences(open_store(store), "mine", 64, 4, 64)
    for base in (100.0, 10_000.0):
        model = Llama(stage().model, build(ROPE | {"base": base}, 8))
        load_weights(model, folder / WEIGHTS)
        with torch.no_grad():
            nats, tokens = model(batch)
        measured[base] = float(nats / tokens)
    assert result["validation"]["mine"] == pytest.approx(measured[10_000.0], abs=1e-6)
    assert abs(measured[100.0] - measured[10_000.0]) > 1e-5


def test_resumed_after_the_switch_the_encoder_is_the_stages(store, switched, tmp_path):
    first, second = SWITCH
    config = stage(first | {"position": ROPE | {"base": 100.0}}, second, times=1)
    assert run(config, tmp_path, store, kill_at=9) is None
    result = run(config, tmp_path, store)
    assert losses(tmp_path) == losses(switched["switching"][0])
    assert result["validation"] == switched["switching"][1]["validation"]


@pytest.mark.parametrize("packing", ["concat", "best_fit", "single"])
def test_planned_and_consumed(store, tmp_path, packing):
    """Within a sequence a phase; and every place of every update is accounted for."""
    result = run(stage(*SWITCH, packing=packing), tmp_path, store)
    mine = result["data"]["mine"]
    lengths = open_store(store).documents("mine", "train").lengths
    if packing == "concat":
        assert mine["consumed"]["tokens"] == mine["tokens"] == UPDATES * 256 and mine["share"] == 1.0
        assert mine["epochs"] == pytest.approx(UPDATES * 256 / np.sum(lengths), rel=0.03)
    else:  # of an epoch the utilisation is exact, of these updates nearly
        assert mine["consumed"]["tokens"] == pytest.approx(mine["tokens"], rel=0.05)
        assert mine["consumed"]["tokens"] <= UPDATES * 256
    assert (mine["consumed"]["cropped"] > 0) == (packing == "single")
    assert 0 < mine["consumed"]["cut"] <= mine["consumed"]["documents"]


def test_too_many_epochs_are_refused_before_anything_is_trained(store, tmp_path):
    with pytest.raises(UserError, match=r"100\.0% for 'mine' is .* passes over its documents, and data\.max_epochs=0\.05"):
        run(stage(*SWITCH, max_epochs=0.05), tmp_path, store)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_phase_without_some_of_the_domains(store, tmp_path):
    """A weight of 0 leaves a domain out, in a phase as in a stage."""
    phases = ({"until": 0.5, "weights": {"mine": 1.0, "retrieval": 0.0}}, {"until": 1.0})
    assert list(run(stage(*phases, updates=2), tmp_path, store)["data"]) == ["mine"]
