"""What a sweep and its record say of a stage that breaks: the others go on, and only_failed=true runs it again."""

from __future__ import annotations

import os

from tests.integration.mini import (
    MINI,
    REPOSITORY,
    TASKS,
    record,
    run_here,
    runs,
    table,
    with_broken_encoder,
    with_corpus,
    with_database,
)


def test_a_failed_stage_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    """One variant's encoder breaks while training: exit code 1, its reason shown, the other variant in the table."""
    with_corpus(with_database(tmp_path))
    work = with_broken_encoder(tmp_path / "work")
    monkeypatch.syspath_prepend(work)
    found = {"cwd": work, "PYTHONPATH": f"{work}{os.pathsep}{REPOSITORY}"}
    sweep = run_here("lit_long.sweep", *MINI, *TASKS, "grid.position=[broken,rope]", f"root={tmp_path}", **found)
    assert sweep.returncode == 1, sweep.stdout + sweep.stderr
    assert "extend broken: FAILED: RuntimeError: the encoder broke at length 256" in sweep.stdout
    assert "evaluate broken: skipped" in sweep.stdout and "evaluate rope: done" in sweep.stdout
    assert "  extend broken: RuntimeError: the encoder broke at length 256  (" in sweep.stdout.splitlines()[-1]
    assert [row for row in table(tmp_path) if row["variant"] == "rope" and row["metric"] == "perplexity"]
    assert "Traceback" not in sweep.stdout + sweep.stderr
    store = record(tmp_path)
    assert {r.info.run_name: r.info.status for r in runs(store)}["broken | extend 256 | seed 0"] == "FAILED"

    (work / "repaired").touch()  # the machine, not the code: other code would be another stage
    words = [*MINI, *TASKS, "grid.position=[broken,rope]", f"root={tmp_path}", "only_failed=true"]
    again = run_here("lit_long.sweep", *words, **found)
    assert again.returncode == 0 and again.stdout.count("done in") == 2, again.stdout + again.stderr
    assert {r.info.status for r in runs(store)} == {"FINISHED"}
    nothing = run_here("lit_long.sweep", *words, **found)
    assert nothing.returncode == 0 and "has failed. 7 of 7 are done" in nothing.stdout and len(nothing.stdout.splitlines()) == 1
