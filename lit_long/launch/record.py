"""How a sweep appears in MLflow: a parent run, a child per stage, the table and figures on the parent.

Everything comes from the stages' folders, so whatever is missing in MLflow (a killed sweep, a lost database) is written again
by the next command.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from lit_long.config import project_root
from lit_long.evaluation.measurement import Measurement, mlflow_metrics
from lit_long.files import write_atomically
from lit_long.launch.names import run_name, sweep_name
from lit_long.report import Report
from lit_long.stages.folder import is_done, read_result
from lit_long.stages.lineage import MLFLOW_RUN
from lit_long.stages.plan import Plan, Stage
from lit_long.tracking import MEMBER, Mirror, NoTracker, Tracker, default_uri, environment_tags, flatten
from lit_long.tracking.fetch import RESULTS, SWEEP_JSON


def tracking_uri(plan: Plan) -> str:
    """``tracking.uri``, or the SQLite file below the root."""
    return plan.sweep.tracking.uri or default_uri(plan.root)


def open_tracker(plan: Plan) -> Tracker:
    """The experiment's tracker, its store checked; one that does nothing when ``tracking.enabled=false``."""
    if not plan.sweep.tracking.enabled:
        return NoTracker()
    return Tracker.open(tracking_uri(plan), plan.sweep.experiment, plan.root / "mlflow" / "artifacts")


class Record:
    """The runs of one sweep."""

    def __init__(self, tracker: Tracker, plan: Plan) -> None:
        self.tracker, self.plan, self.environment = tracker, plan, environment_tags()
        tracker.reconcile()
        params = {"grid": plan.sweep.grid, "trials": len(plan.trials), "stages": len(plan.stages)}
        table = plan.sweep.report.paper_table
        self.paper = {"paper.table": table} if table else {}
        tags = self.environment | self.paper
        tags |= {"lit_long.folder": str(plan.folder), "mlflow.note.content": plan.sweep.description}
        self.parent = tracker.sweep(plan.key, sweep_name(plan), params=flatten(params), tags=tags)
        self.measured: dict[str, None] = {}  # names of what evaluations recorded, in order
        self.page = tracker.show(plan.key, self.measured)
        tracker.text(self.parent, (plan.folder / "sweep.yaml").read_text(encoding="utf-8"), "sweep.yaml")

    def begin(self, stage: Stage, cached: bool = False) -> tuple[str, Mirror]:
        """The stage's child run, made or resumed, and what keeps its metrics in step with the folder."""
        tags = self.environment | self.paper
        tags |= {
            "lit_long.variant": ", ".join(dict.fromkeys(trial.variant for trial in self.plan.users(stage))),
            "lit_long.stage": stage.name,
            "lit_long.kind": stage.config.kind,
            "lit_long.folder": str(stage.folder),
            "lit_long.seed": str(stage.config.seed),
            MEMBER: self.plan.key,
        }
        run = self.tracker.stage(
            self.parent,
            stage.key,
            run_name(self.plan, stage),
            params=flatten(stage.settings() | {"identity": stage.key}),
            tags=tags,
            cached=cached,
        )
        if run and not cached:
            where = {"run": run, "experiment": self.plan.sweep.experiment, "uri": tracking_uri(self.plan)}
            write_atomically(stage.folder / MLFLOW_RUN, json.dumps(where) + "\n")
        return run, self.tracker.mirror(run, stage.folder / "metrics.jsonl")

    def end(self, stage: Stage, run: str, mirror: Mirror, status: str) -> None:
        """Final metrics, settings and status."""
        mirror.sync(final=True)
        if status == "FINISHED":
            final = final_metrics(read_result(stage.folder))
            self.tracker.metrics(run, final)
            if stage.config.kind == "evaluate":
                self.measured |= dict.fromkeys(name for name, _ in final)
                self.page = self.tracker.show(self.plan.key, self.measured)
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

    def cached(self, stage: Stage) -> None:
        """A stage that was done before: its child run, light when its history lies under another sweep."""
        run, mirror = self.begin(stage, cached=True)
        self.end(stage, run, mirror, "FINISHED")

    def close(self, status: str, report: Report | None = None) -> None:
        """Table and figures to the parent, then its status."""
        if report is not None:
            self.results()
            for file in report.files:
                self.tracker.artifact(self.parent, file)
            for figure in report.figures:
                self.tracker.artifact(self.parent, figure, "figures")
        self.tracker.finish(self.parent, status)

    def results(self) -> None:
        """What a report is made of (`fetch_sweep`): the sweep's trials, and the results of its stages; null for those that have none."""
        found = {s.folder.name: read_result(s.folder) if s.done else None for s in self.plan.stages if s.folder.is_dir()}
        self.tracker.text(self.parent, json.dumps(found), RESULTS)
        self.tracker.artifact(self.parent, self.plan.folder / SWEEP_JSON)


def final_metrics(result: dict[str, Any]) -> dict[tuple[str, int], float]:
    """``result.json`` as MLflow metrics, by (name, step)."""
    if result["kind"] == "evaluate":
        return mlflow_metrics([Measurement.from_row(row) for row in result["measurements"]])
    numbers = {key: value for key, value in result.items() if isinstance(value, (int, float))}
    return {(f"result/{key}", 0): value for key, value in numbers.items()}


def address(plan: Plan, page: str) -> str:
    """Where a browser finds ``page`` of the sweep's record, and what must run for it."""
    uri = tracking_uri(plan)
    if uri.startswith("http"):
        return f"{uri.rstrip('/')}/{page}"
    command = f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
    if uri == default_uri(plan.root) and (project_root() / "mlflow" / "serve.sh").is_file():
        command = "make ui" if plan.root == project_root() else f"make ui ROOT={shlex.quote(str(plan.root))}"
    return f"http://127.0.0.1:5000/{page}  (while `{command}` runs)"


def folder_name(plan: Plan, path: Path) -> str:
    """``path`` as a user would type it: relative to the working directory when it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
