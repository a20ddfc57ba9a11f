"""What was measured, as one type from the model to the result file, MLflow, the tables, the figures and the findings. Needs no torch.

In ``result.json`` of an evaluate stage and in ``scores.json`` a measurement is one flat JSON object: the fields, then its settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

PERPLEXITY, BY_POSITION = "perplexity", "loss_by_position"
REQUIRED = ("metric", "domain", "length", "value")


@dataclass(frozen=True)
class Measurement:
    """One number, and what it is worth.

    Args:
        length: tokens of context; of the loss by position the upper edge of the bin.
        value: the number; nan where a diverged run has none.
        stderr: one standard error; None where it is not known.
        low, high: 95 % interval; None where it is not known.
        n: how many ``unit`` the value is the mean of; 0 where it is not known.
        unit: what n counts: documents, examples or samples.
        tokens: how many tokens were scored; 0 where it is not known, or where tokens are not what is scored.
        task: the task that it belongs to; empty in an evaluate stage, where the name of the metric says it.
        settings: what the value depends on besides the model: seed, prompt, stride, depth of a needle, digest of the texts …
    """

    metric: str
    domain: str
    length: int
    value: float
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    unit: str = "samples"
    tokens: int = 0
    task: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether it holds for all that was measured at its length, not for one of a needle's depths, or one of the model's layers."""
        return not {"depth", "layer"} & self.settings.keys()

    def to_row(self) -> dict[str, Any]:
        """A flat JSON object; `from_row` reads it."""
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "settings"}
        if not self.task:
            del own["task"]
        return own | {key: value for key, value in self.settings.items() if key not in own}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Measurement:
        """Read a row, or one of version 0.1, in which ``examples`` stood for n and some fields were not there.

        Raises:
            KeyError: metric, domain, length or value is not there.
        """
        own = {each.name for each in fields(cls)} - {"settings"}
        known = {key: value for key, value in row.items() if key in own}
        settings = {key: value for key, value in row.items() if key not in own}
        known["n"] = int(known.get("n", settings.pop("examples", 0)))
        known["tokens"] = int(known.get("tokens") or 0)
        # JSON has no infinity: a diverged run may write null.
        value = math.nan if row["value"] is None else float(row["value"])
        names = {"metric": str(row["metric"]), "domain": str(row["domain"]), "length": int(row["length"]), "value": value}
        return cls(**known | names, settings=settings)
