"""Two sweeps at once, one root, one SQLite file: they share stages and the record, and neither loses anything."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.integration.mini import MINI, REPOSITORY, command, losses, record, runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
HISTORY = "lit_long.source_run"  # of a child that has none of its own: where it is


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Root of two sweeps that started at the same moment, and what each said."""
    root = tmp_path_factory.mktemp("both")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "120"}
    grids = ("grid.position=[rope,abf]", "grid.position=[abf,pi]")
    words = [command("lit_long.sweep", *MINI, "launcher.parallel=2", grid, f"root={root}") for grid in grids]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(one, cwd=REPOSITORY, env=environment, **pipes) for one in words]
    said = [process.communicate(timeout=1400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return root, said


def test_shared_stages_ran_once(both):
    root, said = both
    folders = sorted(folder.name.partition("-")[0] for folder in (root / "runs" / "stages").iterdir())
    assert folders.count("train") == 4 and folders.count("evaluate") == 4  # base and three extensions; each is measured
    assert all((folder / "DONE").is_file() for folder in (root / "runs" / "stages").glob("[te]*-*"))
    for label, times in (
        ("] base: done in", 1),
        ("] extend abf: done in", 1),
        ("] evaluate_base: done in", 1),
        ("] corpus: done in", 1),
    ):
        assert sum(one.count(label) for one in said) == times, (label, said)
    assert all("[7/7]" in one for one in said)


def test_the_record_has_both_trees_whole(both):
    root, _ = both
    client = record(root)
    found = runs(client)
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 2 and {run.info.status for run in found} == {"FINISHED"}
    for parent in parents:
        children = runs(client, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        assert len(children) == len({child.info.run_name for child in children}) == 7
        artifacts = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
        assert {"table.csv", "report.html", "results.json", "figures"} <= artifacts


def test_no_point_of_a_curve_is_lost_or_there_twice(both):
    root, _ = both
    client = record(root)
    for folder in (root / "runs" / "stages").glob("train-*"):
        identity = folder.name.partition("-")[2]
        users = runs(client, f"tags.`lit_long.identity` = '{identity}'")
        holders = [run for run in users if HISTORY not in run.data.tags]
        assert holders and {run.data.tags[HISTORY] for run in users if HISTORY in run.data.tags} <= {
            r.info.run_id for r in holders
        }
        for run in holders:
            history = client.get_metric_history(run.info.run_id, "train/loss")
            assert [point.step for point in history] == list(range(1, len(history) + 1))
            assert [point.value for point in history] == pytest.approx(losses(folder))
    for run in runs(client, "tags.`lit_long.kind` = 'evaluate'"):
        assert "eval/perplexity/code/256" in run.data.metrics
