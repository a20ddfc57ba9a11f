"""MLflow's store before it is trusted: is it MLflow's, of this version, free, writable? And what to do when it is not.

MLflow fills any SQLite file with its tables and migrates any schema it meets, hence the checks before it sees the file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from lit_long.config import check_path
from lit_long.files import waiting_lock
from lit_long.tracking.tracker import TrackingError

PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}  # of databases that MLflow knows, as their servers listen
REFUSALS = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")  # what MLflow calls the answers 401 and 403
OPEN_PATIENCE = 10.0  # seconds to wait for a locked database before a sweep starts
REDIRECTS = tuple(  # variables by which MLflow would record elsewhere, wholly or in part
    f"MLFLOW_{name}" for name in ("TRACKING_URI", "REGISTRY_URI", "EXPERIMENT_NAME", "EXPERIMENT_ID", "RUN_ID", "WORKSPACE")
)
KNOWN_URIS = "{} must be sqlite:///FILE, a database's URI, or http://HOST:PORT of an MLflow server."
REWRITTEN = "MLflow only keeps a record: the next sweep writes it again from its folders."


def default_uri(root: Path) -> str:
    """URI of the SQLite file below ``root``, whatever the working directory."""
    path = str(Path(root).resolve() / "mlflow" / "mlflow.db")
    if not set(path) & set("%?#"):
        return f"sqlite:///{path}"
    return f"sqlite+pysqlite:///{quote(path)}"  # of "sqlite:///" MLflow makes the folder as it is spelled, beside the real one


def import_mlflow() -> Any:
    """The mlflow module, with no telemetry, nothing printed, no minutes of retries for a server that is down, and no orders from the environment."""
    if found := [name for name in REDIRECTS if os.environ.pop(name, "")]:
        words = f"{', '.join(found)} {'is' if len(found) == 1 else 'are'} set in the environment and not obeyed"
        print(f"note: {words}: only tracking.uri=… says where runs are recorded", file=sys.stderr)
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
    for name, value in {**quiet, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}.items():
        os.environ.setdefault(name, value)  # mlflow has no other switch for these; they change no result
    import mlflow

    for logger in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # what matters is raised, as TrackingError
    return mlflow


def checked_uri(uri: str, key: str) -> str:
    """The URI with a leading ~ of a SQLite file written out.

    Args:
        key: the setting that names it, for the message.

    Raises:
        TrackingError: SQLite without a file. It would keep the record in memory, and no longer than the process lasts.
    """
    if urlsplit(uri).scheme.partition("+")[0] != "sqlite":
        return uri
    scheme, slashes, path = uri.partition(":///")
    if not path.partition("?")[0] or ":memory:" in path or "mode=memory" in path:
        raise TrackingError(f"{key}={uri} names no file to keep the record in.\n{KNOWN_URIS.format(key)}")
    check_path(path, f"{key}={uri}", "the file")
    return f"{scheme}{slashes}{os.path.expanduser(path)}"


def database_file(uri: str) -> Path | None:
    """The file of a SQLite URI."""
    scheme, found, path = uri.partition(":///")
    return Path(unquote(path.partition("?")[0])) if found and scheme.partition("+")[0] == "sqlite" else None


def reach(uri: str) -> None:
    """Raises OSError at once where no server of that database answers; MLflow would try again for a hundred seconds."""
    if address := database_server(uri):
        socket.create_connection(address, timeout=10).close()


def database_server(uri: str) -> tuple[str, int] | None:
    """Host and port of the server of a database that is no file."""
    server = urlsplit(uri)
    port = PORTS.get(server.scheme.partition("+")[0])
    return (server.hostname, server.port or port) if port and server.hostname else None


def is_server(uri: str) -> bool:
    """Whether it is the address of an MLflow server."""
    return urlsplit(uri).scheme in ("http", "https")


@contextlib.contextmanager
def checked_database(uri: str) -> Iterator[None]:
    """Let sweeps open a SQLite file one by one, and only one that mlflow would not fill or migrate by mistake."""
    if (database := database_file(uri)) is None:
        yield
        return
    with waiting_lock(Path(f"{database}.lock")):  # two that make the tables at once trip over each other
        wait_until_free(database, OPEN_PATIENCE)
        _check_schema(database, uri, "tracking.uri")
        yield


def check_readable(uri: str, key: str) -> None:
    """For who only reads: raise `TrackingError` for a SQLite file that MLflow would make, fill or migrate. Nothing is written, no lock either.

    Args:
        key: the setting that names it, for the message.
    """
    if (database := database_file(uri)) is None:
        return
    if not database.is_file() or not _check_schema(database, uri, key):
        problem = "is empty" if database.is_file() else "is a folder" if database.is_dir() else "does not exist"
        raise TrackingError(f"{key}={uri}: there is no record: {database} {problem}.")


def _check_schema(database: Path, uri: str, key: str) -> bool:
    """Whether there are tables, this MLflow's; False of an empty file. `TrackingError`: others."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        versions = connection.execute("SELECT version_num FROM alembic_version") if "alembic_version" in tables else ()
        found = next((version for (version,) in versions), None)
    if tables and found is None:
        problem = "is a database of something else than MLflow, or of an MLflow that was killed while it made the tables"
        raise TrackingError(f"{database} {problem}. Set {key} to another file.")
    if found is None:
        return False
    mlflow = import_mlflow()
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    revisions = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    age, advice = "older", f"Copy the file, stop what uses it, then run: mlflow db upgrade '{uri}'"
    try:
        if revisions.get_revision(found).revision == revisions.get_current_head():
            return True
    except CommandError:  # not in this MLflow's list
        age, advice = "newer", f"Upgrade MLflow (pip install --upgrade mlflow), or set {key} to another file."
    raise TrackingError(
        f"{database} was written by a version of MLflow {age} than {mlflow.__version__} (schema {found}).\n{advice}"
    )


def wait_until_free(database: Path, seconds: float) -> None:
    """Return as soon as the database can be written. `sqlite3.Error` when it cannot, or not within ``seconds``."""
    with contextlib.closing(sqlite3.connect(database, timeout=seconds, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


def remedy(error: Exception, uri: str, key: str = "tracking.uri") -> str:
    """What to do about an error of MLflow's; ``key``: the setting that names the store, ``uri`` where it is only read."""
    code, database = getattr(error, "sqlite_errorname", ""), database_file(uri)
    reads = key == "uri"
    if isinstance(error, ImportError):
        return "Install it (pip install mlflow)" + ("." if reads else ", or record in a plain folder (tracking.name=csv).")
    if getattr(error, "error_code", "") in REFUSALS:
        return "The server does not let you in: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment."
    if is_server(uri):
        return f"Is the server up, and is {key}={uri} its address? mlflow/serve.sh starts one on this machine."
    if isinstance(error, OSError) and (address := database_server(uri)):
        return f"Does the database server at {address[0]}:{address[1]} run, and is {key}={uri} its address?"
    if database is None:
        return KNOWN_URIS.format(key)
    if code.startswith("SQLITE_BUSY"):
        return (
            f"Another process holds it: `lsof '{database}'` says which. Wait for it or stop it, then start again. "
            f"Locks that stick, as on network disks: run an MLflow server beside the file and set {key}=http://HOST:PORT."
        )
    if code in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
        if reads:
            return f"{database} is no record of MLflow's, or a damaged one; name another with {key}=…"
        return f"Move the file aside. {REWRITTEN}"
    if reads:
        return f"May you read {database}, and is there space for the report? Else name another record with {key}=…"
    return f"Is there space in {database.parent}, and may you write there? Else set root=… or {key}=sqlite:///FILE."


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
