"""Axes over settings of the chosen option, on the command line and in YAML; grids that make no sense."""

from __future__ import annotations

import pytest
import yaml

from lit_long.config import UserError, read_command
from lit_long.stages.plan import make_plan
from lit_long.stages.sweep_folder import outline
from tests.integration.mini import REPOSITORY

DEFAULT = yaml.safe_load((REPOSITORY / "experiments" / "position_tiny.yaml").read_text())


def plan(*words):
    return make_plan(read_command([*words, "dry_run=true"]))


def plan_of(tmp_path, *words, **changes):
    """The default experiment with other settings in its file."""
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(DEFAULT | changes, sort_keys=False))
    return plan(f"experiment={file}", *words)


def extended(found):
    """Variant → settings of the encoder it is extended with."""
    return {trial.variant: trial.stages["extend"].config.position for trial in found.trials}


SCALES = {"rope": None, "xpos_abf scale_base=128": 128, "xpos_abf scale_base=512": 512}


def test_an_axis_over_a_setting_applies_to_the_schemes_that_have_it():
    found = plan("grid.position=[rope,xpos_abf]", "grid.position.scale_base=[128,512]")
    assert {name: position.get("scale_base") for name, position in extended(found).items()} == SCALES
    assert [position["scheme"] for position in extended(found).values()] == ["rope", "xpos_abf", "xpos_abf"]
    note = "grid.position.scale_base applies to xpos_abf; rope without it"
    assert [one for one in found.notes if "holds no weights" not in one] == [note]  # these are about the checkout's archive
    assert outline(found).count(note) == 1
    # each is the stage that naming one value gives
    alone = plan("position=xpos_abf", "position.scale_base=128").trials[0].stages["extend"].identity
    assert found.trials[1].stages["extend"].identity == alone


def test_beside_the_experiments_own_options_and_seeds():
    found = plan("grid.position.base=[1e4,5e5]", "grid.seed=[0,1]")
    assert len(found.trials) == 4 * 2 * 2 and found.notes == []
    assert {(p["scheme"], p["base"]) for p in extended(found).values()} == {
        (scheme, base) for scheme in ("rope", "pi", "abf", "xpos_abf") for base in (1e4, 5e5)
    }
    several = plan(
        "grid.position=[rope,xpos_abf]", "grid.position.scale_base=[128,512]", "grid.position.gamma=[0.3,0.4]", "grid.seed=[0,1]"
    )
    assert [(t.variant, t.seed) for t in several.trials][:3] == [
        ("rope", 0),
        ("rope", 1),
        ("xpos_abf scale_base=128 gamma=0.3", 0),
    ]
    assert len(several.trials) == 2 * (1 + 2 * 2)


@pytest.mark.parametrize(
    "grid",
    [
        {"position": ["rope", "xpos_abf"], "position.scale_base": [128, 512]},
        {"position.scale_base": [128, 512], "position": ["rope", "xpos_abf"]},
        {"position": {"option": ["rope", "xpos_abf"], "scale_base": [128, 512]}},
    ],
)
def test_in_a_file(grid, tmp_path):
    found = {position.get("scale_base") for position in extended(plan_of(tmp_path, grid=grid)).values()}
    assert found == {None, 128, 512}
    one = plan_of(tmp_path, "position.scale_base=64", grid=grid)  # naming one value leaves that one, and rope as it is
    assert [position.get("scale_base") for position in extended(one).values()] == [None, 64]
    assert set(extended(plan_of(tmp_path, "position=xpos_abf", grid=grid))) == {"128", "512"}
    left = plan_of(tmp_path, grid=grid, exclude=[{"position": "xpos_abf", "position.scale_base": 128}])
    assert {position.get("scale_base") for position in extended(left).values()} == {None, 512}


def test_one_setting_for_all_options_of_an_axis():
    found = plan("grid.position=[rope,abf]", "position.base=1e5")
    assert {name: position["base"] for name, position in extended(found).items()} == {"rope": 1e5, "abf": 1e5}


def test_beside_named_points(tmp_path):
    points = [
        {"name": "a", "position": "rope"},
        {"name": "b", "stages": {"extend": {"position": {"option": "yarn", "beta": 16}}}},
    ]
    found = plan_of(tmp_path, grid={"stages.extend.position.beta": [8, 64], "kind": points})
    assert {name: position.get("beta") for name, position in extended(found).items()} == {
        "a": None,
        "beta=8 b": 8,
        "beta=64 b": 64,
    }


@pytest.mark.parametrize(
    "words, variants",
    [
        (["grid.stages.extend.adapter=[none,lora]", "grid.stages.extend.adapter.rank=[4,8]"], ["adapter=none", "adapter=lora rank=4", "adapter=lora rank=8"]),
        (["grid.model=[mini,smollm2-135m]", "grid.model.n_layers=[2,3]"], ["mini n_layers=2", "mini n_layers=3", "smollm2-135m"]),
        (["grid.optim=[adamw,muon]", "grid.optim.lr=[1e-3,2e-3]"], ["adamw lr=0.001", "adamw lr=0.002", "muon lr=0.001", "muon lr=0.002"]),
        (["grid.data=[builtin,prose]", "grid.data.weights.code=[0.1,0.5]"], ["builtin code=0.1", "builtin code=0.5", "prose"]),
        (["grid.data=[builtin,prolong]", "grid.data.sampling.code.max_tokens=[1k]"], ["builtin max_tokens=1k", "prolong"]),
        (["grid.position=[rope,pose]", "grid.position.training.chunks=[2,3]"], ["rope", "pose chunks=2", "pose chunks=3"]),
        (["grid.position=[nope,rope]", "grid.position.base=[1e4]"], ["nope", "rope base=10000.0"]),
        (["grid.adapter.rank=[0]"], ["rope rank=0"]),  # the adapter's option is not varied: an axis like any other
    ],
)  # fmt: skip
def test_every_group(words, variants):
    found = plan(*words, *([] if any("grid.position=" in word for word in words) else ["grid.position=[rope]"]))
    assert [trial.variant.removeprefix("rope ") for trial in found.trials] == [name.removeprefix("rope ") for name in variants]


