"""The trainer's keys about checkpoints and faults: what they mean, what is refused, what they need of the disk, what they identify."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lit_long.config import AdapterConfig, ModelConfig, OptimConfig, StageConfig, TrainerConfig, UserError
from lit_long.config.checkpoints import check_checkpoints, milestone_updates, writes_in_background
from lit_long.launch.runner import estimate_bytes, weights_and_checkpoint
from lit_long.model.llama import Llama
from lit_long.planning.flops import parameters
from lit_long.positions import build
from lit_long.stages.plan import Stage
from lit_long.training.adapter import add_adapter
from lit_long.training.optimizers import make_optimizer
from lit_long.training.precision import parameter_dtype
from tests.model.test_llama import SMALL


def stage(**trainer) -> StageConfig:
    return StageConfig(
        context=64, tokens=10_000, tokens_per_update=1_000, position={"scheme": "rope"}, trainer=TrainerConfig(**trainer)
    )


def test_milestones_are_shares_or_tokens():
    assert milestone_updates(stage(milestones=[0.5, 1.0, 0.01, 2_001, 3_000, 10_000])) == {5, 10, 1, 3}
    assert milestone_updates(stage()) == set()


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"milestones": [0.5, 10_001]}, r"base: trainer.milestones\[1\]=10001: .* up to the stage's 10,000"),
        ({"checkpoint_async": "allways"}, "trainer.checkpoint_async=allways: .*did you mean 'always'"),
        ({"on_bad_step": "skp"}, "trainer.on_bad_step=skp: .*did you mean 'skip'"),
    ],
)
def test_what_makes_no_sense_is_refused(trainer, message):
    with pytest.raises(UserError, match=message):
        check_checkpoints(stage(**trainer), "base")


def test_beside_training_on_a_gpu():
    ways = {(way, place): writes_in_background(TrainerConfig(checkpoint_async=way, accelerator=place))
            for way in ("auto", "always", "never") for place in ("cpu", "gpu")}  # fmt: skip
    assert ways == {
        ("auto", "cpu"): False,
        ("auto", "gpu"): True,
        ("always", "cpu"): True,
        ("always", "gpu"): True,
        ("never", "cpu"): False,
        ("never", "gpu"): False,
    }


def test_disk_space_for_all_checkpoints_that_stay_and_one_that_is_written():
    def space(**trainer):
        config = replace(stage(**trainer), model=ModelConfig())
        return estimate_bytes(Stage("base", config, "1", Path("train-1"))) / parameters(config.model)

    assert space() == 4 + 2 * 12
    assert space(keep_checkpoints=3, milestones=[0.5, 1.0]) == 4 + 6 * 12
    assert space(precision="bf16-true") == 2 + 2 * 6


def test_disk_space_that_is_taken_already_is_not_asked_for_again(tmp_path):
    """Else a sweep refuses to resume what it let start."""
    config = replace(stage(), model=SMALL)
    count, place = parameters(SMALL), tmp_path / "checkpoints"
    place.mkdir()
    (place / "step-00000100.ckpt").write_bytes(bytes(12 * count))
    assert estimate_bytes(Stage("base", config, "1", tmp_path)) == (4 + 12) * count
    (place / "step-00000200.ckpt").mkdir()
    (place / "step-00000200.ckpt" / "0.distcp").write_bytes(bytes(24 * count))
    assert estimate_bytes(Stage("base", config, "1", tmp_path)) == 4 * count, (
        "what is there and no longer kept goes before one is written"
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    "adapter", [AdapterConfig(), AdapterConfig(rank=4), AdapterConfig(rank=4, train_embeddings_and_norms=True)]
)
def test_disk_space_of_a_checkpoint_is_what_its_tensors_take(adapter, optimizer, precision):
    config = replace(stage(precision=precision), model=SMALL, adapter=adapter, optim=OptimConfig(name=optimizer))
    model = Llama(SMALL, build({"scheme": "rope"}, SMALL.head_dim)).to(parameter_dtype(precision))
    add_adapter(model, adapter, 0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    trained = make_optimizer(model, config.optim)
    trained.step()
    moments = [x for state in trained.state.values() for name, x in state.items() if name != "step"]
    found = [sum(x.numel() * x.element_size() for x in tensors) for tensors in (model.parameters(), moments)]
    weights, checkpoint = weights_and_checkpoint(config)
    assert (weights, checkpoint) == (found[0], sum(found))
