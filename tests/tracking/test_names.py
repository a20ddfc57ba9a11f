"""Names of runs in MLflow: each says what the run is without its parent, and no two of a sweep are the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_long.config import StageConfig, SweepConfig
from lit_long.config.schema import EvaluationConfig
from lit_long.stages.plan import Plan, Stage, Trial
from lit_long.tracking.record import run_name, sweep_name


def plan(variants, seeds, names=("base", "extend", "evaluate"), scale=""):
    """Trials of corpus → base (one a seed) → extend → evaluate, as far as ``names`` go."""

    def stage(name, seed, own):
        kind = {"corpus": "data", "evaluate": "evaluate"}.get(name, "train")
        config = StageConfig(kind=kind, seed=seed, context=256 if name == "base" else 2048)
        config.evaluation = EvaluationConfig(lengths=[256, 4096], passkey_lengths=[8192])
        return Stage(name, config, f"{name}{own}", Path(f"{name}{own}"))

    trials = []
    for variant in variants:
        for seed in seeds:
            own = {"corpus": "", "base": seed}
            stages = {name: stage(name, seed, own.get(name, f"{variant}{seed}")) for name in ("corpus", *names)}
            trials.append(Trial(variant, seed, {}, stages))
    stages = {one.identity: one for trial in trials for one in trial.stages.values()}
    return Plan(SweepConfig(experiment="mine", scale=scale), Path("."), trials, list(stages.values()), "k")


@pytest.mark.parametrize(
    ("made", "names", "parent"),
    [
        (
            plan(["rope", "abf"], [1]),
            ["corpus", "base 256 | seed 1"]
            + [f"{v} | {words} | seed 1" for v in ("rope", "abf") for words in ("extend 2048", "evaluate 8192")],
            "mine | 2 variants, 1 seed",
        ),
        (
            plan(["abf"], [0, 1], ("extend",), "laptop"),
            ["corpus", "abf | 2048 | seed 0", "abf | 2048 | seed 1"],
            "mine | laptop | 1 variant, 2 seeds",
        ),
        (plan(["abf"], [0], ("base", "extend")), ["corpus", "abf | base 256 | seed 0", "abf | extend 2048 | seed 0"], None),
    ],
)
def test_runs_say_what_they_are(made, names, parent):
    assert [run_name(made, stage) for stage in made.stages] == names
    assert parent in (None, sweep_name(made))


def test_what_some_variants_share_names_them():
    made = plan(["rope", "pi", "abf"], [0], ("extend",))
    shared = made.trials[0].stages["extend"]
    made.trials[1].stages["extend"] = shared
    assert run_name(made, shared) == "rope, pi | 2048 | seed 0"


def test_what_seeds_share_names_none():
    made = plan(["rope"], [0, 1], ("base", "extend"))
    shared = made.trials[0].stages["base"]
    made.trials[1].stages["base"] = shared
    assert run_name(made, shared) == "rope | base 256"
