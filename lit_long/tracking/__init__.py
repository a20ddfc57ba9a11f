"""The record: what a sweep did, in MLflow. The only room that imports mlflow.

A stage's folder is the truth; MLflow is a record of it that can be written again. So everything here may be said twice:
runs are found by what they are (the sweep's key, the stage's identity) and resumed, metrics are sent once per name and
step, tables replace themselves. Stages know nothing of it: they append lines to ``metrics.jsonl``, which the sweep's
process mirrors while it waits (`Mirror`). A sweep is a parent run, each of its stages a child; a stage that another
sweep has run is a light child, tagged ``cached=true``, which points to the run with the history.

A busy store is waited for, within bounds; what cannot be recorded is a `TrackingError` that says what to do. mlflow
takes two seconds to import, hence the imports inside functions.
"""

from lit_long.tracking.describe import environment_tags, flatten
from lit_long.tracking.fetch import fetch_sweep
from lit_long.tracking.mirror import Mirror
from lit_long.tracking.store import TrackingError, default_uri
from lit_long.tracking.tracker import NoTracker, Tracker
from lit_long.tracking.view import MEMBER

__all__ = [
    "MEMBER",
    "Mirror",
    "NoTracker",
    "Tracker",
    "TrackingError",
    "default_uri",
    "environment_tags",
    "fetch_sweep",
    "flatten",
]
