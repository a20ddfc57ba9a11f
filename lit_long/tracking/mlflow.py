"""MLflow as the tracker, and the only way to it besides the ``mlflow_….py`` beside this file: no other module imports mlflow.

mlflow takes two seconds to import, hence the imports inside functions.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
import sqlite3
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_long.config import TrackingConfig, check_uri, project_root
from lit_long.tracking.describe import HOST, host, is_alive, owner
from lit_long.tracking.mlflow_store import (
    REWRITTEN,
    check_readable,
    checked_database,
    checked_uri,
    database_file,
    default_uri,
    first_line,
    import_mlflow,
    is_server,
    reach,
    remedy,
    wait_until_free,
)
from lit_long.tracking.mlflow_view import VIEW_TAG, page, view_state
from lit_long.tracking.tracker import (
    MAX_POINTS,
    MEMBER,
    NOTE,
    RESULTS,
    SWEEP_JSON,
    SWEEP_YAML,
    Point,
    TrackerAwayError,
    TrackingError,
    check_status,
    unrecorded,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_PARAM, MAX_KEY, MAX_TAG, MAX_EXPERIMENT_TAG, MAX_DIGEST = 6000, 250, 8000, 5000, 36  # MLflow's limits
SWEEP, IDENTITY, PARENT = "lit_long.sweep", "lit_long.identity", "mlflow.parentRunId"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # some versions then open on runs and charts, not on prompts
CACHED, SOURCE, DRIFT = "cached", "lit_long.source_run", "lit_long.param_drift"
SERVER = "http://127.0.0.1:5000"  # of `make ui` and `mlflow ui`


class MlflowTracker:
    """One experiment's runs. Every method raises `TrackerAwayError` when the store fails for ``patience`` seconds, and `TrackingError` for what it refuses."""

    patience = 30.0

    def __init__(self, client: MlflowClient, uri: str, experiment_id: str, root: Path) -> None:
        self._client, self.where, self._experiment_id, self._root = client, uri, experiment_id, Path(root)
        self._database = database_file(uri)
        self._children: dict[str, dict[str, Run]] = {}  # of parents, as they were when first asked for; by identity

    @classmethod
    def open(cls, config: TrackingConfig, experiment: str, root: Path) -> MlflowTracker:
        """The experiment at ``tracking.uri`` (default: a SQLite file below ``root``), made if need be. Artifacts lie beside a SQLite file, with
        a server, else below ``root``.

        Raises `TrackingError`: the store is locked, unreachable, unwritable, not MLflow's or of another version of it.
        """
        uri = checked_uri(config.uri, "tracking.uri") or default_uri(root)
        database = database_file(uri)
        artifacts = ((database.parent if database else root / "mlflow") / "artifacts").resolve()
        location = None if is_server(uri) else artifacts.as_uri()
        try:
            reach(uri)
            with checked_database(uri):
                client = import_mlflow().MlflowClient(tracking_uri=uri)
                if location:
                    artifacts.mkdir(parents=True, exist_ok=True)
                if (found := client.get_experiment_by_name(experiment)) is None:
                    found = client.get_experiment(client.create_experiment(experiment, artifact_location=location, tags=KIND))
        except TrackingError:
            raise
        except Exception as error:  # mlflow, SQLAlchemy, requests, database drivers: each has its own
            raise TrackingError(f"MLflow cannot use {uri}: {first_line(error)}\n{remedy(error, uri)}") from error
        if found.lifecycle_stage == "deleted":
            restore = f"MLFLOW_TRACKING_URI='{uri}' mlflow experiments restore --experiment-id {found.experiment_id}"
            raise TrackingError(f"MLflow's experiment '{experiment}' was deleted. Bring it back with\n  {restore}")
        folder = urllib.request.url2pathname(found.artifact_location.removeprefix("file://"))
        if location and found.artifact_location.startswith("file:") and not Path(folder).is_dir():
            problem = f"MLflow's experiment '{experiment}' keeps its artifacts in {folder}, which is gone."
            advice = "Another root or machine made it: bring the folder back, if only an empty one, or set tracking.uri to another store."
            if uri == default_uri(root):
                advice = f"If the project was moved, move {database} aside. {REWRITTEN}"
            raise TrackingError(f"{problem}\n{advice}")
        return cls(client, uri, found.experiment_id, root)

    def begin(self, key: str, name: str, *, params: dict, tags: dict, parent: str = "", cached: bool = False) -> str:
        if NOTE in tags:
            tags = {("mlflow.note.content" if tag == NOTE else tag): value for tag, value in tags.items()}
        if not parent:
            return self._enter(self._find({SWEEP: key}), name, params, {**tags, SWEEP: key, MEMBER: key})
        keys = {IDENTITY: key, PARENT: parent}
        run = self._find(keys)
        old = {} if run is None else run.data.tags
        light = cached and old.get(CACHED, "true") == "true"
        tags = {**tags, **keys, CACHED: str(light).lower()}
        elsewhere = self._find({IDENTITY: key}, everywhere=True, without=SOURCE) if light else None
        if elsewhere and (run is None or SOURCE in old):
            tags[SOURCE] = elsewhere.info.run_id
        elif run is not None and SOURCE in old:
            self._call(self._client.delete_tag, run.info.run_id, SOURCE)
        return self._enter(run, name, params, tags)

    def recorded(self, key: str, parent: str, values: dict[tuple[str, int], float], tags: dict[str, str]) -> bool:
        if parent not in self._children:  # a thousand in a request, where each alone would take a dozen
            children = self._search_all(f"tags.`{PARENT}` = '{parent}'", order_by=["attributes.start_time DESC"])
            self._children[parent] = {run.data.tags.get(IDENTITY, ""): run for run in children}
        run = self._children[parent].get(key)
        if run is None or run.info.status != "FINISHED" or SOURCE in run.data.tags:
            return False
        latest = {metric.key: (metric.step, metric.value) for metric in run.data.to_proto().metrics}
        return tags.items() <= run.data.tags.items() and not unrecorded(values, latest, 0.0)

    def show(self, key: str, names: Iterable[str]) -> str:
        """The sweep's view is kept with the experiment. Returns its page, and what must run for a browser to find it."""
        state, shown = view_state(key, names), page(self._experiment_id, key)
        if len(state) > MAX_EXPERIMENT_TAG:
            shown = page(self._experiment_id)
        elif self._call(self._client.get_experiment, self._experiment_id).tags.get(VIEW_TAG + key) != state:
            self._call(self._client.set_experiment_tag, self._experiment_id, VIEW_TAG + key, state)
        if is_server(self.where):
            return f"{self.where.rstrip('/')}/{shown}"
        command = f"mlflow ui --backend-store-uri {shlex.quote(self.where)}"
        if self.where == default_uri(self._root) and (project_root() / "mlflow" / "serve.sh").is_file():
            command = "make ui" if self._root == project_root() else f"make ui ROOT={shlex.quote(str(self._root))}"
        return f"{SERVER}/{shown}  (while `{command}` runs)"

    def steps(self, run: str) -> dict[str, int] | None:
        data = self._call(self._client.get_run, run).data
        return None if SOURCE in data.tags else {metric.key: metric.step for metric in data.to_proto().metrics}

    def log(self, run: str, points: Sequence[Point], patience: float | None = None) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(point.name, point.value, int(point.time * 1000), point.step) for point in points]
        self._call(self._client.log_batch, run, metrics=metrics, _patience=patience)

    def metrics(self, run: str, values: dict[tuple[str, int], float]) -> None:
        found = self._call(self._client.get_run, run).data.to_proto().metrics
        new = unrecorded(values, {metric.key: (metric.step, metric.value) for metric in found}, time.time())
        for start in range(0, len(new), MAX_POINTS):
            self.log(run, new[start : start + MAX_POINTS])

    def artifact(self, run: str, path: Path, folder: str = "") -> None:
        log = self._client.log_artifacts if Path(path).is_dir() else self._client.log_artifact
        self._call(log, run, str(path), folder or None)

    def text(self, run: str, text: str, file: str) -> None:
        self._call(self._client.log_text, run, text, file)

    def table(self, run: str, rows: list[dict[str, Any]], file: str) -> None:
        """A table that `mlflow.load_table` reads."""
        from pandas import DataFrame

        frame = DataFrame(rows)
        siblings = self._call(self._client.list_artifacts, run, posixpath.dirname(file) or None)
        if file in [sibling.path for sibling in siblings]:  # log_table would append to it
            self.text(run, frame.to_json(orient="split", index=False), file)
        else:
            self._call(self._client.log_table, run, frame, file)

    def dataset(self, run: str, name: str, digest: str, context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"tags": {"mlflow.source.name": "lit_long.data", "digest": digest}})
        dataset = Dataset(name, digest[:MAX_DIGEST], source_type="code", source=source)
        inputs = [DatasetInput(dataset, tags=[InputTag("mlflow.data.context", context)])]
        self._call(self._client.log_inputs, run, datasets=inputs)

    def finish(self, run: str, status: str) -> None:
        check_status(status)
        self._call(self._client.set_terminated, run, status)

    def reconcile(self) -> int:
        running = self._search_all(f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{host()}'")
        orphans = [run.info.run_id for run in running if not is_alive(run.data.tags)]
        for run_id in orphans:
            self.finish(run_id, "KILLED")
        return len(orphans)

    def _find(self, tags: dict[str, str], everywhere: bool = False, without: str = "") -> Run | None:
        """The oldest run with these tags and not tag ``without``, in this experiment or in all of them."""
        if bad := [value for value in tags.values() if "'" in value or "\\" in value]:
            raise ValueError(f"a run's key must not contain quotes or backslashes: {bad[0]}")
        where = [e.experiment_id for e in self._call(self._client.search_experiments)] if everywhere else None
        conditions = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs = self._search(conditions, where, order_by=["attributes.start_time ASC"])
        return next((run for run in runs if without not in run.data.tags), None)

    def _search(self, conditions: str, experiment_ids: list[str] | None = None, **options: Any) -> Any:
        return self._call(self._client.search_runs, experiment_ids or [self._experiment_id], conditions, **options)

    def _search_all(self, conditions: str, **options: Any) -> list[Run]:
        """The runs of every page."""
        found, token = [], None
        while token != "":
            page = self._search(conditions, page_token=token, **options)
            found, token = found + list(page), page.token or ""
        return found

    def _enter(self, run: Run | None, name: str, params: dict, tags: dict) -> str:
        """Make the run, or set it running again, owned by this process. Params cannot change: drift goes into a tag."""
        from mlflow.entities import Param, RunTag

        wanted = flatten(params)
        tags = {**{key: cut(str(value), MAX_TAG) for key, value in tags.items()}, **owner()}
        if run is None:
            run = self._call(self._client.create_run, self._experiment_id, tags=tags, run_name=name)
        known = run.data.params
        if drift := {key: [known[key], value] for key, value in wanted.items() if known.get(key, value) != value}:
            tags[DRIFT] = cut(json.dumps(drift, ensure_ascii=False), MAX_TAG)
        new = [Param(key, value) for key, value in wanted.items() if key not in known]
        changed = [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]
        self._call(self._client.log_batch, run.info.run_id, params=new, tags=changed)  # sent by the hundred
        if run.info.status != "RUNNING":  # only now that it has a living owner: another sweep may be reconciling
            self._call(self._client.update_run, run.info.run_id, status="RUNNING")
        return run.info.run_id

    def _call(self, function: Callable[..., Any], *args: Any, _patience: float | None = None, **options: Any) -> Any:
        """Call MLflow, again while the store is busy, for up to ``_patience`` seconds (default: ``patience``)."""
        from mlflow.exceptions import MlflowException

        patience = self.patience if _patience is None else _patience
        deadline = time.monotonic() + patience
        while True:
            try:
                if self._database:  # wait here: MLflow's own wait is 20 s, however long we want to
                    wait_until_free(self._database, max(0.0, deadline - time.monotonic()))
                return function(*args, **options)
            except (MlflowException, sqlite3.Error, OSError) as error:
                code = getattr(error, "error_code", "TEMPORARILY_UNAVAILABLE")
                temporary = code in ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED")
                temporary = temporary and not isinstance(error, FileNotFoundError)
                if not temporary or time.monotonic() >= deadline:
                    message = f"MLflow did not take a record ({function.__name__}) at {self.where}: {first_line(error)}"
                    kind = TrackerAwayError if temporary else TrackingError
                    raise kind(f"{message}\n{remedy(error, self.where)}") from error
                time.sleep(0.2)


def cut(text: str, limit: int) -> str:
    """``text`` within MLflow's limit."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def flatten(config: dict[str, Any]) -> dict[str, str]:
    """Nested settings as MLflow's params: ``{"model": {"n_layers": 4}}`` → ``{"model.n_layers": "4"}``.

    Lists, numbers, None and booleans are JSON. Values are cut at 6,000 characters, keys at 250; characters that MLflow
    refuses in keys become ``_``.
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= {_param_name(f"{key}.{below}"): text for below, text in flatten(value).items()}
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            flat[_param_name(str(key))] = cut(text, MAX_PARAM)
    return flat


def _param_name(name: str) -> str:
    return re.sub(r"[^\w/. -]", "_", name)[:MAX_KEY]


def fetch_sweep(uri: str, experiment: str, into: Path, key: str = "") -> Path:
    """The folder of a sweep below ``into``, as a sweep leaves it, with its stages' results; ready for `write_report`.

    Args:
        key: of the sweep; the newest if not given.

    Raises:
        TrackingError: no such store, experiment or sweep, or a record from before results were kept.
        UserError: a URI that has a password in it.
    """
    check_uri(uri, "uri")
    uri = checked_uri(uri, "uri")
    try:
        reach(uri)
        check_readable(uri, "uri")
        client = import_mlflow().MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            known = sorted(each.name for each in client.search_experiments())
            raise TrackingError(f"{uri} has no experiment '{experiment}'; it has {', '.join(known) or 'none'}")
        wanted = f"tags.`lit_long.sweep` = '{key}'" if key else "tags.`lit_long.sweep` != ''"
        runs = client.search_runs([found.experiment_id], wanted, order_by=["attributes.start_time DESC"], max_results=1)
        if not runs:
            raise TrackingError(f"{uri}: experiment '{experiment}' has no sweep{f' {key}' if key else ''}")
        run, key = runs[0].info.run_id, runs[0].data.tags["lit_long.sweep"]
        if RESULTS not in {artifact.path for artifact in client.list_artifacts(run)}:
            raise TrackingError(
                f"{uri}: sweep {key} of '{experiment}' has no {RESULTS}; run it again, which only writes its record anew"
            )
        folder = into / "runs" / experiment / key
        folder.mkdir(parents=True, exist_ok=True)
        for name in (SWEEP_YAML, SWEEP_JSON, RESULTS):
            client.download_artifacts(run, name, str(folder))
    except TrackingError:
        raise
    except Exception as error:  # mlflow, SQLAlchemy, requests: each has its own
        raise TrackingError(f"MLflow cannot use {uri}: {first_line(error)}\n{remedy(error, uri, 'uri')}") from error
    record = json.loads((folder / SWEEP_JSON).read_text(encoding="utf-8"))
    for trial in record["trials"]:  # an archived stage lies elsewhere
        trial["stages"] = {name: f"../../stages/{posixpath.basename(path)}" for name, path in trial["stages"].items()}
    (folder / SWEEP_JSON).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, result in json.loads((folder / RESULTS).read_text(encoding="utf-8")).items():
        stage = into / "runs" / "stages" / name
        stage.mkdir(parents=True, exist_ok=True)
        if result is not None:
            (stage / "result.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
            (stage / "DONE").touch()
    return folder
