"""How sweeps, evaluations, instruct runs and theory appear in any tracker: the names, tags, settings and numbers of their runs.

Everything comes from folders, so whatever is missing in the tracker (a killed sweep, a lost database) is written again by the next command.
A sweep is a parent run with a child per stage; table and figures lie with the parent. Names say what a run is in a flat list, beside those
of other sweeps:

    position_tiny | laptop | 4 variants, 3 seeds        the parent
    abf | extend 2048 | seed 1                          a child: variant, stage and tokens of context, seed
    base 256 | seed 1                                   a stage that all variants share
    corpus                                              data, which no seed changes

The others are one run each, of the experiments evaluate, instruct and theory.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lit_long.config import StageConfig, TrackingConfig, project_root
from lit_long.evaluation.measurement import Measurement
from lit_long.files import lines_of, write_atomically
from lit_long.stages.folder import is_done, read_result
from lit_long.stages.lineage import MLFLOW_RUN
from lit_long.stages.plan import CORPUS, Plan, Stage, digest
from lit_long.tracking.describe import environment_tags
from lit_long.tracking.metric_names import metrics_of
from lit_long.tracking.mirror import Mirror
from lit_long.tracking.tracker import (
    MEMBER,
    NOTE,
    RESULTS,
    SWEEP_JSON,
    SWEEP_YAML,
    Tracker,
    TrackerAwayError,
    TrackingError,
    open_tracker,
)

if TYPE_CHECKING:
    from lit_long.stages.scores import Evaluation

EVALUATE, INSTRUCT, THEORY = "evaluate", "instruct", "theory"  # experiments
FOLDER = "lit_long.folder"  # a tag
AWAY_SECONDS = 60.0  # for so long a tracker that was away is not asked again: each time, the sweep would wait
GENERATED = "generated"  # what LongChat-Lines has for data


def open_sweep(plan: Plan) -> Tracker:
    """The tracker of the plan's experiment, checked."""
    return open_tracker(plan.sweep.tracking, plan.sweep.experiment, plan.root)


def open_command(config: TrackingConfig, experiment: str, root: str) -> Tracker:
    """The tracker of a command that is no sweep. ``root``: as the user typed it; "" is the project's."""
    return open_tracker(config, experiment, Path(root).expanduser().resolve() if root else project_root())


