"""One experiment's runs: a parent per sweep, a child per stage, found by what they are and resumed."""

from __future__ import annotations

import json
import posixpath
import sqlite3
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_long.tracking.describe import HOST, cut, flatten, host, is_alive, owner
from lit_long.tracking.mirror import MAX_METRICS, Mirror, metric_name
from lit_long.tracking.store import (
    REWRITTEN,
    TrackingError,
    checked_database,
    database_file,
    first_line,
    import_mlflow,
    reach,
    remedy,
    wait_until_free,
)
from lit_long.tracking.view import MEMBER, VIEW_TAG, page, view_state

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_TAG, MAX_EXPERIMENT_TAG, MAX_DIGEST = 8000, 5000, 36  # MLflow's limits
SWEEP, IDENTITY, PARENT = "lit_long.sweep", "lit_long.identity", "mlflow.parentRunId"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # some versions then open on runs and charts, not on prompts
CACHED, SOURCE, DRIFT = "cached", "lit_long.source_run", "lit_long.param_drift"


class Tracker:
    """One experiment's runs. Every method raises `TrackingError` when the store fails for ``patience`` seconds."""

    patience = 30.0

    def __init__(self, client: MlflowClient, uri: str, experiment_id: str) -> None:
        self._client, self._uri, self._experiment_id = client, uri, experiment_id
        self._database = database_file(uri)

    @classmethod
    def open(cls, uri: str, experiment: str, artifact_root: Path) -> Tracker:
        """The experiment of that name, made if need be; artifacts lie in ``artifact_root``, or with the server.

        Raises `TrackingError`: the store is locked, unreachable, unwritable, not MLflow's or of another version of it.
        """
        location = None if uri.startswith("http") else Path(artifact_root).resolve().as_uri()
        try:
            reach(uri)
            with checked_database(uri):
                client = import_mlflow().MlflowClient(tracking_uri=uri)
                if location:
                    Path(artifact_root).mkdir(parents=True, exist_ok=True)
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
            advice = f"If the project was moved, move {database_file(uri) or uri} aside. {REWRITTEN}"
            raise TrackingError(f"{problem}\n{advice}")
        return cls(client, uri, found.experiment_id)

    def sweep(self, key: str, name: str, *, params: dict, tags: dict) -> str:
        """Id of the parent run of sweep ``key``, running; it is made at the first call and resumed afterwards."""
        return self._enter(self._find({SWEEP: key}), name, params, {**tags, SWEEP: key, MEMBER: key})

    def stage(self, parent_run_id: str, identity: str, name: str, *, params: dict, tags: dict, cached: bool) -> str:
        """Id of the child run for stage ``identity`` under that parent, running; it is resumed when it exists.

        ``cached``: a new child is tagged so; when another run holds the stage's history, it points there, and mirrors
        leave it alone. Where none does (the record was lost), they write it again. A child with a history keeps it.
        """
        keys = {IDENTITY: identity, PARENT: parent_run_id}
        run = self._find(keys)
        old = {} if run is None else run.data.tags
        light = cached and old.get(CACHED, "true") == "true"
        tags = {**tags, **keys, CACHED: str(light).lower()}
        elsewhere = self._find({IDENTITY: identity}, everywhere=True, without=SOURCE) if light else None
        if elsewhere and (run is None or SOURCE in old):
            tags[SOURCE] = elsewhere.info.run_id
        elif run is not None and SOURCE in old:
            self._call(self._client.delete_tag, run.info.run_id, SOURCE)
        return self._enter(run, name, params, tags)

    def show(self, key: str, names: Iterable[str]) -> str:
        """Keep the view of sweep ``key`` with the metrics ``names`` it may show as columns; returns its page behind the server's address."""
        state = view_state(key, names)
        tags = self._call(self._client.get_experiment, self._experiment_id).tags
        if len(state) > MAX_EXPERIMENT_TAG:
            return page(self._experiment_id)
        if tags.get(VIEW_TAG + key) != state:
            self._call(self._client.set_experiment_tag, self._experiment_id, VIEW_TAG + key, state)
        return page(self._experiment_id, key)

    def mirror(self, run_id: str, metrics_file: Path) -> Mirror:
        """What keeps the run's metrics in step with ``metrics_file``; a child that points to another run gets none."""
        run = self._call(self._client.get_run, run_id)
        sent = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        return Mirror(self, run_id, metrics_file, None if SOURCE in run.data.tags else sent)

    def metrics(self, run_id: str, values: dict[tuple[str, int], float]) -> None:
        """Record final numbers by (name, step), now. What is not above the latest step of its name, or equals it, is recorded already."""
        from mlflow.entities import Metric

        latest = {m.key: (m.step, m.value) for m in self._call(self._client.get_run, run_id).data.to_proto().metrics}
        now = int(time.time() * 1000)
        new = [
            Metric(metric_name(name), float(value), now, step)
            for (name, step), value in values.items()
            if step >= latest.get(name, (step, value))[0] and latest.get(name) != (step, value)
        ]
        for start in range(0, len(new), MAX_METRICS):
            self._call(self._client.log_batch, run_id, metrics=new[start : start + MAX_METRICS])

    def artifact(self, run_id: str, path: Path, folder: str = "") -> None:
        """Copy a file, or what is in a folder, into ``folder`` of the run's artifacts."""
        log = self._client.log_artifacts if Path(path).is_dir() else self._client.log_artifact
        self._call(log, run_id, str(path), folder or None)

    def text(self, run_id: str, text: str, file: str) -> None:
        """Record ``text`` as artifact ``file`` such as ``config.yaml``."""
        self._call(self._client.log_text, run_id, text, file)

    def table(self, run_id: str, rows: list[dict[str, Any]], file: str) -> None:
        """Record rows as the table ``file`` (``.json``), replacing what was there; `mlflow.load_table` reads it."""
        from pandas import DataFrame

        frame = DataFrame(rows)
        siblings = self._call(self._client.list_artifacts, run_id, posixpath.dirname(file) or None)
        if file in [sibling.path for sibling in siblings]:  # log_table would append to it
            self.text(run_id, frame.to_json(orient="split", index=False), file)
        else:
            self._call(self._client.log_table, run_id, frame, file)

    def dataset(self, run_id: str, name: str, digest: str, context: str) -> None:
        """Record that the run read data ``name`` with ``digest`` for ``context`` (``train``, ``validation``, …)."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"tags": {"mlflow.source.name": "lit_long.data", "digest": digest}})
        dataset = Dataset(name, digest[:MAX_DIGEST], source_type="code", source=source)
        inputs = [DatasetInput(dataset, tags=[InputTag("mlflow.data.context", context)])]
        self._call(self._client.log_inputs, run_id, datasets=inputs)

    def finish(self, run_id: str, status: str) -> None:
        """End the run, now, as FINISHED, FAILED or KILLED (interrupted; it will be resumed)."""
        if status not in ("FINISHED", "FAILED", "KILLED"):
            raise ValueError(f"a run ends as FINISHED, FAILED or KILLED, not as {status!r}")
        self._call(self._client.set_terminated, run_id, status)

    def reconcile(self) -> int:
        """Mark as KILLED the running runs whose process on this host is gone (``kill -9``). Returns how many."""
        orphans, token = [], None
        while token != "":
            page = self._search(f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{host()}'", page_token=token)
            orphans += [run.info.run_id for run in page if not is_alive(run.data.tags)]
            token = page.token or ""
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
                if not temporary or isinstance(error, FileNotFoundError) or time.monotonic() >= deadline:
                    message = f"MLflow did not take a record ({function.__name__}) at {self._uri}: {first_line(error)}"
                    raise TrackingError(f"{message}\n{remedy(error, self._uri)}") from error
                time.sleep(0.2)


class NoTracker(Tracker):
    """The same surface, recording nothing (``tracking.enabled=false``)."""

    def __init__(self) -> None:
        pass

    def mirror(self, run_id: str, metrics_file: Path) -> Mirror:
        return Mirror(self, run_id, metrics_file, None)

    def reconcile(self) -> int:
        return 0

    def _nothing(self, *args: Any, **options: Any) -> Any:
        return ""

    sweep = stage = show = metrics = artifact = text = table = dataset = finish = _nothing
