"""How an evaluation appears in MLflow: a run of the experiment ``evaluate``, found by what was asked of which weights and resumed.

The folder is the truth; the run holds its settings, every main score as a metric, the table, the samples and the figures.
"""

from __future__ import annotations

import json
from pathlib import Path

from lit_long.config import TrackingConfig, project_root
from lit_long.evaluation.measurement import mlflow_metrics
from lit_long.stages.scores import EVALUATION, SAMPLES, SCORES, Evaluation
from lit_long.tracking import NoTracker, Tracker, default_uri, environment_tags

EXPERIMENT = "evaluate"
GENERATED = "generated"  # what LongChat-Lines has for data


def open_scores_tracker(tracking: TrackingConfig, root: str) -> tuple[Tracker, str]:
    """The tracker and its store's URI; one that does nothing, and "", when ``tracking.enabled=false``.

    Raises:
        TrackingError: the store cannot be used.
    """
    if not tracking.enabled:
        return NoTracker(), ""
    place = Path(root).expanduser().resolve() if root else project_root()
    uri = tracking.uri or default_uri(place)
    return Tracker.open(uri, EXPERIMENT, place / "mlflow" / "artifacts"), uri


def record(tracker: Tracker, evaluation: Evaluation, figures: list[Path]) -> None:
    """Write the evaluation's run, or write it again: nothing is recorded twice."""
    about = evaluation.about
    tags = environment_tags() | {"lit_long.kind": "evaluate", "lit_long.folder": str(evaluation.folder.resolve())}
    params = {key: about[key] for key in ("model", "suite", "tasks", "lengths", "context", "weights", "position", "precision")}
    run = tracker.sweep(evaluation.key, f"{about['suite']} | {Path(about['model']).name}", params=params, tags=tags)
    tracker.metrics(run, mlflow_metrics(evaluation.rows))
    for digest in dict.fromkeys(row.settings["data"] for row in evaluation.rows if row.settings["data"] not in ("", GENERATED)):
        tracker.dataset(run, "texts", digest, "evaluation")
    tracker.text(run, json.dumps(about, indent=1), EVALUATION)
    tracker.table(run, [row.to_row() for row in evaluation.rows], SCORES)
    tracker.artifact(run, evaluation.folder / SAMPLES, SAMPLES)
    for figure in figures:
        tracker.artifact(run, figure, "figures")
    tracker.finish(run, "FINISHED")
