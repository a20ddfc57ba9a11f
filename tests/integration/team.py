"""A team's MLflow server for tests and benchmarks: mlflow/serve.sh over a PostgreSQL of its own, with users and passwords, on 127.0.0.1."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.mini import REPOSITORY, answering

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nowhere"), key=lambda path: int(path.parent.name))
PASSWORD = "correct horse battery"
LOGIN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}


def is_installed() -> bool:
    return (PROGRAMS / "initdb").exists()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def as_postgres(*words: object, check: bool = True) -> None:
    """PostgreSQL refuses to run as root."""
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    subprocess.run([*user, *map(str, words)], check=check, capture_output=True, text=True, cwd="/", timeout=120)


@contextmanager
def postgres() -> Iterator[str]:
    """URI of an empty database."""
    folder, port = Path(tempfile.mkdtemp(prefix="lit-long-postgres-", dir="/tmp")), free_port()
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
    try:
        as_postgres(PROGRAMS / "initdb", "-D", folder / "data", "-A", "trust", "-U", "postgres")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
        as_postgres(PROGRAMS / "pg_ctl", "-D", folder / "data", "-l", folder / "log", "-w", "-o", options, "start")
        as_postgres(PROGRAMS / "createdb", "-h", "127.0.0.1", "-p", port, "-U", "postgres", "mlflow")
        yield f"postgresql://postgres@127.0.0.1:{port}/mlflow"
    finally:
        as_postgres(PROGRAMS / "pg_ctl", "-D", folder / "data", "-m", "fast", "stop", check=False)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def team_server(database: str, folder: Path) -> Iterator[str]:
    """Address of the team's server over ``database``; its artifacts and its log lie in ``folder``."""
    shutil.copy(REPOSITORY / "mlflow" / "serve.sh", folder / "serve.sh")
    (folder / "password").write_text(PASSWORD + "\n")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "BACKEND": database,
        "ADMIN_PASSWORD_FILE": str(folder / "password"),
        "WORKERS": "1",
    }
    with answering(folder / "serve.sh", environment, folder / "log") as address:
        yield address