class Record:
    """The runs of one sweep. What the tracker does not take of a stage is owed: it is written with a later stage, and at the end. Folders have it all,
    so the sweep goes on meanwhile."""

    def __init__(self, tracker: Tracker, plan: Plan) -> None:
        self.tracker, self.plan, self.environment = tracker, plan, environment_tags()
        tracker.reconcile()
        params = {"grid": plan.sweep.grid, "trials": len(plan.trials), "stages": len(plan.stages)}
        table = plan.sweep.report.paper_table
        self.paper = {"paper.table": table} if table else {}
        tags = self.environment | self.paper
        tags |= {FOLDER: str(plan.folder), NOTE: plan.sweep.description}
        self.parent = tracker.begin(plan.key, sweep_name(plan), params=params, tags=tags)
        self.owed: dict[str, Callable[[], None]] = {}  # by the identity of the stage: what writes its record
        self.why, self.ask_at = "", 0.0  # what the tracker said when it was away, and until when nothing is asked of it
        self.measured: dict[str, None] = {}  # names of what evaluations recorded, in order
        self.where = tracker.show(plan.key, self.measured)  # for people to look at it; "" where nothing is recorded
        tracker.text(self.parent, (plan.folder / SWEEP_YAML).read_text(encoding="utf-8"), SWEEP_YAML)

    def begin(self, stage: Stage) -> tuple[str, Mirror | None]:
        """The stage's child run, made or resumed, and what keeps its metrics in step with the folder; none while the tracker is away."""
        if self.is_away():
            return "", None
        try:
            opened = self.open_run(stage)
        except TrackingError as error:  # said when the stage ends, unless it is back by then
            self.note(error)
            return "", None
        self.pay_all()
        return opened

    def open_run(self, stage: Stage, cached: bool = False) -> tuple[str, Mirror]:
        """As `begin`. Raises TrackingError."""
        tags = self.environment | self.paper
        tags |= {
            "lit_long.variant": ", ".join(dict.fromkeys(trial.variant for trial in self.plan.users(stage))),
            "lit_long.stage": stage.name,
            "lit_long.kind": stage.config.kind,
            FOLDER: str(stage.folder),
            "lit_long.seed": str(stage.config.seed),
            MEMBER: self.plan.key,
        }
        if stage.done and (kernels := read_result(stage.folder).get("attention")):  # chosen where it ran
            tags["lit_long.attention"] = kernels
        settings = stage.settings() | {"identity": stage.key}
        run = self.tracker.begin(
            stage.key, run_name(self.plan, stage), params=settings, tags=tags, parent=self.parent, cached=cached
        )
        if run and not cached:
            where = {"run": run, "experiment": self.plan.sweep.experiment, "uri": self.tracker.where}
            write_atomically(stage.folder / MLFLOW_RUN, json.dumps(where) + "\n")
        return run, Mirror(self.tracker, run, stage.folder / "metrics.jsonl")

    def end(self, stage: Stage, run: str, mirror: Mirror | None, status: str) -> str:
        """Final metrics, tags, settings and status, of a stage that ran now; what `begin` returned is passed on. Returns why they are owed, or ""."""

        def write() -> None:
            found = run, mirror
            if mirror is None or status == "FINISHED":  # again, for the tags that only its result has
                opened = self.open_run(stage)
                found = found if mirror and opened[0] == run else opened  # another run where somebody has deleted it
            self.complete(stage, *found, status)

        self.owed[stage.identity] = write
        if self.is_away():
            return self.why
        if not (why := self.pay(stage.identity)):
            self.pay_all()
        return why

    def pay(self, identity: str) -> str:
        """Write what is owed of one stage. Returns why the tracker did not take it, or ""."""
        write = self.owed.pop(identity)  # what fails otherwise is tried no more
        try:
            write()
        except TrackingError as error:
            self.owed = {identity: write} | self.owed  # the others are tried before it
            self.note(error)
            return str(error)
        return ""

    def pay_all(self) -> str:
        """Write all that is owed, the latest first, unless the tracker is away. Returns what it said last, or ""."""
        why = ""
        for identity in reversed(list(self.owed)):
            why = self.pay(identity) or why
            if self.is_away():
                break
        return why

    def note(self, error: TrackingError) -> None:
        if isinstance(error, TrackerAwayError):
            self.why, self.ask_at = str(error), time.monotonic() + AWAY_SECONDS

    def is_away(self) -> bool:
        """Whether the tracker was away a moment ago."""
        return time.monotonic() < self.ask_at

    def complete(self, stage: Stage, run: str, mirror: Mirror, status: str) -> None:
        mirror.sync(final=True)
        if status == "FINISHED":
            final = final_metrics(read_result(stage.folder))
            self.tracker.metrics(run, final)
            self.show(stage, final)
            if stage.config.kind != "data":
                data = read_result(stage.store) if stage.store and is_done(stage.store) else {}
                self.tracker.dataset(
                    run,
                    "+".join(stage.config.data.sources) or stage.config.data.corpus.name,
                    data.get("digest", ""),
                    "training" if stage.config.kind == "train" else "evaluation",
                )
            self.tracker.text(run, yaml.safe_dump(stage.settings(), sort_keys=False), "config.yaml")
        self.tracker.finish(run, status)

    def cached(self, stage: Stage) -> str:
        """A stage that was done before: its child run, light when its history lies under another sweep. Returns why it is owed, or ""."""
        away, self.owed[stage.identity] = bool(self.owed) or self.is_away(), partial(self.complete_cached, stage)
        return "" if away else self.pay(stage.identity)

    def complete_cached(self, stage: Stage) -> None:
        final = final_metrics(read_result(stage.folder))
        if self.tracker.recorded(stage.key, self.parent, final, {FOLDER: str(stage.folder)}):
            self.show(stage, final)
            return
        run, mirror = self.open_run(stage, cached=True)
        self.complete(stage, run, mirror, "FINISHED")

    def show(self, stage: Stage, final: dict[tuple[str, int], float]) -> None:
        """Let the sweep's page have columns for what an evaluation measured."""
        names = dict.fromkeys(name for name, _ in final)
        if stage.config.kind == "evaluate" and names.keys() - self.measured.keys():
            self.measured |= names
            self.where = self.tracker.show(self.plan.key, self.measured)

    def close(self, status: str, files: Sequence[Path] = (), figures: Sequence[Path] = ()) -> None:
        """The report's files and figures, if there is one, and what it was made of to the parent; then its status.

        Raises:
            TrackingError: the record of a stage, or of the sweep, is not whole.
        """
        self.ask_at = 0.0  # the last time to ask
        why = self.pay_all()
        if files:
            self.results()
        for file in files:
            self.tracker.artifact(self.parent, file)
        for figure in figures:
            self.tracker.artifact(self.parent, figure, "figures")
        self.tracker.finish(self.parent, status)
        if why:
            raise TrackingError(why)

    def results(self) -> None:
        """What a report is made of (`fetch_sweep`): the sweep's trials, and the results of its stages; null for those that have none."""
        found = {s.folder.name: read_result(s.folder) if s.done else None for s in self.plan.stages if s.folder.is_dir()}
        self.tracker.text(self.parent, json.dumps(found), RESULTS)
        self.tracker.artifact(self.parent, self.plan.folder / SWEEP_JSON)


def final_metrics(result: dict[str, Any]) -> dict[tuple[str, int], float]:
    """``result.json`` as metrics, by (name, step)."""
    if result["kind"] == "evaluate":
        return metrics_of([Measurement.from_row(row) for row in result["measurements"]])
    numbers = {key: value for key, value in result.items() if isinstance(value, (int, float))}
    return {(f"result/{key}", 0): value for key, value in numbers.items()}


