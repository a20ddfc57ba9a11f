"""The paper's own runs, planned (paper_runs.yaml)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_long.config import ModelConfig, typed
from lit_long.config.ranges import CountOrNone, NotNegative, Share
from lit_long.planning.flops import paper_flops
from lit_long.planning.job import Job

FILE = Path(__file__).with_name("paper_runs.yaml")
SHORT = 4096  # tokens, of the sequences that a curriculum of §4.4 begins with


@dataclass
class Run:
    """One run. ``short`` is the share of the tokens that is trained on at 4,096; ``flops`` is what the paper prints, 0 if nothing."""

    name: str = ""
    model: str = ""
    context: CountOrNone = 0
    tokens_per_update: CountOrNone = 0
    updates: CountOrNone = 0
    gpus: CountOrNone = 0
    short: Share = 0.0
    flops: NotNegative = 0.0
    source: str = ""

    @property
    def tokens(self) -> int:
        return self.updates * self.tokens_per_update

    @property
    def phases(self) -> tuple[tuple[float, int], ...]:
        """(Share of the tokens, context)."""
        return ((self.short, SHORT), (1 - self.short, self.context)) if self.short else ()

    def job(self, model: ModelConfig) -> Job:
        return Job(model, self.context, self.tokens_per_update, self.tokens, phases=self.phases)

    def flops_as_printed(self, model: ModelConfig) -> float:
        """By the paper's formula."""
        return sum(paper_flops(model, share * self.tokens, context) for share, context in self.phases or ((1.0, self.context),))


def paper_runs() -> list[Run]:
    rows: list[dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return [typed(Run, row, str(FILE)) for row in rows]
