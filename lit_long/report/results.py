"""Reads a sweep from disk, and aggregates its measurements over seeds: one cell per (row, metric, domain, length).

A stage counts only when its folder holds the ``DONE`` marker; any other stage is kept, without a result, so that the report
can name it. Several trials may share a stage: it is read once and remembers all who use it. Files that a sweep cannot have
written like this (broken JSON, an evaluate stage without measurements) are a `UserError`, never an empty cell.

A row is a variant of the grid, or the reference (usually `base`, the model before it was extended). Runs are counted by
distinct stage folder, not by trial: a reference shared by four variants is one measurement, not four. Where several stages measure a row
(``report.rows_also``), it has the measurements of all.
"""

from __future__ import annotations

import difflib
import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lit_long.config import ReportConfig, UserError, nearest, typed
from lit_long.evaluation.measurement import REQUIRED, Measurement

DONE, ERROR = "DONE", "error.txt"
ARCHIVE = "archive.json"  # in the folder of a stage that was archived (stages/archive.py)


@dataclass
class StageResult:
    """One stage folder. ``users`` are the (variant, seed) pairs that share it; ``result`` is None until it has finished;
    ``settings`` are those that it was started with, as sweep.yaml has them."""

    name: str
    folder: Path
    result: dict[str, Any] | None
    measurements: list[Measurement] | None = None  # of a finished evaluate stage
    settings: dict[str, Any] = field(default_factory=dict)
    users: list[tuple[str, int]] = field(default_factory=list)

    @property
    def archived(self) -> bool:
        return (self.folder / ARCHIVE).is_file()

    @property
    def why_failed(self) -> str:
        """Why it ended without a result, in one line; "" where that is not known, or it has not ended."""
        try:
            return " ".join((self.folder / ERROR).read_text(encoding="utf-8").split()) if self.result is None else ""
        except OSError:
            return ""

    @property
    def state(self) -> str:
        if self.result is not None:
            return "finished"
        if self.why_failed:
            return "failed"
        return "unfinished (interrupted or still running)" if self.folder.is_dir() else "not started"


@dataclass(frozen=True)
class TrialResult:
    """One variant at one seed, with its stages by name, in the order they run."""

    variant: str
    seed: int
    stages: dict[str, StageResult]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep folder says. ``stages`` lists each distinct stage once; ``parents`` maps a stage's name to its parent's."""

    folder: Path
    experiment: str
    key: str
    description: str
    report: ReportConfig
    trials: list[TrialResult]
    stages: list[StageResult]
    parents: dict[str, str]

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(trial.variant for trial in self.trials))

    @property
    def seeds(self) -> list[int]:
        return sorted({trial.seed for trial in self.trials})

    @property
    def failed(self) -> list[StageResult]:
        return [stage for stage in self.stages if stage.why_failed]

    def label(self, stage: StageResult) -> str:
        """The stage's name with what sets it apart, as a sweep calls it while it runs: ``extend abf``, ``extend abf s1``, ``base``."""
        variants, seeds = ({user[place] for user in stage.users} for place in (0, 1))
        words = [stage.name, *(variants if len(variants) == 1 < len(self.variants) else ())]
        return " ".join([*words, *(f"s{seed}" for seed in seeds if len(seeds) == 1 < len(self.seeds))])

    def parent(self, trial: TrialResult, stage: StageResult) -> StageResult | None:
        """The stage that ``stage`` starts from in the trial; for one that branches from the very beginning of its parent's run, what that started from."""
        parent = trial.stages.get(stage.settings.get("parent", self.parents.get(stage.name)) or "")
        from_its_start = stage.settings.get("kind") == "train" and stage.settings.get("branch") == 0
        return self.parent(trial, parent) if parent and from_its_start else parent


