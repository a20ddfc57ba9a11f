"""Where the record of what was run goes."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from lit_long.config.typed import UserError


@dataclass
class TrackingConfig:
    """Where the record goes. A key that says nothing to the tracker in use is refused (tracking/tracker.py)."""

    enabled: bool = True
    name: str = "mlflow"  # mlflow · csv, a plain folder
    uri: str = ""  # mlflow: of its store or server; none: the SQLite file mlflow/mlflow.db below root
    folder: str = ""  # csv: none: tracking/ below root

    def __post_init__(self) -> None:
        if urlsplit(self.uri).password is not None:
            raise UserError(
                "tracking.uri has a password in it, which would be written to logs, folders and the record itself. Leave it out, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (for a database, its own file, such as ~/.pgpass)"
            )
