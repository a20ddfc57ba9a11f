"""What a terminal shows while a sweep runs, read off the terminal; and that a log has lines instead."""

from __future__ import annotations

import io
import json
import shutil

import pytest
from rich.console import Console

from lit_long.config import LauncherConfig, read_command
from lit_long.launch import display as display_module
from lit_long.launch.display import Curve, Dashboard, Display, SweepEta
from lit_long.launch.local import LocalLauncher
from lit_long.launch.runner import Runner
from lit_long.stages.folder import take_lock
from lit_long.stages.plan import make_plan


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Four encoders under two seeds."""
    return make_plan(read_command(["base=train", "grid.seed=[0,1]", f"root={tmp_path_factory.mktemp('root')}"]))


@pytest.fixture
def plan(planned):
    shutil.rmtree(planned.root / "runs", ignore_errors=True)
    return planned


def stage(plan, label):
    return next(stage for stage in plan.stages if plan.label(stage) == label)


def done(plan, label, measured=None, losses=()):
    folder = stage(plan, label).folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = [] if measured is None else [{"metric": "perplexity", "domain": "code", "length": 2048, "value": measured}]
    (folder / "result.json").write_text(json.dumps({"kind": "evaluate", "measurements": rows}))
    (folder / "DONE").touch()
    validate(folder, *losses)


def validate(folder, *losses):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as file:
        for step, loss in enumerate(losses):
            file.write(json.dumps({"step": step, "time": 0.0, "train/loss": 9.0}) + "\n")
            file.write(json.dumps({"step": step, "time": 0.0, "val/code/loss": loss, "val/docs/loss": loss + 1}) + "\n")


def screen(display, width=110, height=30):
    """The lines that the terminal would show now."""
    console = Console(record=True, file=io.StringIO(), width=width, height=height, force_terminal=True)
    display.draw()
    console.print(display.screen())
    return console.export_text().splitlines()


def line_of(lines, *words):
    (found,) = [line for line in lines if line.split()[: len(words)] == list(words)]
    return found


def on_terminal(plan, height=30):
    return Display(Console(file=io.StringIO(), width=110, height=height, force_terminal=True), plan)


def test_each_trial_has_its_line(plan):
    with on_terminal(plan) as display:
        for label in ("corpus", "base s0", "base s1", "evaluate_base s0", "evaluate_base s1"):
            done(plan, label, losses=[4.0] if "base s" in label else [])
            display.end(stage(plan, label).identity, f"{label}: done", 1.0)
        for label, value in (("rope s0", 24.31), ("abf s1", 22.5)):
            for name, measured in (("extend", None), ("evaluate", value)):
                done(plan, f"{name} {label}", measured, losses=[3.0, 2.75, 2.8] if name == "extend" else [])
                display.end(stage(plan, f"{name} {label}").identity, "done", 10.0)
        running = stage(plan, "extend pi s0")
        validate(running.folder, 3.5)
        display.begin(running.identity, "extend pi s0")
        display.update(running.identity, "update 1/2", 0.5)
        broken = stage(plan, "extend abf s0")
        display.begin(broken.identity, "extend abf s0")
        display.end(broken.identity, "extend abf s0: FAILED", 1.0)
        lines = screen(display)
    finished = line_of(lines, "rope", "0", "done")
    assert "100%" in finished and "3.300 (3.250)" in finished and "24.31" in finished  # means of code and docs
    assert "22.50" in line_of(lines, "abf", "1", "done")
    runs = line_of(lines, "pi", "0", "extend")
    assert "4.000" in runs and "92%" in runs and ":" in runs.split()[-1]
    assert "3.300" not in runs and "24.31" not in runs
    assert line_of(lines, "abf", "0", "extend", "failed").rstrip().endswith("4.500")  # no time left is told of what is over
    assert "4.500" in line_of(lines, "pi", "1", "waiting")  # its base's
    assert any("perplexity: code at 2,048" in line for line in lines)
    bars = [line.split() for line in lines[-2:]]
    assert bars[0][1] == "sweep" and bars[1][1:4] == ["extend", "pi", "s0"] and "9 of 21 done" in lines[-2]


def test_a_low_terminal_shows_what_runs_first(plan):
    with on_terminal(plan, height=12) as display:
        for label in ("extend xpos_abf s1", "extend pi s1"):
            display.begin(stage(plan, label).identity, label)
        lines = screen(display, width=80, height=12)
    assert len(lines) <= 12 and max(map(len, lines)) <= 80
    assert line_of(lines, "pi", "1", "extend") and line_of(lines, "xpos_abf", "1", "extend")
    assert any("… 5 more: 5 waiting" in line for line in lines)


def test_the_losses_of_a_stage_that_went_back_are_read_anew(tmp_path):
    validate(tmp_path, 3.0, 2.0)
    curve = Curve(tmp_path / "metrics.jsonl")
    assert curve.read() == [3.5, 2.5] == curve.read()
    with curve.file.open("a") as file:
        file.write('{"step": 2, "val/code/loss": 1.')  # being written
    assert curve.read() == [3.5, 2.5]
    curve.file.unlink()
    validate(tmp_path, 3.0)
    assert curve.read() == [3.5]


def test_a_log_has_lines_and_no_table(plan):
    file = io.StringIO()
    with Display(Console(file=file, width=110), plan) as display:
        one = stage(plan, "extend abf s1")
        display.begin(one.identity, "extend abf s1")
        display.last_line = -100.0
        display.update(one.identity, "update 1/2 · loss 3.000", 0.5)
        display.end(one.identity, "extend abf s1: done in 0:10")
    assert file.getvalue().splitlines() == [
        "[1/21] extend abf s1:  50% · update 1/2 · loss 3.000 · stage -:-- to go · sweep -:-- to go",
        "[1/21] extend abf s1: done in 0:10",
    ]


def test_the_work_left_counts_what_runs_by_its_share(plan):
    """After 10 s for one extension, half of another is 5 s."""
    eta = SweepEta(plan.chosen)
    dashboard = Dashboard(plan, eta)
    eta.finished(stage(plan, "extend abf s0").identity, 10.0)
    one = stage(plan, "extend abf s1").identity
    assert eta.of_stages([one], {}) == pytest.approx(10.0)
    dashboard.ended.add(one)
    assert dashboard.row(next(t for t in plan.trials if (t.variant, t.seed) == ("abf", 1)), {}).state == "failed"


def test_a_stage_of_another_sweep_gives_way_to_those_that_run(plan, monkeypatch):
    """It is shown while this sweep waits for it, and keeps no line of the log from the stage that is started meanwhile."""
    monkeypatch.setattr(display_module, "LINE_SECONDS", 0.0)
    for label in ("corpus", "evaluate_base s0", "evaluate_base s1"):
        done(plan, label)
    log = io.StringIO()
    with Display(Console(file=log, width=200), plan) as display:
        runner = Runner(plan, None, display, LocalLauncher(LauncherConfig(), plan.root))
        runner.waiting = [each for each in runner.waiting if not each.done]
        locked, own = stage(plan, "base s0"), stage(plan, "base s1")
        locked.folder.mkdir(parents=True)
        with take_lock(locked.folder):
            (active,) = runner.take_ready()
            assert active.stage is own and list(display.shown) == [locked.identity, own.identity]
            assert "base s0:   0% · waiting for another sweep" in log.getvalue()
            runner.waiting.remove(own)
            runner.active[own.identity] = active
            assert not runner.take_ready() and list(display.shown) == [own.identity]
            display.update(own.identity, "update 1/2", 0.5)
        active.lock.close()
    assert "base s1:  50% · update 1/2" in log.getvalue()
