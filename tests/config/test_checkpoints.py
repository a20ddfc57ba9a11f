"""The trainer's keys about checkpoints and faults: what they mean, what is refused, what they need of the disk, what they identify."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lit_long.config import ModelConfig, StageConfig, TrainerConfig, UserError
from lit_long.config.checkpoints import check_checkpoints, milestone_updates, writes_in_background
from lit_long.launch.runner import estimate_bytes
from lit_long.planning.flops import parameters
from lit_long.stages.plan import Stage


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
