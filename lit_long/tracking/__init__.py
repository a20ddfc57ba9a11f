"""The record of what was run: MLflow, or a plain folder of CSV files.

A stage's folder is the truth; a tracker holds a record of it that can be written again. So everything may be said twice:
runs are found by what they are (the sweep's key, the stage's identity) and resumed, metrics are sent once per name and
step, tables replace themselves. Stages know nothing of it: they append lines to ``metrics.jsonl``, which the sweep's
process mirrors while it waits (`Mirror`). A sweep is a parent run, each of its stages a child; a stage that another
sweep has run is a light child, tagged ``cached=true``, which points to the run with the history.

    tracker.py      what a tracker is, and which there are
    mlflow*.py      MLflow: the tracker, its store, a sweep's view, the server of `make ui`
    csv.py          a plain folder
    mirror.py       a stage's metrics.jsonl → its run
    record.py       how sweeps, evaluations, instruct runs and theory appear, in any tracker
    describe.py     versions, commit, owner

A busy store is waited for, within bounds; what cannot be recorded is a `TrackingError` that says what to do.
"""

from lit_long.tracking.mirror import Mirror
from lit_long.tracking.tracker import MEMBER, NoTracker, Point, Tracker, TrackingError, open_tracker

__all__ = ["MEMBER", "Mirror", "NoTracker", "Point", "Tracker", "TrackingError", "open_tracker"]
