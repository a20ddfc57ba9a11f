"""Layers in a plan: grids, what identities hold, what a stage inherits, curricula, and what is refused before anything loads."""

from __future__ import annotations

import re

import pytest

from lit_long.config import LayerGroupConfig, LayersConfig, UserError, read_command
from lit_long.stages.plan import make_plan

NOPE = {"scheme": "nope"}
CURRICULUM = "stages.base.curriculum.phases"


def plan(*words):
    return make_plan(read_command(["base=train", "dry_run=true", *words]))


def identities(found, point=0):
    return {name: stage.identity for name, stage in found.trials[point].stages.items()}


def test_positions_and_layers_in_one_grid():
    """Each pair is a variant; uniform is what there is without layers, to the identity."""
    found = plan("grid.position=[rope,abf]", "grid.layers=[uniform,swan,rnope_swa]", "seed=0")
    assert [trial.variant for trial in found.trials] == [
        f"{p} {layers}" for p in ("rope", "abf") for layers in ("uniform", "swan", "rnope_swa")
    ]
    plain = plan("grid.position=[rope,abf]", "seed=0")
    assert identities(found, 0) == identities(plain, 0) and identities(found, 3) == identities(plain, 1)
    assert len({stage.identity for stage in found.stages}) == len(found.stages)
    for trial in found.trials:
        stages = trial.stages
        assert stages["extend"].config.layers == stages["evaluate"].config.layers
        assert stages["extend"].config.layers.pattern == {"uniform": [], "swan": ["global", "local", "local", "local"]}.get(
            trial.variant.split()[1], ["local", "local", "local", "global"]
        )
    swan = found.trials[4].stages["extend"].config
    assert swan.position["scheme"] == "abf"  # which local layers take
    assert swan.layers.groups == {"global": LayerGroupConfig(NOPE), "local": LayerGroupConfig(window=16)}


def test_the_same_in_other_words_is_the_same_stage():
    one = ["layers.groups.all.position.scheme=rope", "layers.groups.all.position.base=625"]
    assert identities(plan("position=rope", "seed=0", *one)) == identities(plan("position=rope", "seed=0"))
    assert identities(plan("layers.groups.all.window=64", "position=rope", "seed=0"))["base"] not in (
        *identities(plan("position=rope", "seed=0")).values(),
        *identities(plan("layers.groups.all.window=63", "position=rope", "seed=0")).values(),
    )


def test_a_window_of_one_group_is_an_axis():
    found = plan("position=rope", "seed=0", "grid.layers=[uniform,swan]", "grid.layers.groups.local.window=[16,32]")
    assert [trial.variant for trial in found.trials] == ["rope uniform", "rope swan window=16", "rope swan window=32"]
    assert found.notes == ["grid.layers.groups.local.window applies to swan; uniform without it"]


def test_an_evaluation_scales_queries_that_were_trained_without():
    words = ["position=rope", "seed=0", "layers=swan"]
    scale = "stages.evaluate.layers.groups.global.query_scale={form: log, base: 100}"
    before, after = plan(*words), plan(*words, scale)
    assert identities(before)["extend"] == identities(after)["extend"]
    assert identities(before)["evaluate"] != identities(after)["evaluate"]
    groups = after.trials[0].stages["evaluate"].config.layers.groups
    assert groups["global"] == LayerGroupConfig(NOPE, None, {"form": "log", "base": 100.0})


def test_an_axis_over_an_evaluation_alone():
    """Its layers, or its encoder, are then its own; a model that is trained once is measured with each."""
    for axis in ("layers.groups.local.window=[8,16]", "position=[rope,abf]"):
        found = plan("position=rope", "seed=0", "layers=swan", f"grid.stages.evaluate.{axis}")
        assert len({trial.stages["extend"].identity for trial in found.trials}) == 1
        assert len({trial.stages["evaluate"].identity for trial in found.trials}) == len(found.trials) == 2


