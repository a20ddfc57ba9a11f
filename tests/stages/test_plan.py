"""How much work a plan is: what many trials share is done once, and nothing is done for each pair of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import pytest
from omegaconf import OmegaConf

from lit_long.config import SweepConfig, command, compose, read_command
from lit_long.config.command import SHARED
from lit_long.config.mesh import ROUNDED_UPDATES
from lit_long.stages import plan as planning
from lit_long.stages.plan import make_plan
from lit_long.stages.sweep_folder import outline, sweep_settings


class Counted(list):
    """A list that counts how often all of it is gone through."""

    passes = 0

    def __iter__(self):
        Counted.passes += 1
        return super().__iter__()


@pytest.fixture
def work(monkeypatch):
    """Counts calls of the parts of planning, the real ones."""
    done = Counter()
    parts = [
        (OmegaConf, "create"),
        (command, "read_yaml"),
        (compose, "check"),
        (planning, "resolve_stage"),
        (planning, "stage_identity"),
    ]
    for owner, name in parts:
        real = getattr(owner, name)

        def counted(*arguments, real=real, name=name, **more):
            done[name] += 1
            return real(*arguments, **more)

        monkeypatch.setattr(owner, name, counted)
    return done


def test_what_trials_share_is_done_once(work):
    def counted(seeds):
        work.clear()
        words = [
            "grid.position=[rope,pi,abf,yarn]",
            f"grid.seed={list(range(10, 10 + seeds))}",
            "grid.optim.weight_decay=[0.1,0.2]",
        ]
        plan = make_plan(read_command(["base=train", "dry_run=true", *words]))
        assert len(plan.trials) == 8 * seeds
        return Counter(work), plan

    (few, _), (many, plan) = counted(2), counted(12)
    assert many["read_yaml"] == few["read_yaml"]
    # With a seed more, only what depends on the seed is new: the key itself, and the name of the base's shipped weights.
    assert many["create"] - few["create"] == 10
    assert many["check"] - few["check"] == 10 * (3 * 4 + 1)  # merged, before and after interpolations, in four stages; that name
    # The base keeps its own encoder and optimizer, so eight trials of a seed share it.
    assert many["resolve_stage"] - few["resolve_stage"] == 10 * (1 + 8 + 8 + 8)
    # An identity for each stage that was resolved, and for the data as three stages mix them.
    assert many["stage_identity"] == many["resolve_stage"] + 3
    assert len(plan.stages) == 1 + 12 * (1 + 1 + 8 + 8)


def test_the_plan_that_the_outline_names_is_of_the_same_scale():
    """experiment=together_32k alone is planned at the paper's scale."""
    plan = make_plan(read_command(["experiment=together_32k", "scale=laptop", "dry_run=true"]))
    assert "python -m lit_long.plan experiment=together_32k scale=laptop\n" in outline(plan)
    default = make_plan(read_command(["dry_run=true"]))
    assert "python -m lit_long.plan experiment=position_tiny\n" in outline(default)


def test_a_part_of_a_grid_trains_nothing_that_it_does_not_measure():
    """The base model alone is measured: nobody waits for its extension."""
    words = ["experiment=olmpool", "grid.design=[llama3]", "grid.seed=[0]", "dry_run=true"]
    for trained, expected in (("[short]", ["base"]), ("[long]", ["base", "extend"]), ("[short,long]", ["base", "extend"])):
        plan = make_plan(read_command([*words, f"grid.trained={trained}"]))
        assert [stage.name for stage in plan.stages if stage.config.kind == "train"] == expected


def test_a_stage_finds_its_trials_without_a_search():
    plan = make_plan(read_command(["dry_run=true", f"grid.seed={list(range(10, 40))}", "position=rope"]))
    plan = replace(plan, trials=Counted(plan.trials))
    Counted.passes = 0
    assert len(plan.stages) > 90 and outline(plan) and sweep_settings(plan)
    assert Counted.passes <= 4


def test_every_setting_of_the_sweep_is_shown():
    """But those of the command, and those that each stage has of its own."""
    plan = make_plan(read_command(["base=train", "exclude=[{position: rope}]", "grid.position=[rope,abf]"]))
    shown, command = sweep_settings(plan), {"dry_run", "only_failed", "show", "scale"}
    assert {field.name for field in fields(SweepConfig)} - {*SHARED, *command} <= set(shown)
    assert shown["base"] == "train" and shown["exclude"] == [{"position": "rope"}]


@pytest.mark.parametrize("experiment", ["layer_patterns", "olmpool", "drope", "position_tiny"])
def test_no_two_stages_have_one_label(experiment):
    """sweep.yaml has their settings by label."""
    plan = make_plan(read_command([f"experiment={experiment}"]))
    labels = [plan.label(stage) for stage in plan.stages]
    assert len(set(labels)) == len(labels) == len(sweep_settings(plan)["stages"])


def test_labels_say_what_the_trials_of_a_stage_share():
    said = {plan.label(stage) for plan in [make_plan(read_command(["experiment=layer_patterns"]))] for stage in plan.stages}
    assert {"corpus", "base rope s0", "extend rope long abf s1", "base nope short, nope long +2 s2"} <= said
    assert "base half context s0" in {
        plan.label(stage) for plan in [make_plan(read_command(["experiment=olmpool"]))] for stage in plan.stages
    }


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("trainer.precision=bf16-true", "base, extend: "),
        ("stages.extend.trainer.precision=bf16-true", "extend: "),
        ("trainer.precision=bf16-mixed", ""),
        ("stages.evaluate.trainer.precision=bf16-true", ""),
        ("evaluation.precision=bf16-true", ""),
    ],
)
def test_a_plan_says_which_stages_round_their_weights(word, named):
    """Training stages alone; evaluations change no weight."""
    plan = make_plan(read_command(["base=train", "position=rope", "dry_run=true", word]))
    expected = [named + ROUNDED_UPDATES] if named else []
    assert [note for note in plan.notes if ROUNDED_UPDATES in note] == expected
    assert (ROUNDED_UPDATES in outline(plan)) == bool(named)