def find_sweep(root: Path, experiment: str, key: str = "") -> Path:
    """The folder of an experiment's sweep with that key, such as 41ace964; else of its latest one, what ``root/runs/<experiment>/latest`` points to.

    Raises:
        UserError: the experiment has never been swept below ``root``, or not that sweep; the message lists those that have.
    """
    runs = root / "runs"
    latest = runs / experiment / "latest"
    # An empty name would make "runs/latest" of it, and a name with ".." would leave runs/.
    if experiment and Path(experiment).name == experiment and latest.is_dir():
        if not key:
            return latest.resolve()
        keys = sorted(file.parent.name for file in (runs / experiment).glob("*/sweep.json") if file.parent != latest)
        if key in keys:
            return (runs / experiment / key).resolve()
        raise UserError(f"key={key}: {runs / experiment} has no such sweep{nearest(key, keys)}; it has {', '.join(keys)}")
    known = sorted(path.parent.name for path in runs.glob("*/latest") if path.is_dir())
    listing = f"Experiments with results in {runs}: {', '.join(known)}." if known else f"There are no results in {runs} yet."
    near = difflib.get_close_matches(experiment, known, n=1)
    hint = f"Did you mean `{near[0]}`? Or run" if near else "Run"
    raise UserError(
        f"No results for experiment `{experiment}`: {latest} does not exist.\n{listing}\n"
        f"{hint} `python -m lit_long.sweep experiment={experiment or 'NAME'}` first."
    )


def read_sweep(folder: Path) -> SweepResult:
    """Reads ``sweep.yaml``, ``sweep.json`` and the finished stages' ``result.json``.

    Raises:
        UserError: a file is missing or malformed, or no trial has the stage that ``report.rows`` names.
    """
    config = _read(folder / "sweep.yaml", load_yaml, yaml.YAMLError)
    record = _read(folder / "sweep.json", json.loads, ValueError)
    report = typed(ReportConfig, config.get("report") or {}, str(folder / "sweep.yaml"), "report.")
    stages: dict[Path, StageResult] = {}
    settings = settings_by_folder(config)
    try:
        trials = [_trial(trial, folder, stages, settings) for trial in record["trials"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder / 'sweep.json'}: malformed, {type(error).__name__}: {error}. Each trial needs `variant`, `seed` and "
            "`stages` (name: folder). The sweep writes this file; run it again."
        ) from error
    names = dict.fromkeys(name for trial in trials for name in trial.stages)
    wanted_names = [("rows", report.rows), *(("rows_also", name) for name in report.rows_also), ("reference", report.reference)]
    for field_name, wanted in wanted_names:
        if wanted and wanted not in names:
            raise UserError(
                f"{folder / 'sweep.yaml'}: report.{field_name} is `{wanted}`, but no trial has a stage of that name. "
                f"Stages: {', '.join(names) or 'none'}. Correct it in the experiment's YAML and run the sweep again."
            )
    return SweepResult(
        folder=folder,
        experiment=str(config.get("experiment") or record.get("experiment") or folder.parent.name),
        key=str(record.get("key") or folder.name),
        description=str(config.get("description") or "").strip(),
        report=report,
        trials=trials,
        stages=list(stages.values()),
        parents=dict(record.get("parents") or {}),
    )


def load_yaml(text: str) -> Any:
    """`yaml.safe_load`; by libyaml, where PyYAML has it, a quarter of the time, which matters for a thousand trials."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def settings_by_folder(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of every stage in sweep.yaml, by the name of its folder."""
    return {f"{one['kind']}-{one['identity']}": one for one in (config.get("stages") or {}).values() if "identity" in one}


def _trial(
    record: dict[str, Any], folder: Path, stages: dict[Path, StageResult], settings: dict[str, dict[str, Any]]
) -> TrialResult:
    """One trial; stages seen before are shared, not read again."""
    variant, seed = str(record["variant"]), int(record["seed"])
    mine: dict[str, StageResult] = {}
    for name, path in record["stages"].items():
        stage_folder = (folder / path).resolve()
        stage = stages.get(stage_folder)
        if stage is None:
            found = settings.get(stage_folder.name, {})
            stage = stages[stage_folder] = StageResult(name, stage_folder, *_result(stage_folder), found)
        stage.users.append((variant, seed))
        mine[name] = stage
    return TrialResult(variant, seed, mine)


