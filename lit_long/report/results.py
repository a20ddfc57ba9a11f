"""Aggregates a sweep's measurements over seeds: one cell per (row, metric, domain, length).

A row is a variant of the grid, or the reference (usually `base`, the model before it was extended). Runs are counted by
distinct stage folder, not by trial: a reference shared by four variants is one measurement, not four.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lit_long.config import UserError
from lit_long.evaluation.measurement import Measurement
from lit_long.report.folder import Stage, Sweep, Trial

ROUGE, ACCURACY, NATS, PASSKEY = "retrieval_rouge_l", "retrieval_accuracy", "retrieval_nats", "passkey_accuracy"
CONTROL, CONTROL_ROUGE = "retrieval_control", "retrieval_control_rouge_l"
# Tasks by length, in the order of the page: title, and what a good score is (None: there is none).
TASKS = {
    ROUGE: ("FIRST-SENTENCE-RETRIEVAL on {domain}: ROUGE-L, % (higher is better)", max),
    ACCURACY: ("FIRST-SENTENCE-RETRIEVAL on {domain}: teacher-forced token accuracy, % (higher is better)", max),
    NATS: ("FIRST-SENTENCE-RETRIEVAL on {domain}: teacher-forced nats per token (lower is better)", min),
    CONTROL: ("FIRST-SENTENCE-RETRIEVAL on {domain}: token accuracy after another text, %", None),
    CONTROL_ROUGE: ("FIRST-SENTENCE-RETRIEVAL on {domain}: ROUGE-L after another text, %", None),
    PASSKEY: ("PASSKEY in {domain}: found, % (higher is better)", max),
}


@dataclass(frozen=True)
class Cell:
    """Mean over ``seeds`` runs; ``sd`` is the sample standard deviation (None with one run); ``tokens`` those of one run."""

    mean: float
    sd: float | None
    seeds: int
    low: float
    high: float
    tokens: int


Key = tuple[str, str, str, int]  # row, metric, domain, length


@dataclass(frozen=True)
class Results:
    """All cells of a sweep. ``rows`` lists the variants in the grid's order, then the references: one, or one of each variant."""

    sweep: Sweep
    variants: list[str]
    references: list[str]
    cells: dict[Key, Cell]
    folders: dict[str, list[Stage]]  # the evaluate stages behind each row
    by_seed: dict[str, dict[int, Stage]]  # the one stage of a row under a seed, where it is one

    def value(self, row: str, seed: int, metric: str, domain: str, length: int) -> float | None:
        """What one run measured."""
        stage = self.by_seed.get(row, {}).get(seed)
        found = _measurements(stage).get((metric, domain, length)) if stage else None
        return found and found.value

    @property
    def rows(self) -> list[str]:
        return self.variants + self.references

    @property
    def reference(self) -> str | None:
        """The one that all variants share."""
        return self.references[0] if len(self.references) == 1 else None

    def label(self, row: str) -> str:
        """The row's name for people."""
        return f"{display(row)} (reference)" if row in self.references else display(row)

    @property
    def missing(self) -> list[Stage]:
        return [stage for stage in self.sweep.stages if stage.result is None]

    def get(self, row: str, metric: str, domain: str, length: int) -> Cell | None:
        return self.cells.get((row, metric, domain, length))

    def domains(self, metric: str) -> list[str]:
        """In order of first appearance."""
        return list(dict.fromkeys(domain for _, m, domain, _ in self.cells if m == metric))

    def lengths(self, metric: str, domain: str | None = None) -> list[int]:
        """Ascending. The variants decide; the reference's lengths are used only while no variant has been measured."""
        found: dict[bool, set[int]] = {True: set(), False: set()}
        for row, m, d, length in self.cells:
            if m == metric and domain in (None, d):
                found[row in self.references].add(length)
        return sorted(found[False] or found[True])

    def train(self) -> dict[str, list[dict[str, Any]]]:
        """Stage name → results of the finished train stages of that name, in the order stages run."""
        results: dict[str, list[dict[str, Any]]] = {}
        for stage in self.sweep.stages:
            if stage.result is not None and stage.result.get("kind") == "train":
                results.setdefault(stage.name, []).append(stage.result)
        return results

    def base_context(self) -> int | None:
        """The context the reference was trained with, here or elsewhere, where that is known and the same for every seed."""
        reference = self.sweep.report.reference
        if not reference:
            return None
        parent = self.sweep.parents.get(reference, reference.removeprefix("evaluate_"))
        contexts = {result.get("context") for result in self.train().get(parent, [])}
        if not contexts:
            measured = [stage.result for row in self.references for stage in self.folders[row] if stage.result]
            contexts = {result.get("pretrained_context") for result in measured}
        return contexts.pop() if len(contexts) == 1 else None


