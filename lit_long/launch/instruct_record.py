"""How a run appears in MLflow: a run of the experiment ``instruct``, found by its recipe, with its counts and a table of its examples."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lit_long.config import TrackingConfig, project_root
from lit_long.files import lines_of
from lit_long.instruct.pipeline import EXAMPLES
from lit_long.tracking import NoTracker, Tracker, default_uri, environment_tags

EXPERIMENT = "instruct"


def open_tracker(tracking: TrackingConfig, root: str) -> Tracker:
    """The tracker; one that does nothing when ``tracking.enabled=false``.

    Raises:
        TrackingError: the store cannot be used.
    """
    if not tracking.enabled:
        return NoTracker()
    place = Path(root).expanduser().resolve() if root else project_root()
    return Tracker.open(tracking.uri or default_uri(place), EXPERIMENT, place / "mlflow" / "artifacts")


def record(tracker: Tracker, folder: Path, manifest: dict[str, Any]) -> None:
    """Write the run, or write it again: nothing is recorded twice."""
    key = hashlib.sha256(json.dumps(manifest["recipe"], sort_keys=True).encode()).hexdigest()[:16]
    tags = environment_tags() | {"lit_long.kind": "instruct", "lit_long.folder": str(folder.resolve())}
    run = tracker.sweep(key, f"instruct | {manifest['generator']}", params=manifest["recipe"], tags=tags)
    counts = {f"instruct/{name}": value for name, value in manifest["counts"].items()}
    critique = {f"critique/{name}": float(value) for name, value in (manifest["critique"] or {}).items() if value is not None}
    tracker.metrics(run, {(name, manifest["counts"]["asked"]): value for name, value in (counts | critique).items()})
    tracker.dataset(run, "documents", manifest["recipe"]["data"]["digest"], "generation")
    tracker.text(run, json.dumps(manifest, indent=1, ensure_ascii=False), "manifest.json")
    rows = [json.loads(line) for line in lines_of((folder / EXAMPLES).read_text(encoding="utf-8"))]
    if rows:
        tracker.table(run, [row | {"failed": " ".join(row["failed"])} for row in rows], "examples.json")
    tracker.finish(run, "FINISHED")