def test_a_phase_changes_a_group():
    words = ["position=rope", "seed=0", "layers=swan"]
    phases = "[{until: 0.5, layers: {groups: {local: {window: 8}, global: {position: {}}}}}, {}]"
    found = plan(*words, f"{CURRICULUM}={phases}").trials[0].stages["base"].config
    first, last = found.curriculum.phases
    assert first.layers["groups"]["local"]["window"] == 8
    assert last.layers == {} and found.layers.groups["local"].window == 16
    assert identities(plan(*words))["base"] != identities(plan(*words, f"{CURRICULUM}={phases}"))["base"]
    uniform = plan(*words, f"{CURRICULUM}=[{{until: 0.5, layers: {{groups: {{x: {{}}}}, pattern: [x]}}}}, {{}}]")
    assert uniform.trials[0].stages["base"].config.curriculum.phases[0].layers == {"groups": {}, "pattern": []}
    assert len({identities(plan(*words, *more))["base"] for more in ([], [f"{CURRICULUM}={phases}"])}) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["layers=swann"], "layers=swann: there is no configs/layers/swann.yaml; did you mean 'swan'?"),
        (["layers.groups.all.window=0"], "command line: layers.groups.all.window must be at least 1, not 0"),
        (
            ["layers.groups.all.windw=9"],
            "command line: unknown key 'layers.groups.all.windw'; did you mean 'layers.groups.all.window'?",
        ),
        (
            ["layers.groups.all.window=4k"],
            "position_tiny.yaml: stages.base: layers.groups.all.window=4096 is above the context of 256 tokens, so that it hides nothing: "
            "choose a smaller one, or layers.groups.all.window=null for all tokens",
        ),
        (["layers.groups.loca.window=8"], "stages.base: layers.groups.loca is in no place of layers.pattern=[all]"),
        (["layers.pattern=[all,some]"], "stages.base: layers.pattern: no group 'some'; known here: all"),
        (
            ["layers=gemma3"],
            "stages.base: model.n_layers=4 ends before layers.pattern=[local, local, local, local, local, global] comes to 'global'",
        ),
        (
            ["layers=swan", "layers.groups.global.position={scheme: xpos, scale_base: 2}"],
            "layers.groups.global: position: xPos with scale_base=2 and centre=0 holds up to 129 tokens, not 256",
        ),
        (
            ["layers=swan", "layers.groups.global.query_scale={form: lg}"],
            "stages.base: layers.groups.global: unknown query_scale.form 'lg'",
        ),
        (
            ["layers=swan", f"{CURRICULUM}=[{{until: 0.5, layers: {{groups: {{far: {{}}}}}}}}, {{}}]"],
            "stages.base.curriculum.phases[0]: layers.groups.far is in no place of layers.pattern=[global, local, local, local]",
        ),
        (
            ["layers=swan", f"{CURRICULUM}=[{{until: 0.5, layers: {{groups: {{local: {{window: 0}}}}}}}}, {{}}]"],
            "stages.base.curriculum.phases[0]: layers.groups.local.window must be at least 1, not 0",
        ),
        (
            [f"{CURRICULUM}=[{{until: 0.5}}, {{layers: {{groups: {{all: {{window: 8}}}}}}}}]"],
            "stages.base.curriculum: the last phase has a layers of its own",
        ),
    ],
)
def test_what_is_refused(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        plan("position=rope", *words)


def test_layers_enter_only_where_they_differ():
    assert plan("position=rope", "seed=0").trials[0].stages["base"].config.layers == LayersConfig()


def test_code_of_ones_own_counts(tmp_path, monkeypatch):
    """Of a group's encoder, and of its query scale."""
    code = """
from dataclasses import dataclass
from lit_long.positions.query_scale import QueryScale
from lit_long.positions.schemes import RoPE

@dataclass(frozen=True)
class Mine(RoPE):
    def inverse_frequencies(self, length):
        return [f * FACTOR for f in super().inverse_frequencies(length)]

@dataclass(frozen=True)
class Root(QueryScale):
    power: float = 0.5

    def factors(self, positions):
        return (1 + FACTOR * positions) ** self.power
"""
    monkeypatch.syspath_prepend(tmp_path)
    found = set()
    for factor in (0.5, 0.25):
        (tmp_path / "own_layers.py").write_text(code.replace("FACTOR", str(factor)))
        for words in ("position.scheme=own_layers:Mine", "query_scale.form=own_layers:Root"):
            made = plan("position=rope", "seed=0", "layers=swan", f"layers.groups.local.{words}")
            found.add(identities(made)["base"])
    assert len(found) == 4