def _result(folder: Path) -> tuple[dict[str, Any] | None, list[Measurement] | None]:
    """What the stage left, and of it the measurements of an evaluation; None where there is none."""
    if not (folder / DONE).exists():
        return None, None
    path = folder / "result.json"
    result = _read(path, json.loads, ValueError, remedy=f"Remove {folder / DONE} and run the sweep again to redo this stage.")
    for index, entry in enumerate(result.get("measurements") or []):
        lacking = sorted(set(REQUIRED) - set(entry if isinstance(entry, dict) else ()))
        if lacking:
            raise UserError(
                f"{path}: measurements[{index}] lacks {', '.join(lacking)}. Remove {folder / DONE} and run the sweep again "
                "to redo this stage."
            )
    rows = result.get("measurements")
    return result, None if rows is None else [Measurement.from_row(row) for row in rows]


def _read(path: Path, parse: Any, malformed: type[Exception], remedy: str = "Run the sweep again.") -> dict[str, Any]:
    """A file that must hold a mapping."""
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. {remedy}") from error
    except (malformed, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}. {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a mapping, but holds {type(value).__name__}. {remedy}")
    return value


ROUGE, ACCURACY, NATS, PASSKEY = "retrieval_rouge_l", "retrieval_accuracy", "retrieval_nats", "passkey_accuracy"
CONTROL, CONTROL_ROUGE = "retrieval_control", "retrieval_control_rouge_l"
QUERY_SCALE = "query_scale.fitted"  # the constant of the query scales, one of those that were tried
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

    sweep: SweepResult
    variants: list[str]
    references: list[str]
    cells: dict[Key, Cell]
    folders: dict[str, list[StageResult]]  # the evaluate stages behind each row
    by_seed: dict[str, dict[int, StageResult]]  # the one stage of a row under a seed, where it is one

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
    def missing(self) -> list[StageResult]:
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


def aggregate(sweep: SweepResult) -> Results:
    """Groups the finished evaluate stages by row and aggregates every measurement over its runs."""
    report = sweep.report
    variants = sweep.variants
    users = {variant: [t for t in sweep.trials if t.variant == variant] for variant in variants}
    names = dict.fromkeys(variants, (report.rows, *report.rows_also))
    references: dict[str, list[TrialResult]] = {}
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
        names |= dict.fromkeys(references, (report.reference,))
        users |= references
    folders = {row: _distinct(_joined(trial, names[row]) for trial in trials) for row, trials in users.items()}
    by_seed: dict[str, dict[int, StageResult]] = {}
    for row, trials in users.items():
        for seed in sweep.seeds:
            stages = _distinct(_joined(trial, names[row]) for trial in trials if trial.seed == seed)
            if len(stages) == 1:
                by_seed.setdefault(row, {})[seed] = stages[0]
    runs: dict[Key, list[Measurement]] = {}
    for row, stages in folders.items():
        for stage in stages:
            for (metric, domain, length), measured in _measurements(stage).items():
                runs.setdefault((row, metric, domain, length), []).append(measured)
    return Results(sweep, variants, list(references), {key: _cell(values) for key, values in runs.items()}, folders, by_seed)


def _joined(trial: TrialResult, names: Iterable[str]) -> StageResult | None:
    """The trial's evaluation: of several stages the first one, with what all of them measured so far."""
    stages = [trial.stages[name] for name in names if name in trial.stages]
    ended = [stage for stage in stages if stage.result is not None]
    if len(ended) < 2:
        return (ended or stages or [None])[0]
    for stage in ended:
        _measurements(stage)  # which says what is wrong with one of them alone
    return replace(ended[0], measurements=[each for stage in ended for each in stage.measurements])


def _measurements(stage: StageResult) -> dict[tuple[str, str, int], Measurement]:
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
            raise UserError(
                f"{path}: {key[0]} of {key[1]} at length {key[2]} is there twice. Run this stage again; or, if a stage that report.rows_also names "
                "measured it too, take it out of the evaluation of one of them."
            )
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


def _distinct(stages: Iterable[StageResult | None]) -> list[StageResult]:
    return list({stage.folder: stage for stage in stages if stage is not None}.values())