def sweep_name(plan: Plan) -> str:
    """Of the parent run: experiment, scale if there are several, and how much was swept."""
    variants, seeds = ({getattr(trial, key) for trial in plan.trials} for key in ("variant", "seed"))
    counted = ", ".join(f"{len(some)} {word}{'s' * (len(some) > 1)}" for some, word in ((variants, "variant"), (seeds, "seed")))
    return " | ".join(filter(None, (plan.sweep.experiment, plan.sweep.scale, counted)))


def run_name(plan: Plan, stage: Stage) -> str:
    """Of a stage's run. The stage's name is left out where trials have only one; the seed, where several share the stage."""
    users = plan.users(stage)
    variants, mine = ({trial.variant: None for trial in trials} for trials in (plan.trials, users))
    shared = len(mine) == len(variants) and (len(variants) > 1 or stage.config.kind == "data")
    alone = len(set(plan.trials[0].stages) - {CORPUS}) == 1 and stage.config.kind != "data"
    words = " ".join(filter(None, ("" if alone else stage.name, tokens(stage.config))))
    seed = f"seed {stage.config.seed}" if len({trial.seed for trial in users}) == 1 and stage.config.kind != "data" else ""
    return " | ".join(filter(None, ("" if shared else ", ".join(mine), words, seed)))


def tokens(config: StageConfig) -> str:
    """The context that is trained at, or the longest that is measured; "" for data."""
    if config.kind == "data":
        return ""
    evaluation = config.evaluation
    lengths = [*evaluation.lengths, *evaluation.retrieval_lengths, *evaluation.passkey_lengths, *evaluation.task_lengths]
    return str(config.context if config.kind == "train" else max(lengths, default=config.model.context))


def record_evaluation(tracker: Tracker, evaluation: Evaluation, figures: list[Path]) -> None:
    """Write the evaluation's run: its settings, every main score as a metric, the table, the samples and the figures.

    It is found by what was asked of which weights, and written again: nothing is recorded twice.
    """
    from lit_long.stages.scores import EVALUATION, SAMPLES, SCORES

    about = evaluation.about
    tags = environment_tags() | {"lit_long.kind": "evaluate", FOLDER: str(evaluation.folder.resolve())}
    params = {key: about[key] for key in ("model", "suite", "tasks", "lengths", "context", "weights", "position", "precision")}
    run = tracker.begin(evaluation.key, f"{about['suite']} | {Path(about['model']).name}", params=params, tags=tags)
    tracker.metrics(run, metrics_of(evaluation.rows))
    for texts in dict.fromkeys(row.settings["data"] for row in evaluation.rows if row.settings["data"] not in ("", GENERATED)):
        tracker.dataset(run, "texts", texts, "evaluation")
    tracker.text(run, json.dumps(about, indent=1), EVALUATION)
    tracker.table(run, [row.to_row() for row in evaluation.rows], SCORES)
    tracker.artifact(run, evaluation.folder / SAMPLES, SAMPLES)
    for figure in figures:
        tracker.artifact(run, figure, "figures")
    tracker.finish(run, "FINISHED")


def record_instruct(tracker: Tracker, folder: Path, manifest: dict[str, Any]) -> None:
    """Write the run of one recipe, or write it again: its counts, and a table of its examples."""
    from lit_long.instruct.pipeline import EXAMPLES

    key = hashlib.sha256(json.dumps(manifest["recipe"], sort_keys=True).encode()).hexdigest()[:16]
    tags = environment_tags() | {"lit_long.kind": "instruct", FOLDER: str(folder.resolve())}
    run = tracker.begin(key, f"instruct | {manifest['generator']}", params=manifest["recipe"], tags=tags)
    counts = {f"instruct/{name}": value for name, value in manifest["counts"].items()}
    critique = {f"critique/{name}": float(value) for name, value in (manifest["critique"] or {}).items() if value is not None}
    tracker.metrics(run, {(name, manifest["counts"]["asked"]): value for name, value in (counts | critique).items()})
    tracker.dataset(run, "documents", manifest["recipe"]["data"]["digest"], "generation")
    tracker.text(run, json.dumps(manifest, indent=1, ensure_ascii=False), "manifest.json")
    rows = [json.loads(line) for line in lines_of((folder / EXAMPLES).read_text(encoding="utf-8"))]
    if rows:
        tracker.table(run, [row | {"failed": " ".join(row["failed"])} for row in rows], "examples.json")
    tracker.finish(run, "FINISHED")


def record_theory(
    tracker: Tracker, settings: dict[str, Any], schemes: list[dict[str, Any]], files: list[Path], figures: Path
) -> None:
    """Write the run of one analysis: it is found again when the same is analysed again."""
    run = tracker.begin(key := digest(settings, 8), f"theory {key}", params=settings, tags=environment_tags())
    names = ("granularity", "adaptation", "adaptation_mean", "attention_factor")
    tracker.metrics(run, {(f"{name}/{row['scheme']}", 0): row[name] for row in schemes for name in names})
    for file in files:
        tracker.artifact(run, file)
    tracker.artifact(run, figures, "figures")
    tracker.finish(run, "FINISHED")