def test_exclude_takes_a_value_however_it_is_spelled(tmp_path):
    grid = {"position": ["rope"], "stages.extend.tokens": ["512k", "1M"], "seed": [0, 1]}
    for spelled in ("1M", 1048576, "1024k"):
        found = plan_of(tmp_path, grid=grid, exclude=[{"stages.extend.tokens": spelled, "seed": 1.0}])
        assert [(trial.variant, trial.seed) for trial in found.trials] == [
            ("rope tokens=512k", 0),
            ("rope tokens=512k", 1),
            ("rope tokens=1M", 0),
        ]
    # the command line's spelling, too, where the rule is the file's
    found = plan_of(tmp_path, "grid.stages.extend.tokens=[1048576,32k]", grid=grid, exclude=[{"stages.extend.tokens": "1M"}])
    assert {trial.variant for trial in found.trials} == {"rope tokens=32k"}
    # a setting of a position, whose type only its scheme knows
    position = {"option": ["dynamic_ntk"], "original": ["4k", "8k"]}
    found = plan_of(tmp_path, grid={"position": position}, exclude=[{"position.original": 4096}])
    assert [trial.stages["extend"].config.position["original"] for trial in found.trials] == [8192]
    # an axis that the command line narrows is still without what the file's rule leaves out
    for word in ("stages.extend.tokens=512k", "grid.stages.extend.tokens=[512k]"):
        found = plan_of(tmp_path, word, grid=grid, exclude=[{"stages.extend.tokens": 1048576}])
        assert [(trial.seed, trial.point["stages.extend.tokens"]) for trial in found.trials] == [(0, "512k"), (1, "512k")]


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["grid.position.scale_bse=[1]"],
            "no option of rope, pi, abf, xpos_abf has this setting; did you mean 'position.scale_base'",
        ),
        (["position=rope", "grid.position.scale_base=[1]"], "grid.position.scale_base: no option of rope has this setting"),
        (["grid.stages.extend.adapter=[none]", "grid.stages.extend.adapter.rank=[4]"], "no option of none has this setting"),
        (["grid.optim=[adamw]", "grid.optim.lrr=[1]"], "did you mean 'optim.lr'"),
        (["grid.stages.nosuch.tokens=[1k]"], "grid.stages.nosuch.tokens: no stage 'nosuch'"),
        (["grid.stages.extend=[1]"], "grid.stages.extend: stages.extend is a group of settings"),
        (["grid.stages.evaluate.parent=[nosuch]"], "stages.evaluate.parent=nosuch: no stage that comes before it"),
        (["grid.seed=[0,0]"], "grid.seed has 0 twice"),
        (["grid.stages.extend.tokens=[64k,32k,65536]"], "grid.stages.extend.tokens has 64k twice, the second time as 65536"),
        (["grid.seed=[1,2,1.0]"], "grid.seed has 1 twice, the second time as 1.0"),
        (["grid.position=[dynamic_ntk]", "grid.position.original=[4k,4096]"], "original has 4k twice, the second time as 4096"),
        (["grid.stages.extend.position.base=[500000,5e5]"], "position.base has 500000 twice, the second time as 500000.0"),
        (["position=abf", "grid.position=[rope,pi]"], "command line: position=abf and grid.position=… both say what position is"),
        (["grid.position=[rope]", "grid.position.base=[1e4]", "position=abf"], "position=abf and grid.position=… both say"),
        (["seed=5", "grid.seed=[0,1]"], "command line: seed=5 and grid.seed=… both say what seed is; leave one out"),
        (["grid.optim.lr=[1e-3,2e-3]", "optim.lr=1e-3"], "optim.lr=0.001 and grid.optim.lr=… both say"),
        (["grid.seed=[0,null]"], "grid.seed must be a list such as"),
        (["grid.seed={}"], "grid.seed must be a list such as"),
        (["grid.position=['']"], "there is no configs/position/.yaml"),
        (["grid.size=[a]", "grid.size.b=[1]"], "cannot be read"),
        (["optim.betas=[1,2]", "optim.betas.x=1"], "cannot be read"),
        (["stages=5"], "stages must be a group of settings"),
        (["grid.optim.lr=['${optim.lr}']"], "Recursive interpolation"),
        (["exclude=[{}]"], "exclude leaves no point of the grid"),
    ],
)
def test_grids_that_make_no_sense(words, message):
    with pytest.raises(UserError) as error:
        plan(*words)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "grid, message",
    [
        ({1: [2]}, "unknown key '1'"),
        ({"position": {}}, "grid.position must be a list"),
        ({"position": ["rope"], "position.option": ["abf"]}, "grid.position is there twice"),
        ({"size": [{"name": "a", 5: 6}]}, "unknown key '5'"),
        ({"size": [{"name": "a", "optim": None}]}, "must have a name and settings"),
        ({"size": [{"name": "a", "stages": {"nosuch": 1}}]}, "grid.size: no stage 'nosuch'"),
        ({"size": [{"name": "a", "position": "rope"}, {"name": "a", "position": "abf"}]}, "grid.size has a twice"),
    ],
)
def test_files_that_make_no_sense(grid, message, tmp_path):
    with pytest.raises(UserError) as error:
        plan_of(tmp_path, grid=grid)
    assert message in str(error.value)
