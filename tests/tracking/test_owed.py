"""What a tracker does not take of a stage is owed: what is written later, what is held up by it, and how often the tracker is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_long.config import read_command
from lit_long.stages.plan import Plan, make_plan
from lit_long.stages.sweep_folder import write_sweep
from lit_long.tracking import Mirror, TrackingError, record
from lit_long.tracking.csv import CsvTracker
from lit_long.tracking.record import Record
from lit_long.tracking.tracker import TrackerAwayError
from tests.tracking.sides import SIDES


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Plan:
    """Three stages that train."""
    plan = make_plan(read_command(["base=train", "grid.position=[rope,abf]", f"root={tmp_path_factory.mktemp('owed')}"]))
    plan.stages = [stage for stage in plan.stages if stage.config.kind == "train"]
    write_sweep(plan)
    for stage in plan.stages:
        stage.folder.mkdir(parents=True)
        (stage.folder / "metrics.jsonl").write_text('{"step": 1, "time": 1.0, "train/loss": 2.0}\n')
        (stage.folder / "result.json").write_text(json.dumps({"kind": "train", "train_loss": 2.0}))
        (stage.folder / "DONE").touch()
    return plan


class AwayTracker(CsvTracker):
    """Of CSV files; while ``away``, whatever is asked of it was waited for in vain."""

    away, asked = False, 0

    def _runs(self):
        self.asked += self.away
        if self.away:
            raise TrackerAwayError("the server is down")
        return super()._runs()


@pytest.fixture
def tracker(tmp_path) -> AwayTracker:
    return AwayTracker.open(SIDES["csv"].config, "position tiny", tmp_path)


def statuses(tracker: CsvTracker, plan: Plan) -> list[str]:
    """Of the sweep's stages as recorded; "" of one that is not."""
    with tracker._runs() as runs:
        return [runs.get(f"{plan.key}.{stage.key}", {}).get("status", "") for stage in plan.stages]


@pytest.mark.parametrize("name", SIDES)
def test_a_record_that_is_refused_holds_up_no_other(tmp_path, planned, name):
    """Somebody deletes a stage's run while it runs, and it fails."""
    side = SIDES[name](tmp_path)
    record, (first, second, third) = Record(side.open(), planned), planned.stages[:3]
    opened = record.begin(first)
    side.forget(opened[0])
    beside = record.begin(second)
    refused = record.end(first, *opened, "FAILED")
    assert refused and record.end(second, *beside, "FINISHED") == ""
    run, mirror = record.begin(third)
    assert run and isinstance(mirror, Mirror) and record.end(third, run, mirror, "FINISHED") == ""
    for one in (beside[0], run):
        assert side.status(one) == "FINISHED" and side.points(one) == [(1, 2.0)]
    with pytest.raises(TrackingError) as error:
        record.close("FAILED")
    assert str(error.value) == refused and side.status(record.parent) == "FAILED"


@pytest.mark.parametrize("name", SIDES)
def test_a_run_that_was_deleted_is_made_again_when_its_stage_is_done(tmp_path, planned, name):
    side, stage = SIDES[name](tmp_path), planned.stages[0]
    record = Record(side.open(), planned)
    run, mirror = record.begin(stage)
    side.forget(run)
    assert record.end(stage, run, mirror, "FINISHED") == ""
    again = json.loads((stage.folder / "mlflow.json").read_text())["run"]
    assert side.status(again) == "FINISHED" and side.points(again) == [(1, 2.0)]
    record.close("FINISHED")


def test_a_tracker_that_is_away_is_asked_once_a_minute(tracker, planned, monkeypatch):
    """Each time, the sweep waits for its patience, and so would each stage that Ctrl-C ends."""
    owing, stages = Record(tracker, planned), planned.stages
    opened = [owing.begin(stage) for stage in stages[:2]]
    tracker.away = True
    for stage, (run, mirror) in zip(stages[:2], opened, strict=True):
        assert owing.end(stage, run, mirror, "FINISHED") == "the server is down"
    assert owing.begin(stages[2]) == ("", None) and owing.cached(stages[2]) == ""
    assert owing.end(stages[2], "", None, "FINISHED") == "the server is down" and tracker.asked == 1

    monkeypatch.setattr(record, "AWAY_SECONDS", 0.0)
    owing.ask_at = 0.0  # a minute later
    assert owing.begin(stages[2]) == ("", None) and tracker.asked == 2
    tracker.away = False
    assert owing.begin(stages[2])[0]
    assert statuses(tracker, planned)[:3] == ["FINISHED"] * 3


def test_the_end_of_a_sweep_asks_for_everything(tracker, planned):
    """Though the tracker was away a moment ago, and refuses the record that is tried first."""
    owing, (first, second) = Record(tracker, planned), planned.stages[:2]
    opened = owing.begin(first)
    SIDES["csv"](Path(tracker.where).parent).forget(opened[0])
    beside = owing.begin(second)
    tracker.away = True
    assert owing.end(second, *beside, "FINISHED") == owing.end(first, *opened, "FAILED") == "the server is down"
    tracker.away = False
    with pytest.raises(TrackingError, match="has no run"):
        owing.close("FAILED")
    assert statuses(tracker, planned)[:2] == ["", "FINISHED"]
