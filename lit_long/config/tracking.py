"""Where the record of what was run goes."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from lit_long.config.typed import UserError


@dataclass
class TrackingConfig:
    """Where the record goes. An empty ``uri`` is the SQLite file mlflow/mlflow.db below ``root``."""

    enabled: bool = True
    uri: str = ""

    def __post_init__(self) -> None:
        if urlsplit(self.uri).password is not None:
            raise UserError(
                "tracking.uri has a password in it, which would be written to logs, folders and the record itself. Leave it out, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (for a database, its own file, such as ~/.pgpass)"
            )
