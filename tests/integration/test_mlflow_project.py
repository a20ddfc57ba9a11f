"""A sweep started by MLflow: `mlflow run . --env-manager=local -P experiment=…`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.mini import MINI, REPOSITORY, record, runs, table

ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(REPOSITORY),
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


def test_the_project_starts_a_sweep(tmp_path):
    """The command that MLflow makes of MLproject; brackets reach the sweep as they are, and so does its exit code."""
    code = "import sys; from mlflow.projects._project_spec import load_project as p; print(p('.').get_entry_point('main').compute_command(eval(sys.argv[1]), None))"

    def start(settings: str) -> subprocess.CompletedProcess[str]:
        parameters = {"experiment": "position_tiny", "settings": settings}
        made = subprocess.run(
            [sys.executable, "-c", code, repr(parameters)], cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True
        )
        assert made.returncode == 0, made.stderr
        return subprocess.run(["bash", "-c", made.stdout], cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True)

    plan = start(f"dry_run=true grid.position=[rope,abf] root={tmp_path}")
    assert plan.returncode == 0 and "position_tiny" in plan.stdout and "2 trials" in plan.stdout, plan.stdout + plan.stderr
    wrong = start("positon=abf")
    assert wrong.returncode == 2 and "did you mean 'position'?" in wrong.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mlflow_runs_a_whole_sweep(tmp_path):
    (tmp_path / "mlflow").mkdir()
    settings = " ".join([*MINI, "grid.position=[rope,abf]", f"root={tmp_path}"])
    words = [
        "--env-manager=local",
        "--experiment-name",
        "projects",
        "-P",
        "experiment=position_tiny",
        "-P",
        f"settings={settings}",
    ]
    environment = ENVIRONMENT | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow/mlflow.db"}
    command = ["mlflow", "run", str(REPOSITORY), *words]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **both) as process:
        try:
            said, _ = process.communicate()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)  # the sweep too
    assert process.returncode == 0, said
    assert {row["variant"] for row in table(tmp_path)} >= {"rope", "abf"}
    client = record(tmp_path)
    assert {run.info.status for run in runs(client)} == {"FINISHED"} and len(runs(client)) == 8  # the sweep and its stages
    (project,) = client.search_runs([client.get_experiment_by_name("projects").experiment_id])
    assert project.info.status == "FINISHED" and project.data.params["experiment"] == "position_tiny"