def display(row: str) -> str:
    """The name of an encoder in papers, or the variant's own."""
    from lit_long.positions.titles import TITLES  # its package imports numpy

    return TITLES.get(row, row)


def aggregate(sweep: Sweep) -> Results:
    """Groups the finished evaluate stages by row and aggregates every measurement over its runs."""
    report = sweep.report
    variants = sweep.variants
    users = {variant: [t for t in sweep.trials if t.variant == variant] for variant in variants}
    names = dict.fromkeys(variants, report.rows)
    references: dict[str, list[Trial]] = {}
    if report.reference:
        reference = report.reference.removeprefix("evaluate_")
        # A grid may well have a variant called "base": two rows of one name would be averaged into one.
        reference = report.reference if reference in variants else reference
        references = {reference: sweep.trials}
        if len({(trial.seed, stage.folder) for trial in sweep.trials if (stage := trial.stages.get(report.reference))}) > len(
            sweep.seeds
        ):
            # Models of two shapes, say: what they measure has no mean.
            references = {f"{reference} of {display(variant)}": trials for variant, trials in users.items()}
        names |= dict.fromkeys(references, report.reference)
        users |= references
    folders = {row: _distinct(trial.stages.get(names[row]) for trial in trials) for row, trials in users.items()}
    by_seed: dict[str, dict[int, Stage]] = {}
    for row, trials in users.items():
        for seed in sweep.seeds:
            stages = _distinct(trial.stages.get(names[row]) for trial in trials if trial.seed == seed)
            if len(stages) == 1:
                by_seed.setdefault(row, {})[seed] = stages[0]
    runs: dict[Key, list[Measurement]] = {}
    for row, stages in folders.items():
        for stage in stages:
            for (metric, domain, length), measured in _measurements(stage).items():
                runs.setdefault((row, metric, domain, length), []).append(measured)
    return Results(sweep, variants, list(references), {key: _cell(values) for key, values in runs.items()}, folders, by_seed)


def _measurements(stage: Stage) -> dict[tuple[str, str, int], Measurement]:
    if stage.result is None:
        return {}
    path = stage.folder / "result.json"
    if stage.measurements is None:
        raise UserError(
            f"{path}: a stage of kind `{stage.result.get('kind')}` has no measurements. "
            "report.rows and report.reference must name evaluate stages; correct them in the experiment's YAML."
        )
    found: dict[tuple[str, str, int], Measurement] = {}
    for each in stage.measurements:
        key = (each.metric, each.domain, each.length)
        if key in found:  # taken silently, one seed would pass for two
            raise UserError(f"{path}: {key[0]} of {key[1]} at length {key[2]} is there twice. Run this stage again.")
        found[key] = each
    return found


def _cell(runs: list[Measurement]) -> Cell:
    values = [run.value for run in runs]
    finite = all(math.isfinite(value) for value in values)
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Cell(mean, None, 1, mean, mean, runs[0].tokens)
    # One diverged seed makes the mean infinite, and so it should: leaving it out would hide the divergence.
    sd = statistics.stdev(values) if finite else math.nan
    return Cell(mean, sd, len(values), min(values), max(values), runs[0].tokens)


def _distinct(stages: Iterable[Stage | None]) -> list[Stage]:
    return list({stage.folder: stage for stage in stages if stage is not None}.values())
