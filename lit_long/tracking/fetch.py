"""A sweep's results out of MLflow alone, for a report by someone who has the server and not the folders."""

from __future__ import annotations

import json
import posixpath
from pathlib import Path

from lit_long.tracking.store import TrackingError, first_line, import_mlflow, remedy

SWEEP_YAML, SWEEP_JSON, RESULTS = "sweep.yaml", "sweep.json", "results.json"


def fetch_sweep(uri: str, experiment: str, into: Path, key: str = "") -> Path:
    """The folder of a sweep below ``into``, as a sweep leaves it, with its stages' results; ready for `write_report`.

    Args:
        key: of the sweep; the newest if not given.

    Raises:
        TrackingError: no such store, experiment or sweep, or a record from before results were kept.
    """
    try:
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
        raise TrackingError(f"MLflow cannot use {uri}: {first_line(error)}\n{remedy(error, uri)}") from error
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
