"""Settings by their former names: the same plans, with a notice, from the command line and from every kind of file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lit_long.config import UserError, plain, read_command
from lit_long.config.renamed import RENAMED, UNTIL, say_once
from lit_long.config.schema import StageConfig
from lit_long.stages.folder import read_stage, write_stage
from lit_long.stages.plan import make_plan
from tests.integration.mini import REPOSITORY

NOTICE = f"trainer.bad_update is called trainer.on_bad_step now; the old name works until {UNTIL}"
EXPERIMENT = """
stages:
  one: {kind: train, context: 128, tokens_per_update: 128, %s}
  evaluate: {kind: evaluate, parent: one, evaluation: {domains: [code], lengths: [128]}}
"""
TOKENS = "tokens: 128"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    say_once.cache_clear()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plans(experiment: str, *words):
    with open_new("experiments/mine.yaml") as file:
        file.write(experiment)
    return make_plan(read_command(["experiment=mine", "dry_run=true", *words]))


def open_new(name):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    return Path(name).open("w")


def ways(plan):
    return [(trial.stages["one"].config.trainer.on_bad_step, trial.stages["one"].identity) for trial in plan.trials]


def test_on_the_command_line(capsys):
    new = plans(EXPERIMENT % TOKENS, "trainer.on_bad_step=skip")
    assert capsys.readouterr().err == ""
    for words in (["trainer.bad_update=skip"], ["trainer={bad_update: skip}"], ["stages.one.trainer.bad_update=skip"]):
        say_once.cache_clear()
        assert ways(plans(EXPERIMENT % TOKENS, *words)) == ways(new) and ways(new)[0][0] == "skip"
        assert capsys.readouterr().err == f"notice: command line: {NOTICE}\n"  # once, though all stages say it


def test_in_files(capsys):
    new = plans(EXPERIMENT % "tokens: 128, trainer: {on_bad_step: skip}")
    assert ways(plans(EXPERIMENT % "tokens: 128, trainer: {bad_update: skip}")) == ways(new) and ways(new)[0][0] == "skip"
    with open_new("configs/trainer/mine.yaml") as file:
        file.write("accelerator: cpu\nbad_update: skip\n")
    assert ways(plans(EXPERIMENT % "tokens: 128, trainer: mine")) == ways(new)
    with open_new("experiments/bases/mine.yaml") as file:
        file.write("kind: train\ntrainer: {bad_update: skip}\n")
    assert ways(plans(EXPERIMENT.replace("kind: train", "recipe: mine") % TOKENS)) == ways(new)
    told = capsys.readouterr().err.splitlines()
    assert [re.sub(r"^notice: (.*/)?", "", line) for line in told] == [f"mine.yaml: {NOTICE}"] * 3


def test_in_the_grid(capsys):
    axis = EXPERIMENT % TOKENS + "grid: {%s: [stop, skip]}\n"
    points = EXPERIMENT % TOKENS + "grid: {way: [{name: a, %s: stop}, {name: b, %s: skip}]}\nexclude: [{way: a}]\n"
    excluded = axis + "exclude: [{%s: stop}]\n"
    new, old = "trainer.on_bad_step", "trainer.bad_update"
    assert ways(plans(axis % old)) == ways(plans(axis % new)) and len(ways(plans(axis % new))) == 2
    assert ways(plans(points % (old, old))) == ways(plans(points % (new, new))) == ways(plans(excluded % (old, old)))
    assert ways(plans(EXPERIMENT % TOKENS, f"grid.{old}=[stop,skip]")) == ways(plans(axis % new))
    assert NOTICE in capsys.readouterr().err


def test_by_both_names():
    with pytest.raises(UserError, match=r"mine.yaml: .*bad_update and on_bad_step are two names of one setting"):
        plans(EXPERIMENT % "tokens: 128, trainer: {bad_update: skip, on_bad_step: stop}")


def test_a_stage_of_before_is_read(tmp_path, capsys):
    settings = plain(StageConfig())
    settings["trainer"]["bad_update"] = "skip"
    del settings["trainer"]["on_bad_step"]
    write_stage(tmp_path, "abc", settings, None, None)
    config, _, _ = read_stage(tmp_path)
    assert config.trainer.on_bad_step == "skip" and plain(config) == plain(StageConfig()) | {
        "trainer": plain(StageConfig().trainer) | {"on_bad_step": "skip"}
    }
    assert capsys.readouterr().err == ""  # nobody typed it


def test_the_page_lists_them():
    page = (REPOSITORY / "docs" / "sweeps.md").read_text()
    for old, new in RENAMED.items():
        assert f"| `{old}` | `{old.rpartition('.')[0]}.{new}` |" in page
