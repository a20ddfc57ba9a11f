"""A positional encoder of one's own, as docs/positional-encoders.md tells it: a class and a YAML in an otherwise empty folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lit_long.config import CurriculumConfig, StageConfig
from lit_long.config.schema import PhaseConfig
from lit_long.stages.identity import own_code
from tests.integration.mini import MINI, REPOSITORY, run

PAGE = REPOSITORY / "docs" / "positional-encoders.md"


@pytest.fixture
def folder(tmp_path) -> Path:
    """The files that the page shows: each code block whose first line names its file."""
    blocks = re.findall(r"```\w+\n# (\S+\.(?:py|yaml))\b[^\n]*\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert {name for name, _ in blocks} >= {"my_module.py", "configs/position/mine.yaml"}
    for name, content in blocks:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path


def test_own_encoder_is_planned_and_its_settings_are_checked(folder):
    plan = run("lit_long.sweep", "dry_run=true", "position=mine", f"root={folder}", cwd=folder)
    assert plan.returncode == 0 and re.search(r"to run +extend", plan.stdout), plan.stdout + plan.stderr
    wrong = run("lit_long.sweep", "dry_run=true", "position=mine", "position.slop=1", f"root={folder}", cwd=folder)
    assert wrong.returncode == 2 and "did you mean 'position.slope'?" in wrong.stderr and "Traceback" not in wrong.stderr
    every = run("lit_long.sweep", "dry_run=true", "grid.position=all", f"root={folder}", cwd=folder)
    assert "extend mine" in every.stdout and "extend yarn" in every.stdout and "longrope" not in every.stdout


@pytest.mark.slow  # test_interruptions trains one, too
def test_own_encoder_is_trained_and_evaluated(folder):
    sweep = run("lit_long.sweep", *MINI, "grid.position=[mine,pose]", f"root={folder}", cwd=folder)
    assert sweep.returncode == 0, sweep.stdout + sweep.stderr
    latest = (folder / "runs" / "position_tiny" / "latest").resolve()
    assert [trial["variant"] for trial in json.loads((latest / "sweep.json").read_text())["trials"]] == ["mine", "pose"]
    assert "mine" in (latest / "table.csv").read_text()


def test_an_encoder_that_was_changed_is_another_stage(folder):
    """What its code computes counts, what is written beside it does not."""

    def planned():
        plan = run("lit_long.sweep", "dry_run=true", "grid.position=[rope,mine]", f"root={folder}", cwd=folder)
        assert plan.returncode == 0, plan.stdout + plan.stderr
        return {
            name: re.search(rf"{name} .*runs/stages/(\S+)", plan.stdout)[1]
            for name in ("corpus", "extend rope", "extend mine", "evaluate mine")
        }

    module = folder / "my_module.py"
    code = module.read_text()
    first = planned()
    module.write_text("# a remark\n\n" + code.replace("(", "(  "))
    assert planned() == first
    module.write_text(code + "\n\nSLOPE = 2.0\n")
    changed = planned()
    assert {name for name in first if changed[name] != first[name]} == {"extend mine", "evaluate mine"}


def test_the_code_of_an_own_transform_counts_and_built_in_schemes_have_none():
    def code(**position):
        return own_code(StageConfig(position=position))

    own = code(scheme="rope", training={"transform": "tests.training.broken:Broken"})
    assert list(own) == ["tests.training.broken"]
    assert own == code(scheme="tests.training.broken:Broken", base=1.0)
    assert code(scheme="rope", training={"transform": "pose"}) == {}


def test_code_that_only_a_phase_names_counts():
    """Of a phase's encoder, of its transform, and of a group's in its layers; not for an evaluation, which has no phases."""
    own = "tests.training.broken:Broken"
    phases = [
        PhaseConfig(position={"scheme": own}),
        PhaseConfig(position={"scheme": "rope", "training": {"transform": own}}),
        PhaseConfig(layers={"groups": {"all": {"query_scale": {"form": own}}}, "pattern": ["all"]}),
        PhaseConfig(layers={"groups": {"all": {"position": {"scheme": own}}}, "pattern": ["all"]}),
    ]
    for phase in phases:
        curriculum = CurriculumConfig([phase])
        assert list(own_code(StageConfig(curriculum=curriculum))) == ["tests.training.broken"]
        assert own_code(StageConfig(kind="evaluate", curriculum=curriculum)) == {}
