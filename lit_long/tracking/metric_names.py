"""What a measurement is called in every tracker: ``eval/QUANTITY/DOMAIN/LENGTH``, whoever measured it (docs/guides/results.md).

Curves of a stage while it runs keep the names of its metrics.jsonl: train/loss, val/DOMAIN/loss, perf/….
"""

from __future__ import annotations

from collections.abc import Iterable

from lit_long.evaluation.measurement import BY_POSITION, PERPLEXITY, Measurement

# Quantities that evaluate stages measure under a name of their own, and tasks under TASK.METRIC: here they have one name.
SAME = {
    "perplexity.perplexity": PERPLEXITY,
    "perplexity.loss_by_position": BY_POSITION,
    "sliding_perplexity.sliding_perplexity": "sliding_perplexity",
    "first_sentence.rouge_l": "retrieval_rouge_l",
    "passkey.accuracy": "passkey_accuracy",
}


def name_of(measurement: Measurement) -> str:
    """``eval/QUANTITY/DOMAIN/LENGTH``; of the loss by position, a curve whose step is the position, without the length."""
    parts = ["eval", quantity(measurement), measurement.domain]
    return "/".join(parts if is_curve(measurement) else [*parts, str(measurement.length)])


def quantity(measurement: Measurement) -> str:
    """Of a task it is TASK.METRIC, but for those in `SAME`."""
    name = f"{measurement.task}.{measurement.metric}" if measurement.task else measurement.metric
    return SAME.get(name, name)


def is_curve(measurement: Measurement) -> bool:
    return quantity(measurement) == BY_POSITION


def metrics_of(measurements: Iterable[Measurement]) -> dict[tuple[str, int], float]:
    """Values by (name, step). Parts (a needle's depths) are left to the table. Of a quantity measured twice the first counts."""
    found: dict[tuple[str, int], float] = {}
    for each in measurements:
        if each.is_whole:
            found.setdefault((name_of(each), each.length if is_curve(each) else 0), each.value)
    return found
