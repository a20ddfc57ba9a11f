"""Updates that would do harm are left out as if their batch had never been, or end the run before they are applied."""

from __future__ import annotations

import lightning
import pytest
import torch

from lit_long.config import OptimConfig, UserError
from lit_long.training.module import LongContextModule
from lit_long.training.spike_guard import ENOUGH, SpikeGuard
from tests.model.test_llama import SMALL, batch_of
from tests.training import broken
from tests.training.test_module import Loader, batches


class Given(Loader):
    def __init__(self, given):
        self.batches = given


def fit(given, updates, checkpoint=None, lr=1e-2, **guard):
    """The module after one update on each of the batches; ``updates`` is what the schedule is for, ``checkpoint`` what they go on from."""
    position = {"scheme": "tests.training.broken:Broken"}
    module = LongContextModule(SMALL, position, OptimConfig(lr=lr), updates=updates, spike_guard=SpikeGuard(**guard))
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=len(given), logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, Given(given), ckpt_path=checkpoint, weights_only=False)
    assert trainer.global_step == len(given)
    return module, trainer


def test_left_out_is_as_if_it_had_never_been():
    """Weights, moments and schedule to the last bit."""
    given = list(batches(5))
    broken.at = 3
    skipped, trainer = fit(given, 5, policy="skip")
    broken.at = 0
    never, other = fit(given[:2] + given[3:], 5)
    assert skipped.spike_guard.skipped == 1 and never.spike_guard.skipped == 0
    for ours, theirs in zip(skipped.model.parameters(), never.model.parameters(), strict=True):
        assert ours.equal(theirs)
    ours, theirs = (one.optimizers[0].state_dict()["state"] for one in (trainer, other))
    assert all(ours[number][name].equal(theirs[number][name]) for number in theirs for name in theirs[number])
    schedules = [one.lr_scheduler_configs[0].scheduler.state_dict()["last_epoch"] for one in (trainer, other)]
    assert schedules == [4, 4]


def test_stops_before_it_is_applied():
    broken.at = 3
    with pytest.raises(UserError, match=r"update 3: the loss is nan .* trainer.on_bad_step=skip"):
        fit(list(batches(5)), 5)


def test_a_spike_is_told_from_the_rest():
    """One text again and again, and once another one that the model cannot know."""
    known = batch_of(torch.arange(64).reshape(2, 32) % 7)
    other = batch_of(torch.randint(97, (2, 32), generator=torch.Generator().manual_seed(5)))
    broken.at = 0
    given = [known] * (ENOUGH + 8) + [other, known]
    module, _ = fit(given, len(given), policy="skip", spike=3.0)
    assert module.spike_guard.skipped == 1 and max(module.spike_guard.losses) < 5 and len(module.spike_guard.losses) == ENOUGH + 9
    module, _ = fit(given, len(given), policy="skip")
    assert module.spike_guard.skipped == 0, "without a limit it is no spike"
    with pytest.raises(
        UserError, match=rf"update {ENOUGH + 9}: the loss is .*more than 3 times the median of the last {ENOUGH + 8}"
    ):
        fit(given, len(given), policy="stop", spike=3.0)


def test_weights_that_are_bad_end_the_stage():
    """Left out one after the other, no update can mend them. Those before were left out one by one, and so is one that is bad after the stage went on."""
    guard = SpikeGuard("skip")
    bad = [True, False, True, *[True] * (ENOUGH - 2), False]
    assert [guard.should_skip(float("nan") if each else 1.0, 1.0, update) for update, each in enumerate(bad)] == bad
    seen = len(bad)
    for update in range(seen, seen + ENOUGH - 1):
        assert guard.should_skip(float("nan"), 1.0, update)
        resumed = SpikeGuard("skip")
        resumed.load_state_dict(guard.state_dict())
    with pytest.raises(
        UserError, match=rf"update {seen + 1} was bad, and .* up to update {seen + ENOUGH}, where the loss is nan .* optim.lr"
    ):
        resumed.should_skip(float("nan"), 1.0, seen + ENOUGH - 1)
    given = list(batches(1)) * (ENOUGH + 8)
    broken.at = 0
    with pytest.raises(UserError, match=rf"update \d+ was bad, and so were all {ENOUGH}"):
        fit(given, len(given), policy="skip", lr=1e38)


def test_what_was_seen_is_kept():
    guard, resumed = SpikeGuard("skip", 2.0), SpikeGuard("skip", 2.0)
    assert not any(guard.should_skip(1.0, 1.0, update) for update in range(ENOUGH))
    assert guard.should_skip(float("inf"), 1.0, ENOUGH)
    resumed.load_state_dict(guard.state_dict())
    assert resumed.skipped == 1 and resumed.should_skip(2.1, 1.0, ENOUGH + 1) and not resumed.should_skip(1.9, 1.0, ENOUGH + 2)
    assert not SpikeGuard("skip", 2.0).should_skip(2.1, 1.0, 0), "nothing to compare with yet"
    assert SpikeGuard("skip").should_skip(1.0, float("nan"), 0), "the gradient counts, too"


def test_a_checkpoint_of_0_1_is_gone_on_from(tmp_path):
    """It has what the guard has seen by an older key; the first ones have nothing."""
    given, file = list(batches(4)), tmp_path / "step.ckpt"
    broken.at = 3
    seen, trainer = fit(given[:3], 4, policy="skip")
    broken.at = 0
    trainer.save_checkpoint(file)
    saved = torch.load(file, weights_only=False)
    guard = saved.pop("spike_guard")
    assert guard.pop("in_a_row") == 1
    assert guard == {"losses": list(seen.spike_guard.losses), "skipped": 1} and len(guard["losses"]) == 2
    for kept, skipped, before in (({"spike_guard": guard}, 1, 2), ({"judge": guard}, 1, 2), ({}, 0, 0)):
        torch.save(saved | kept, file)
        resumed, _ = fit(given, 4, file, policy="skip")
        losses = list(resumed.spike_guard.losses)
        assert (
            resumed.spike_guard.skipped == skipped and losses[:before] == guard["losses"][:before] and len(losses) == before + 1
        )
