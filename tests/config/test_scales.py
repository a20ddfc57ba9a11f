"""Scales, named points and excluded ones: what stages an experiment of one's own becomes."""

from __future__ import annotations

import pytest
import yaml

from lit_long.config import UserError, read_command
from lit_long.stages.plan import make_plan

EXPERIMENT = {
    "scale": "small",
    "data": "builtin",
    "grid": {
        "position": ["rope", "abf"],
        "size": [
            {"name": "s", "model": "tiny"},
            {"name": "m", "model": {"option": "tiny", "n_layers": 6}, "optim.lr": 1e-4, "stages.train.tokens": "64k"},
        ],
    },
    "exclude": [{"position": "rope", "size": "m"}],
    "stages": {
        "train": {"context": 256, "tokens": "32k", "tokens_per_update": 1024},
        "again": {"parent": "train", "context": 256, "tokens": "16k", "tokens_per_update": 1024},
        "evaluate": {"kind": "evaluate", "parent": "again"},
    },
    "evaluation": {"domains": ["docs"], "lengths": [256]},
    "scales": {
        "small": {},
        "large": {
            "exclude": [],
            "grid": {"size": None, "seed": [0, 1]},
            "stages": {"again": None, "evaluate": {"parent": "train"}},
            "optim": {"lr": 5e-4},
        },
    },
}


@pytest.fixture
def plan(tmp_path):
    def make(*words, **changes):
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(EXPERIMENT | changes, sort_keys=False))
        return make_plan(read_command([f"experiment={file}", *words]))

    return make


def test_named_points_bring_their_settings_together(plan):
    found = plan()
    assert found.sweep.scale == "small"
    assert [t.variant for t in found.trials] == ["rope s", "abf s", "abf m"]
    small, large = found.trials[1], found.trials[2]
    assert (small.stages["train"].config.model.n_layers, large.stages["train"].config.model.n_layers) == (4, 6)
    assert (small.stages["train"].config.optim.lr, large.stages["train"].config.optim.lr) == (3e-4, 1e-4)
    assert (large.stages["train"].config.tokens, large.stages["again"].config.tokens) == (64 * 1024, 16 * 1024)


def test_a_scale_lies_over_the_experiment_and_takes_things_away(plan):
    found = plan("scale=large")
    assert [(t.variant, t.seed) for t in found.trials] == [("rope", 0), ("rope", 1), ("abf", 0), ("abf", 1)]
    assert list(found.trials[0].stages) == ["corpus", "train", "evaluate"]
    assert {t.stages["train"].config.optim.lr for t in found.trials} == {5e-4}
    assert plan("scale=large", "optim.lr=1e-3").trials[0].stages["train"].config.optim.lr == 1e-3


def test_points_are_picked_by_name(plan):
    """What is excluded of the others says nothing then."""
    assert [t.variant for t in plan("grid.size=[m]", "position=abf").trials] == ["abf m"]


def test_options_and_named_points_on_one_axis(plan):
    mixed = {"position": ["rope", {"name": "pi", "position": "pi", "stages.train.optim.lr": 7e-4}]}

    def rates(*words):
        trials = plan(*words, grid=mixed, exclude=[]).trials
        return {t.variant: (t.stages["train"].config.position["scheme"], t.stages["train"].config.optim.lr) for t in trials}

    usual = rates()["rope"][1]
    assert rates() == {"rope": ("rope", usual), "pi": ("pi", 7e-4)} and usual != 7e-4
    assert rates("grid.position=[pi,yarn]") == {
        "pi": ("pi", 7e-4),
        "yarn": ("yarn", usual),
    }  # an option that is no point of the file
    assert list(rates("position=pi").values()) == [("pi", 7e-4)]
    with pytest.raises(UserError, match="position=yarm: .*did you mean 'yarn'"):
        rates("grid.position=[pi,yarm]")


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        (["scale=lage"], {}, "scale=lage: .* has small, large; did you mean 'large'"),
        (["grid.size=[n]"], {"exclude": []}, "grid.size: no point 'n'.*has s, m"),
        (["grid.size=s,m"], {"exclude": []}, r"grid.size=s,m: several points are a list: grid.size=\[s,m\]"),
        ([], {"exclude": [{"sise": "m"}]}, "exclude: sise is no axis of the grid; did you mean 'size'"),
        ([], {"exclude": [{"size": "l"}]}, "exclude: size=l is no value of that axis"),
        ([], {"grid": {"size": [{"model": "tiny"}]}, "exclude": []}, "grid.size: .*must have a name and settings"),
        ([], {"scales": {"small": 3}}, "scales must be NAME"),
    ],
)
def test_what_makes_no_sense_is_named(plan, words, changes, message):
    with pytest.raises(UserError, match=message):
        plan(*words, **changes)


def test_an_experiment_without_scales():
    with pytest.raises(UserError, match="scale=large: .*position_tiny.yaml has no scales; leave the word out"):
        make_plan(read_command(["scale=large"]))


def test_a_recipe_lies_under_what_the_stage_says(tmp_path, monkeypatch):
    (tmp_path / "experiments" / "bases").mkdir(parents=True)
    (tmp_path / "experiments" / "bases" / "short.yaml").write_text(
        "{context: 128, tokens: 1k, tokens_per_update: 256, optim: {lr: 1e-4}}"
    )
    experiment = "stages: {base: {recipe: short, tokens: 2k}}\nreport: {rows: base}"
    (tmp_path / "experiments" / "mine.yaml").write_text(experiment)
    monkeypatch.chdir(tmp_path)
    config = make_plan(read_command(["experiment=mine", "optim.lr=1e-3"])).trials[0].stages["base"].config
    assert (config.context, config.tokens, config.tokens_per_update, config.optim.lr) == (128, 2048, 256, 1e-3)
    (tmp_path / "experiments" / "mine.yaml").write_text(experiment.replace("short", "shot"))
    with pytest.raises(
        UserError, match=r"stages.base.recipe=shot: there is no experiments/bases/shot.yaml; did you mean 'short'"
    ):
        read_command(["experiment=mine"])
