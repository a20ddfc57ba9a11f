"""only_failed=true: which stages it chooses, from what lies in their folders."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from lit_long.config import read_command
from lit_long.stages.plan import make_plan, nothing_failed, only_failed
from lit_long.stages.sweep_folder import outline


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    words = [
        "base=train",
        "grid.position=[rope,abf]",
        "grid.seed=[0,1]",
        "only_failed=true",
        f"root={tmp_path_factory.mktemp('root')}",
    ]
    return make_plan(read_command(words))


@pytest.fixture
def plan(planned):
    """Two variants under two seeds, nothing run."""
    shutil.rmtree(planned.root / "runs", ignore_errors=True)
    return planned


def put(plan, file, *labels):
    for stage in plan.stages:
        if plan.label(stage) in labels:
            stage.folder.mkdir(parents=True, exist_ok=True)
            (stage.folder / file).write_text("it broke\nbadly\n" if file == "error.txt" else "")


def to_run(plan):
    return [plan.label(stage) for stage in only_failed(plan).chosen if not stage.done]


def test_what_failed_and_what_needs_it(plan):
    put(plan, "DONE", "corpus", "base s0", "extend rope s0", "evaluate rope s0")
    put(plan, "error.txt", "extend abf s0", "base s1")
    assert set(to_run(plan)) == {
        *("extend abf s0", "evaluate abf s0", "base s1", "evaluate_base s1"),
        *("extend rope s1", "evaluate rope s1", "extend abf s1", "evaluate abf s1"),
    }
    left = [plan.label(stage) for stage in only_failed(plan).left]
    assert left == ["evaluate_base s0"]  # its base is done; it was never tried


def test_a_failed_stage_that_is_done_by_now_is_done(plan):
    put(plan, "error.txt", "base s0")
    put(plan, "DONE", "corpus", "base s0")
    assert not any(stage.failed for stage in plan.stages) and to_run(plan) == []


def test_inputs_that_are_gone_are_made_again(plan):
    """Else it would wait for them for ever."""
    put(plan, "error.txt", "evaluate abf s1")
    assert to_run(plan) == ["corpus", "base s1", "extend abf s1", "evaluate abf s1"]


def test_nothing_failed_is_said(plan):
    put(plan, "DONE", "corpus", "base s0")
    line = nothing_failed(only_failed(plan))
    assert line.startswith("only_failed=true: no stage of position_tiny ") and "2 of 13 are done; 11 were never tried" in line
    put(plan, "error.txt", "base s1")
    assert nothing_failed(only_failed(plan)) == ""


def test_the_outline_says_what_would_be_done_and_why(plan):
    put(plan, "DONE", "corpus", "base s0")
    put(plan, "error.txt", "extend abf s0")
    lines = [line.split() for line in outline(only_failed(plan)).splitlines()]
    states = {" ".join(words[:2] if words[0] != "to" else words[:3]): words for words in lines}
    assert {"cached corpus", "cached base", "left extend", "to run extend", "to run evaluate"} <= states.keys()
    assert "failed: it broke\n" in outline(only_failed(plan))


def test_without_the_word_everything_runs(plan):
    put(plan, "error.txt", "base s0")
    whole = replace(plan, sweep=replace(plan.sweep, only_failed=False))
    assert only_failed(whole).chosen == plan.stages and nothing_failed(whole) == ""
