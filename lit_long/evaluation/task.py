"""What a task is, and how tasks become scores: the missing samples are made, each is written, and all of them are scored.

A task lists the keys of its samples beforehand, which are functions of its settings, the texts and the tokenizer; so a resumed
evaluation knows what is missing. Scores are computed from the written samples alone.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from lit_long.config import UserError
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.registry import code_digest
from lit_long.evaluation.samples import Key, Samples
from lit_long.generation.sharded import as_first

Report = Callable[[str, float], None]
Sample = tuple[Key, dict[str, Any]]


class Task(ABC):
    """One measurement at several lengths. ``prompt`` names the version of its prompt: a changed prompt is another task."""

    name: ClassVar[str]
    prompt: ClassVar[str]
    remarks: ClassVar[Sequence[str]] = ()  # what else a reader of its scores must know of its data

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What determines the samples, besides model, tokenizer and prompt version: seed, lengths, digest of the texts …"""

    @abstractmethod
    def keys(self) -> list[Key]:
        """All samples. Raises UserError where the texts do not suffice."""

    @abstractmethod
    def measure(self, evaluated: EvaluatedModel, keys: list[Key]) -> Iterator[Sample]:
        """The samples of ``keys``, which share domain and length, as soon as each is known."""

    @abstractmethod
    def scores(self, samples: list[dict[str, Any]]) -> list[Measurement]:
        """What the samples give; ``settings`` of a measurement hold what else tells it apart (depth, stride …)."""

    def cost(self, key: Key) -> int:
        """Tokens that are read for it, to tell progress by."""
        return key.length

    def check(self, evaluated: EvaluatedModel) -> None:
        """Raises UserError when the model cannot be asked this."""
        for length in sorted({key.length for key in self.keys()}):
            evaluated.require(length, self.name)


def by(samples: list[dict[str, Any]], *fields: str) -> Iterator[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    """Samples grouped by the values of ``fields``, in their order."""

    def values(sample: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(sample[name] for name in fields)

    for key, group in groupby(sorted(samples, key=values), key=values):
        yield key, list(group)


def run_tasks(
    evaluated: EvaluatedModel, tasks: list[Task], about: dict[str, Any], folder: Path, report: Report
) -> list[Measurement]:
    """The scores of all tasks; their samples lie in ``folder``, one file a task. Samples that are there are not made again.

    Of several ranks each measures everything, since all of them take part in the model; the first one writes, and has the scores.

    Args:
        about: what identifies the model, its tokenizer and its precision.
        report: hears of progress, as (message, share of the tokens read).

    Raises:
        UserError: before anything is measured, if any task cannot be.
    """
    for task in tasks:
        task.check(evaluated)
    total = sum(task.cost(key) for task in tasks for key in task.keys())
    done, rows = 0, []
    for task in tasks:
        settings = task.settings()
        identity = {"task": task.name, "prompt": task.prompt} | code_of(task) | about | settings
        with Samples(folder / f"{task.name}.jsonl", identity, evaluated.is_first) as samples:
            keys = task.keys()
            missing = as_first([key for key in keys if key not in samples.records], evaluated.mesh)
            done += sum(task.cost(key) for key in set(keys) - set(missing))
            for (domain, length), group in groupby(missing, key=lambda key: (key.domain, key.length)):
                wanted = list(group)
                for key, record in task.measure(evaluated, wanted):
                    samples.add(key, record)
                    done += task.cost(key)
                    report(f"{task.name} {domain} {length:,}", done / total)
            if not evaluated.is_first:
                continue
            found = [samples.records[key] for key in keys if key in samples.records]
            if len(found) != len(keys):
                raise UserError(
                    f"{samples.file}: {len(keys) - len(found)} of {len(keys)} samples of {task.name} were not measured"
                )
        common = {"prompt": task.prompt, "seed": settings.get("seed"), "data": settings.get("data", "")[:16]}
        for each in task.scores(found):
            settings = {"truncated": truncated(found, each.length), **common, **each.settings}
            rows.append(replace(each, task=task.name, settings=settings))
    return rows


def code_of(task: Task) -> dict[str, str]:
    """Of the user's own task the digest of its file's code, as ``code``: changed, its samples are others."""
    module = type(task).__module__
    return {} if module.startswith("lit_long.") else {"code": code_digest(Path(inspect.getfile(type(task))))}


def truncated(samples: list[dict[str, Any]], length: int) -> float:
    """The share of the samples of that length whose prompt was cut to the model's range."""
    same = [sample.get("truncated", False) for sample in samples if sample["length"] == length]
    return sum(same) / len(same) if same else 0.0
