"""The time that stages, trials and the whole sweep have yet to go, from the speed so far."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from lit_long.planning.flops import stage_flops
from lit_long.stages.plan import Stage


def duration(seconds: float | None) -> str:
    """``4:05`` or ``1:02:03``; ``-:--`` when nobody knows yet."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class RunningStage:
    """A stage on the screen. Its speed counts from the first share heard of: after the start, or the resume."""

    label: str
    bar: int  # the bar's number
    last_line: float
    share: float = 0.0
    first: tuple[float, float] | None = None  # when, and at which share, it was first heard of
    now: float = 0.0
    message: str = ""

    def update(self, message: str, share: float) -> None:
        """``share`` of it is done by now."""
        self.now, self.message, self.share = time.monotonic(), message, share
        if self.first is None and share > 0:
            self.first = (self.now, share)

    @property
    def seconds(self) -> float:
        """That ``gained`` took."""
        return self.now - self.first[0] if self.first else 0.0

    @property
    def gained(self) -> float:
        return self.share - self.first[1] if self.first else 0.0

    def eta(self) -> float | None:
        return self.seconds / self.gained * (1 - self.share) if self.gained > 0.01 else None


class SweepEta:
    """Time to go of the whole sweep: every stage's expected cost, calibrated by the time that finished cost has taken."""

    def __init__(self, stages: list[Stage]) -> None:
        self.costs = {stage.identity: stage_flops(stage.config) for stage in stages}
        self.done_cost, self.done_seconds = 0.0, 0.0

    def finished(self, identity: str, seconds: float | None) -> None:
        """A stage is over; ``seconds`` is None when it had been done before and took no time."""
        cost = self.costs.pop(identity, 0.0)
        if seconds is not None and cost:
            self.done_cost, self.done_seconds = self.done_cost + cost, self.done_seconds + seconds

    def of_sweep(self, shown: dict[str, RunningStage]) -> float | None:
        """Seconds left in the sweep, while the stages ``shown`` run side by side and as many will. None before there is a measure."""
        if (left := self.of_stages(self.costs, shown)) is None:
            return None
        slowest = max((stage.eta() or 0.0 for stage in shown.values()), default=0.0)
        return max(left / max(1, len(shown)), slowest)  # a slow stage shows in its own ETA first

    def of_stages(self, identities: Iterable[str], shown: dict[str, RunningStage]) -> float | None:
        """Seconds that what is left of these stages will take, one after the other. None before there is a measure."""
        cost, seconds = self.done_cost, self.done_seconds
        for identity, stage in shown.items():
            cost, seconds = cost + self.costs.get(identity, 0.0) * stage.gained, seconds + stage.seconds
        if cost <= 0:
            return None
        shares = {identity: stage.share for identity, stage in shown.items()}
        return seconds / cost * sum(self.costs.get(one, 0.0) * (1 - shares.get(one, 0.0)) for one in identities)
