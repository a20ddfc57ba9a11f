"""An adapted stage travels as its adapter: the weights are made again from it and the pretrained ones, where something starts from them."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from lit_long.config import UserError, read_command
from lit_long.launch.display import SweepEta
from lit_long.launch.runner import estimate_bytes, weights_and_checkpoint
from lit_long.report.archive import archived_results, curves, starting_points
from lit_long.report.results import read_sweep
from lit_long.stages.archive import ADAPTED, Limits, archive_stages
from lit_long.stages.folder import write_stage
from lit_long.stages.plan import make_plan
from lit_long.stages.run import run_stage
from lit_long.stages.sweep_folder import outline, write_sweep
from lit_long.training.adapter import restore_adapted
from tests.data.own import TEXTS, write_text
from tests.integration.mini import REPOSITORY

EXPERIMENT = """
model: {{init: {model}}}
adapter: {adapter}
data: {{option: books, sources: {{books: {{path: {text}, split_by: "", min_characters: 0, validation_share: 0.3}}}}}}
trainer: {{option: cpu, threads: 1, precision: 32-true}}
optim: {{lr: 1e-2}}
validation: {{times: 0}}
stages:
  extend: {{context: 64, tokens: 1k, tokens_per_update: 256}}
  evaluate: {{kind: evaluate, parent: extend}}
evaluation: {{domains: [books], lengths: [64], sequences: 2, retrieval_lengths: [], passkey_lengths: []}}
report: {{rows: evaluate}}
"""


def write_experiment(place, adapter="lora"):
    (place / "experiments").mkdir(exist_ok=True)
    settings = {"model": REPOSITORY / "experiments" / "bases" / "mini-s0", "text": place / "text", "adapter": adapter}
    (place / "experiments" / "mine.yaml").write_text(EXPERIMENT.format(**settings))


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """A function that plans the experiment."""
    write_text(tmp_path / "text", TEXTS)
    write_experiment(tmp_path)
    monkeypatch.chdir(tmp_path)
    return lambda *words: make_plan(read_command(["experiment=mine", f"root={tmp_path}", *words]))


def run(stage):
    stage.folder.mkdir(parents=True, exist_ok=True)
    write_stage(stage.folder, stage.key, stage.settings(), stage.store, stage.parent)
    run_stage(stage.folder, lambda *_: None)


def kept(plan, **limits):
    """What was said of the archive of the sweep, whose evaluation is still to run."""
    write_sweep(plan)
    for name in ("corpus", "extend"):
        run(plan.trials[0].stages[name])
    sweep = read_sweep(plan.folder)
    return archive_stages(curves(sweep), starting_points(sweep), plan.root / "experiments" / "archive", Limits(**limits))


def contents(folder, *names):
    return [(folder / name).read_bytes() for name in names]


def test_the_weights_are_made_again_as_they_were(planned, tmp_path):
    before = planned()
    said = kept(before)
    extend = before.trials[0].stages["extend"]
    archive = tmp_path / "experiments" / "archive" / extend.folder.name
    assert said.weights == [extend.folder.name] and json.loads((archive / "archive.json").read_text())["weights"] == "adapter"
    assert not (archive / "weights.safetensors").exists()
    names = ("weights.safetensors", "result.json", "adapter/adapter_model.safetensors", "adapter/adapter_config.json")
    trained, row = contents(extend.folder, *names), archived_results(read_sweep(before.folder))["training"]
    shutil.rmtree(extend.folder)

    plan = planned()
    (line,) = [note for note in plan.notes if extend.folder.name in note]
    assert "made again from" in line
    again = plan.trials[0].stages["extend"]
    assert not again.done and again.folder == extend.folder
    (line,) = [line.split() for line in outline(plan).splitlines() if line.endswith(f"runs/stages/{extend.folder.name}")]
    assert line[:2] == ["to", "restore"] and "FLOPs" not in line
    assert SweepEta(plan.chosen).costs[again.identity] == 0  # which the time to go does not count as training
    assert estimate_bytes(again) == weights_and_checkpoint(again.config)[0]  # it writes no checkpoints
    run(again)
    assert contents(again.folder, *names) == trained and not (again.folder / "checkpoints").exists()
    run(plan.trials[0].stages["evaluate"])
    write_sweep(planned())
    assert archived_results(read_sweep(plan.folder))["training"] == row  # its curve, too
    assert "parent_weights" not in json.loads((plan.trials[0].stages["evaluate"].folder / "result.json").read_text())
    shutil.rmtree(again.folder)
    assert planned().trials[0].stages["extend"].archived  # nothing starts from it any more


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_trained_embeddings_and_norms_travel_too(planned, tmp_path, precision):
    write_experiment(tmp_path, "longlora")
    words = f"trainer.precision={precision}"
    plan = planned(words)
    kept(plan)
    extend = plan.trials[0].stages["extend"]
    trained = contents(extend.folder, "weights.safetensors")
    shutil.rmtree(extend.folder)
    run(planned(words).trials[0].stages["extend"])
    assert contents(extend.folder, "weights.safetensors") == trained


def test_where_checkpoints_within_the_run_are_wanted_it_is_trained(planned):
    plan = planned("trainer.milestones=[0.5]")
    kept(plan)
    extend = plan.trials[0].stages["extend"]
    shutil.rmtree(extend.folder)
    run(planned("trainer.milestones=[0.5]").trials[0].stages["extend"])
    assert list((extend.folder / "checkpoints").iterdir())


def test_an_adapter_beyond_the_limit_is_left_out(planned):
    plan = planned()
    said = kept(plan, weights=0.01)
    assert not said.weights and "MB as an adapter, and weights_mb=0.01" in said.left_out[0]


def test_an_adapter_of_another_model_is_refused(planned, tmp_path):
    plan = planned()
    kept(plan)
    extend = plan.trials[0].stages["extend"]
    file = tmp_path / ADAPTED
    tensors = load_file(extend.folder / "adapter" / "adapter_model.safetensors")
    save_file({name.replace(".layers.", ".layers.9"): tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(UserError, match=r"layers\.9.* is of no weight of"):
        restore_adapted(extend.config, file, tmp_path, "32-true")
