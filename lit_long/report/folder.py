"""Reads a sweep from disk: its config, its trials, and the result of every stage that has finished.

A stage counts only when its folder holds the ``DONE`` marker; any other stage is kept, without a result, so that the report
can name it. Several trials may share a stage: it is read once and remembers all who use it. Files that a sweep cannot have
written like this (broken JSON, an evaluate stage without measurements) are a `UserError`, never an empty cell.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_long.config import ReportConfig, UserError, typed
from lit_long.evaluation.measurement import REQUIRED, Measurement

DONE, ERROR = "DONE", "error.txt"
ARCHIVE = "archive.json"  # in the folder of a stage that was archived (stages/archive.py)


@dataclass
class Stage:
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
class Trial:
    """One variant at one seed, with its stages by name, in the order they run."""

    variant: str
    seed: int
    stages: dict[str, Stage]


@dataclass(frozen=True)
class Sweep:
    """What a sweep folder says. ``stages`` lists each distinct stage once; ``parents`` maps a stage's name to its parent's."""

    folder: Path
    experiment: str
    key: str
    description: str
    report: ReportConfig
    trials: list[Trial]
    stages: list[Stage]
    parents: dict[str, str]

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(trial.variant for trial in self.trials))

    @property
    def seeds(self) -> list[int]:
        return sorted({trial.seed for trial in self.trials})

    @property
    def failed(self) -> list[Stage]:
        return [stage for stage in self.stages if stage.why_failed]

    def label(self, stage: Stage) -> str:
        """The stage's name with what sets it apart, as a sweep calls it while it runs: ``extend abf``, ``extend abf s1``, ``base``."""
        variants, seeds = ({user[place] for user in stage.users} for place in (0, 1))
        words = [stage.name, *(variants if len(variants) == 1 < len(self.variants) else ())]
        return " ".join([*words, *(f"s{seed}" for seed in seeds if len(seeds) == 1 < len(self.seeds))])


def find_sweep(root: Path, experiment: str) -> Path:
    """The folder of an experiment's latest sweep: what ``root/runs/<experiment>/latest`` points to.

    Raises:
        UserError: the experiment has never been swept below ``root``; the message lists those that have.
    """
    runs = root / "runs"
    latest = runs / experiment / "latest"
    # An empty name would make "runs/latest" of it, and a name with ".." would leave runs/.
    if experiment and Path(experiment).name == experiment and latest.is_dir():
        return latest.resolve()
    known = sorted(path.parent.name for path in runs.glob("*/latest") if path.is_dir())
    listing = f"Experiments with results in {runs}: {', '.join(known)}." if known else f"There are no results in {runs} yet."
    near = difflib.get_close_matches(experiment, known, n=1)
    hint = f"Did you mean `{near[0]}`? Or run" if near else "Run"
    raise UserError(
        f"No results for experiment `{experiment}`: {latest} does not exist.\n{listing}\n"
        f"{hint} `python -m lit_long.sweep experiment={experiment or 'NAME'}` first."
    )


def read_sweep(folder: Path) -> Sweep:
    """Reads ``sweep.yaml``, ``sweep.json`` and the finished stages' ``result.json``.

    Raises:
        UserError: a file is missing or malformed, or no trial has the stage that ``report.rows`` names.
    """
    config = _read(folder / "sweep.yaml", yaml.safe_load, yaml.YAMLError)
    record = _read(folder / "sweep.json", json.loads, ValueError)
    report = typed(ReportConfig, config.get("report") or {}, str(folder / "sweep.yaml"), "report.")
    stages: dict[Path, Stage] = {}
    settings = settings_by_folder(config)
    try:
        trials = [_trial(trial, folder, stages, settings) for trial in record["trials"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder / 'sweep.json'}: malformed, {type(error).__name__}: {error}. Each trial needs `variant`, `seed` and "
            "`stages` (name: folder). The sweep writes this file; run it again."
        ) from error
    names = dict.fromkeys(name for trial in trials for name in trial.stages)
    for field_name, wanted in (("rows", report.rows), ("reference", report.reference)):
        if wanted and wanted not in names:
            raise UserError(
                f"{folder / 'sweep.yaml'}: report.{field_name} is `{wanted}`, but no trial has a stage of that name. "
                f"Stages: {', '.join(names) or 'none'}. Correct it in the experiment's YAML and run the sweep again."
            )
    return Sweep(
        folder=folder,
        experiment=str(config.get("experiment") or record.get("experiment") or folder.parent.name),
        key=str(record.get("key") or folder.name),
        description=str(config.get("description") or "").strip(),
        report=report,
        trials=trials,
        stages=list(stages.values()),
        parents=dict(record.get("parents") or {}),
    )


def settings_by_folder(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of every stage in sweep.yaml, by the name of its folder."""
    return {f"{one['kind']}-{one['identity']}": one for one in (config.get("stages") or {}).values() if "identity" in one}


def _trial(record: dict[str, Any], folder: Path, stages: dict[Path, Stage], settings: dict[str, dict[str, Any]]) -> Trial:
    """One trial; stages seen before are shared, not read again."""
    variant, seed = str(record["variant"]), int(record["seed"])
    mine: dict[str, Stage] = {}
    for name, path in record["stages"].items():
        stage_folder = (folder / path).resolve()
        stage = stages.get(stage_folder)
        if stage is None:
            found = settings.get(stage_folder.name, {})
            stage = stages[stage_folder] = Stage(name, stage_folder, *_result(stage_folder), found)
        stage.users.append((variant, seed))
        mine[name] = stage
    return Trial(variant, seed, mine)


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
