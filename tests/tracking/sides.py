"""Trackers as tests see them: made below a root, and read back by somebody else's code, MLflow's client or pandas."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas

from lit_long.config import TrackingConfig
from lit_long.tracking import Tracker, open_tracker


class Side:
    """One tracker below ``root``. ``config``: the settings of tracking.…"""

    config: TrackingConfig

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, experiment: str = "position tiny") -> Tracker:
        return open_tracker(self.config, experiment, self.root)


class MlflowSide(Side):
    config = TrackingConfig()

    @property
    def client(self):
        import mlflow

        return mlflow.MlflowClient(tracking_uri=f"sqlite:///{self.root}/mlflow/mlflow.db")

    def points(self, run: str, name: str = "train/loss") -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in self.client.get_metric_history(run, name)]

    def time(self, run: str, name: str) -> float:
        """Of the metric's first point."""
        return self.client.get_metric_history(run, name)[0].timestamp / 1000

    def status(self, run: str) -> str:
        return self.client.get_run(run).info.status

    def name(self, run: str) -> str:
        return self.client.get_run(run).info.run_name

    def params(self, run: str) -> dict[str, str]:
        return self.client.get_run(run).data.params

    def tags(self, run: str) -> dict[str, str]:
        return self.client.get_run(run).data.tags

    def cached(self, run: str) -> tuple[bool, bool]:
        """Whether the run is marked as cached, and whether it points to another one."""
        tags = self.tags(run)
        return tags["cached"] == "true", "lit_long.source_run" in tags

    def holder(self, run: str) -> str:
        """Id of the run that holds the history."""
        return self.tags(run)["lit_long.source_run"]

    def count(self) -> int:
        experiment = self.client.get_experiment_by_name("position tiny")
        return len(self.client.search_runs([experiment.experiment_id]))

    def forget(self, run: str) -> None:
        self.client.delete_run(run)

    def own(self, run: str, **owner: str) -> None:
        """Change who owns the run."""
        for key, value in owner.items():
            self.client.set_tag(run, f"lit_long.{key}", value)

    def artifacts(self, run: str) -> Path:
        return self.root / "mlflow" / "artifacts" / run / "artifacts"

    def table(self, run: str, file: str) -> list[dict]:
        content = json.loads((self.artifacts(run) / file).read_text())
        return [dict(zip(content["columns"], row)) for row in content["data"]]

    def datasets(self, run: str) -> list[tuple[str, str, str]]:
        inputs = self.client.get_run(run).inputs.dataset_inputs
        return [(one.dataset.name, one.dataset.digest[:36], one.tags[0].value) for one in inputs]


class CsvSide(Side):
    config = TrackingConfig(name="csv")

    def folder(self, run: str) -> Path:
        (found,) = (self.root / "tracking").glob(f"*/{run}")
        return found

    def points(self, run: str, name: str = "train/loss") -> list[tuple[int, float]]:
        file = self.folder(run) / "metrics.csv"
        if not file.exists():
            return []
        frame = pandas.read_csv(file, float_precision="round_trip")
        return [(int(step), value) for step, value in frame[frame.name == name][["step", "value"]].itertuples(index=False)]

    def time(self, run: str, name: str) -> float:
        frame = pandas.read_csv(self.folder(run) / "metrics.csv", float_precision="round_trip")
        return float(frame[frame.name == name].iloc[0].time)

    def row(self, run: str) -> dict:
        frame = pandas.read_csv(self.folder(run).parent / "runs.csv", dtype=str, keep_default_na=False)
        (row,) = frame[frame.run == run].to_dict("records")
        return row

    def status(self, run: str) -> str:
        return self.row(run)["status"]

    def name(self, run: str) -> str:
        return self.row(run)["name"]

    def params(self, run: str) -> dict[str, str]:
        nested = pandas.json_normalize(json.loads((self.folder(run) / "params.json").read_text())).to_dict("records")
        return {
            key: value if isinstance(value, str) else json.dumps(value) for key, value in (nested[0] if nested else {}).items()
        }

    def tags(self, run: str) -> dict[str, str]:
        return json.loads((self.folder(run) / "tags.json").read_text())

    def cached(self, run: str) -> tuple[bool, bool]:
        row = self.row(run)
        return row["cached"] == "true", row["source_run"] != ""

    def holder(self, run: str) -> str:
        return self.row(run)["source_run"].rpartition("/")[2]

    def count(self) -> int:
        return len(pandas.read_csv(self.root / "tracking" / "position tiny" / "runs.csv"))

    def forget(self, run: str) -> None:
        shutil.rmtree(self.folder(run))

    def own(self, run: str, **owner: str) -> None:
        file = self.folder(run).parent / "runs.csv"
        frame = pandas.read_csv(file, dtype=str, keep_default_na=False)
        for key, value in owner.items():
            frame.loc[frame.run == run, key] = value
        frame.to_csv(file, index=False)

    def artifacts(self, run: str) -> Path:
        return self.folder(run) / "artifacts"

    def table(self, run: str, file: str) -> list[dict]:
        return pandas.read_csv((self.artifacts(run) / file).with_suffix(".csv")).to_dict("records")

    def datasets(self, run: str) -> list[tuple[str, str, str]]:
        frame = pandas.read_csv(self.folder(run) / "datasets.csv")
        return [(name, digest[:36], context) for name, digest, context in frame.itertuples(index=False)]


SIDES = {"mlflow": MlflowSide, "csv": CsvSide}
