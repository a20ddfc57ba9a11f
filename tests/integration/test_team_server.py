"""A team's MLflow server: mlflow/serve.sh over a real PostgreSQL, with users and passwords and artifacts through the server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.integration.mini import MINI, REPOSITORY, command

pytestmark = pytest.mark.slow
PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nowhere"), key=lambda path: int(path.parent.name))
PASSWORD = "correct horse battery"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def as_postgres(*words):
    """PostgreSQL refuses to run as root."""
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    return subprocess.run([*user, *map(str, words)], check=True, capture_output=True, text=True, cwd="/", timeout=120)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """URI of an empty database on 127.0.0.1."""
    if not (PROGRAMS / "initdb").exists():
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg")
    pytest.importorskip("flask_wtf")
    folder, port = Path("/tmp") / f"lit-long-postgres-{os.getpid()}", free_port()
    folder.mkdir()
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
    try:
        as_postgres(PROGRAMS / "initdb", "-D", folder / "data", "-A", "trust", "-U", "postgres")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
        as_postgres(PROGRAMS / "pg_ctl", "-D", folder / "data", "-l", folder / "log", "-w", "-o", options, "start")
        as_postgres(PROGRAMS / "createdb", "-h", "127.0.0.1", "-p", port, "-U", "postgres", "mlflow")
        yield f"postgresql://postgres@127.0.0.1:{port}/mlflow"
    finally:
        subprocess.run(
            [
                *(["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []),
                str(PROGRAMS / "pg_ctl"),
                "-D",
                f"{folder}/data",
                "-m",
                "fast",
                "stop",
            ],
            capture_output=True,
            cwd="/",
        )
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server(database, tmp_path_factory):
    """Address of the team's server."""
    folder, port = tmp_path_factory.mktemp("team"), free_port()
    shutil.copy(REPOSITORY / "mlflow" / "serve.sh", folder / "serve.sh")
    (folder / "password").write_text(PASSWORD + "\n")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "BACKEND": database,
        "ADMIN_PASSWORD_FILE": str(folder / "password"),
        "PORT": str(port),
        "WORKERS": "1",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(folder / "serve.sh")], env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def run(*words, **more):
    environment = os.environ | {"COLUMNS": "120", "PYTHONPATH": str(REPOSITORY)} | more
    return subprocess.run(command(*words), capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=280)


@pytest.fixture(scope="module")
def swept(server, tmp_path_factory):
    """A sweep whose record is on the server, and its root."""
    root = tmp_path_factory.mktemp("swept")
    words = [*MINI, "grid.position=[rope,abf]", "launcher.parallel=2", f"root={root}", f"tracking.uri={server}"]
    login = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    return run("lit_long.sweep", *words, **login), root, login


def test_strangers_are_refused(server):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{server}/api/2.0/mlflow/experiments/search?max_results=1", timeout=10)


def test_a_sweep_is_recorded_there(swept, server, monkeypatch):
    finished, root, login = swept
    assert finished.returncode == 0, finished.stdout + finished.stderr
    for name, value in login.items():
        monkeypatch.setenv(name, value)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("position_tiny")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1 + 7 and {each.info.status for each in runs} == {"FINISHED"}
    (parent,) = [each for each in runs if "mlflow.parentRunId" not in each.data.tags]
    assert {"report.html", "results.json"} <= {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert not (root / "mlflow" / "artifacts").exists()  # they went through the server


def test_the_password_is_nowhere(swept):
    finished, root, _ = swept
    assert PASSWORD not in finished.stdout + finished.stderr
    for file in root.rglob("*"):
        assert not file.is_file() or PASSWORD.encode() not in file.read_bytes(), file


def test_anyone_with_access_makes_the_report(swept, server, tmp_path):
    _, root, login = swept
    again = run("lit_long.report", "experiment=position_tiny", f"uri={server}", f"out={tmp_path}", **login)
    assert again.returncode == 0, again.stderr
    written = (root / "runs" / "position_tiny" / "latest").resolve()
    assert (tmp_path / "runs" / "position_tiny" / written.name / "report.html").read_bytes() == (
        written / "report.html"
    ).read_bytes()
    assert json.loads((written / "sweep.json").read_text())["key"] == written.name
