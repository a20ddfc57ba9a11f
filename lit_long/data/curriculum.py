"""The phases of a run: which updates are made of sequences of which length, from which mixture, under which encoder.

LLaMA 2 Long, section 4.4: sequences of 4,096 tokens for the first 20, 40 or 80 % of the tokens, then of 32,768, with the same number of
tokens per update throughout. Here also linear growth, through the lengths that divide an update. No torch.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

from lit_long.config import CurriculumConfig, UserError

SHORTEST = 16  # tokens


@dataclass(frozen=True)
class Phase:
    """Updates ``start`` to ``stop`` - 1. Empty ``weights``, ``position`` and ``layers`` are the stage's."""

    start: int
    stop: int
    context: int
    weights: dict[str, float] = field(default_factory=dict)
    position: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)

    @property
    def updates(self) -> int:
        return self.stop - self.start


def make_phases(curriculum: CurriculumConfig, context: int, tokens_per_update: int, updates: int, where: str) -> list[Phase]:
    """The phases of a run of ``updates`` updates; one, if ``curriculum`` has none. Phases without an update are left out.

    Raises:
        UserError: phases that do not follow one another to the end, or sequences that do not divide an update.
    """
    if not curriculum.phases:
        return [Phase(0, updates, context)]
    found: list[Phase] = []
    before = 0.0
    for number, phase in enumerate(curriculum.phases):
        key = f"{where}.curriculum.phases[{number}]"
        if not before < phase.until <= 1:
            raise UserError(f"{key}.until must lie above {before:g}, where the phase begins, and be at most 1, not {phase.until}")
        for name, share in (("scale", phase.scale), ("grow_from", phase.grow_from or phase.scale)):
            length = round(context * share)
            if not SHORTEST <= length <= context or tokens_per_update % length:
                raise UserError(
                    f"{key}.{name}={share:g} makes sequences of {length} tokens. They must have {SHORTEST} to {context} (the stage's "
                    f"context) and divide tokens_per_update={tokens_per_update}."
                )
        weights = {name: weight for name, weight in phase.weights.items() if weight}
        for length, start, stop in _lengths(phase.grow_from or phase.scale, phase.scale, context, tokens_per_update):
            span = phase.until - before
            first, last = (round(updates * (before + span * share)) for share in (start, stop))
            if first < last:
                found.append(Phase(first, last, length, weights, dict(phase.position), dict(phase.layers)))
        before = phase.until
    last = curriculum.phases[-1]
    if last.until != 1 or last.scale != 1:
        raise UserError(f"{where}.curriculum.phases: the last one must end with until=1 and scale=1, the stage's whole context")
    for name in ("position", "layers"):
        if getattr(last, name):
            raise UserError(
                f"{where}.curriculum: the last phase has a {name} of its own. What the model ends with is the stage's {name}: name it there."
            )
    return found


def phases_from(first: int, phases: list[Phase]) -> list[Phase]:
    """What is left of them from update ``first`` on, counted from there."""
    return [
        replace(phase, start=max(phase.start, first) - first, stop=phase.stop - first) for phase in phases if phase.stop > first
    ]


def _lengths(start: float, stop: float, context: int, tokens_per_update: int) -> list[tuple[int, float, float]]:
    """(tokens, from, to): sequence lengths while the context grows linearly, each while it is the nearest of those that divide an update."""
    first, last = round(context * start), round(context * stop)
    lengths = [length for length in _divisors(tokens_per_update) if min(first, last) <= length <= max(first, last)]
    if first > last:
        lengths.reverse()
    if len(lengths) == 1:
        return [(first, 0.0, 1.0)]
    changes = [((a + b) / 2 - first) / (last - first) for a, b in itertools.pairwise(lengths)]
    return list(zip(lengths, [0.0, *changes], [*changes, 1.0], strict=True))


def _divisors(number: int) -> list[int]:
    small = [i for i in range(1, int(number**0.5) + 1) if number % i == 0]
    return sorted({*small, *(number // i for i in small)})
