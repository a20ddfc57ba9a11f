"""Archived stages: what is written, what a plan takes for done, what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lit_long.config import UserError, project_root, read_command
from lit_long.report.archive import curves, starting_points
from lit_long.report.results import read_sweep
from lit_long.stages.archive import Limits, archive_stages
from lit_long.stages.folder import finish, read_stage, write_stage
from lit_long.stages.plan import make_plan
from lit_long.stages.sweep_folder import outline, write_sweep

EXPERIMENT = """
model: {vocab_size: 300, d_model: 64, n_layers: 2, n_heads: 4, n_kv_heads: 2, head_dim: 16, d_ffn: 96, context: 128}
data: {corpus: {vocab_size: 300}}
grid: {position: [rope, abf]}
stages:
  base: {position: rope, context: 128, tokens: 1k, tokens_per_update: 256}
  extend: {parent: base, context: 256, tokens: 1k, tokens_per_update: 256}
  evaluate: {kind: evaluate, parent: extend}
report: {rows: evaluate}
"""
NUMBERS = torch.arange(50_000, dtype=torch.float32) / 7  # 100 kB in bf16
TRAINED = {"kind": "train", "train_loss": 3.25, "versions": {"torch": "2.13.0"}}
MEASURED = {"kind": "evaluate", "measurements": [{"metric": "perplexity", "domain": "docs", "length": 256, "value": 1 / 3}]}
RESULTS = {"data": {"kind": "data", "digest": "d" * 64}, "train": TRAINED, "evaluate": MEASURED}


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """A function that plans the experiment in a working directory."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    return lambda *words: make_plan(read_command(["experiment=mine", f"root={tmp_path}", *words]))


def ended(stage):
    """As a stage's process leaves its folder."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    write_stage(stage.folder, stage.key, stage.settings(), stage.store, stage.parent)
    if stage.config.kind == "train":
        rows = [{"step": step, "time": 0.0, "train/loss": 6.0 - step} for step in range(1, 5)] + [
            {"step": 4, "val/docs/loss": 2.5}
        ]
        (stage.folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        save_file({"embed_tokens.weight": NUMBERS.clone()}, stage.folder / "weights.safetensors")
    finish(stage.folder, RESULTS[stage.config.kind])


def half(planned):
    """The plan of which one variant has ended, archived and without its folders; and what was said of it."""
    plan = planned()
    write_sweep(plan)
    for stage in plan.trials[0].stages.values():
        ended(stage)
    said = archived(plan)
    shutil.rmtree(plan.root / "runs" / "stages")
    return plan, said


def archived(plan, **limits):
    sweep = read_sweep(plan.folder)
    return archive_stages(curves(sweep), starting_points(sweep), plan.root / "experiments" / "archive", Limits(**limits))


def test_what_is_archived_counts_as_done(planned, tmp_path):
    before, said = half(planned)
    base = before.trials[0].stages["base"]
    assert said.weights == [base.folder.name] and len(said.written) == 4 and not said.left_out
    plan = planned()
    found = plan.trials[1].stages
    assert [stage.archived for stage in plan.trials[0].stages.values()] == [False, True, True, True]  # the data are needed
    assert [stage.done for stage in found.values()] == [False, True, False, False]
    archive = tmp_path / "experiments" / "archive"
    assert found["extend"].parent == found["base"].folder == archive / base.folder.name and found["base"].key == base.identity
    assert [line.split()[0] for line in outline(plan).splitlines()[1:7]].count("archived") == 3
    assert (archive / base.folder.name / "result.json").read_bytes() == (json.dumps(TRAINED, indent=1) + "\n").encode()
    weights = load_file(archive / base.folder.name / "weights.safetensors")["embed_tokens.weight"]
    assert weights.dtype == torch.bfloat16 and torch.equal(weights, NUMBERS.bfloat16())
    curve = json.loads((archive / base.folder.name / "curve.json").read_text())
    assert curve["train/loss"] == [5.0, 4.0, 3.0, 2.0] and curve["validation"] == [{"step": 4, "val/docs/loss": 2.5}]
    about = json.loads((archive / base.folder.name / "archive.json").read_text())
    assert about["versions"] == {"torch": "2.13.0"} and about["weights"] == "bf16"

    # A stage that starts from it finds it, wherever it lies itself.
    extend = found["extend"]
    extend.folder.mkdir(parents=True)
    write_stage(extend.folder, extend.key, extend.settings(), extend.store, extend.parent)
    assert read_stage(extend.folder)[1:] == (found["corpus"].folder, archive / base.folder.name)


def test_what_lies_in_the_checkout_is_named_as_from_its_top(planned, tmp_path):
    shipped = tmp_path / "experiments" / "bases" / "small"
    plan = planned("grid.position=[rope]")
    write_sweep(plan)
    for stage in plan.trials[0].stages.values():
        ended(stage)
    folder = plan.trials[0].stages["evaluate"].folder
    named = yaml.safe_load((folder / "stage.yaml").read_text())
    named["settings"]["model"]["init"] = str(shipped)
    named["settings"]["corpus"] = {"tokenizer": str(shipped)}
    named["settings"]["sources"] = {
        "mine": {"path": str(tmp_path / "experiments" / "texts")},
        "made": {"path": f"{project_root()}/data/made"},
    }
    (folder / "stage.yaml").write_text(yaml.safe_dump(named))
    archived(plan)
    settings = yaml.safe_load((tmp_path / "experiments" / "archive" / folder.name / "stage.yaml").read_text())["settings"]
    assert settings["model"]["init"] == settings["corpus"]["tokenizer"] == "experiments/bases/small"
    assert settings["sources"]["mine"]["path"] == str(tmp_path / "experiments" / "texts")  # the user's own, where they are
    assert settings["sources"]["made"]["path"] == "data/made"


def test_a_finished_folder_wins_over_the_archive_and_this_over_an_unfinished_one(planned):
    before, _ = half(planned)
    base, extend = (before.trials[0].stages[name] for name in ("base", "extend"))
    ended(base)
    (extend.folder / "checkpoints").mkdir(parents=True)
    found = planned().trials[0].stages
    assert found["base"].folder == base.folder and not found["base"].archived
    assert found["extend"].archived and found["extend"].parent == base.folder


def test_where_all_is_archived_not_even_the_data_are_made(planned):
    before, _ = half(planned)
    plan = planned("grid.position=[rope]")
    assert all(stage.archived for stage in plan.stages) and "corpus" in plan.trials[0].stages
    other = planned("grid.position=[rope]", "seed=1")
    assert not any(stage.done for stage in other.stages)  # another identity
    assert before.trials[0].stages["corpus"].identity == other.trials[0].stages["corpus"].identity


def test_a_stage_without_weights_runs_again_where_they_are_needed(planned):
    plan = planned()
    write_sweep(plan)
    for stage in plan.trials[0].stages.values():
        ended(stage)
    base, extend = (plan.trials[0].stages[name] for name in ("base", "extend"))
    said = archived(plan, weights=0.09)
    assert said.left_out == [f"{base.folder.name}: its weights are left out: 0.1 MB in bf16, and weights_mb=0.09"]
    said = archived(plan, archive=(said.bytes + 90_000) / 1e6)
    assert (
        not said.written
        and f"{base.folder.name}: its weights are left out: with their 0.1 MB the archive takes" in said.left_out[0]
    )
    with pytest.raises(UserError, match=r"archive: would take .* and archive_mb=0.001"):
        archived(plan, archive=0.001)

    shutil.rmtree(plan.root / "runs" / "stages")
    found = planned()
    assert not found.trials[0].stages["base"].done and found.trials[0].stages["extend"].archived
    (line,) = [note for note in found.notes if "holds no weights" in note]
    assert base.folder.name in line and "runs again" in line
    assert extend.folder.name not in line
    assert planned("grid.position=[rope]").trials[0].stages["base"].archived  # nothing starts from it

    ended(base)
    assert archived(planned()).weights == [base.folder.name]  # added later
    shutil.rmtree(plan.root / "runs" / "stages")
    assert planned().trials[1].stages["base"].archived


@pytest.mark.parametrize("name", ["weights.safetensors", "result.json", "stage.yaml", "archive.json", "curve.json"])
def test_an_archive_that_was_cut_off_is_named(planned, tmp_path, name):
    before, _ = half(planned)
    folder = tmp_path / "experiments" / "archive" / before.trials[0].stages["base"].folder.name
    whole = (folder / name).read_bytes()
    for content in (whole[: len(whole) // 2], b"", None):
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=name) as refused:
            planned()
        assert str(folder / name) in str(refused.value)
    (folder / name).write_bytes(whole)
    assert planned().trials[0].stages["base"].archived


def test_an_archive_of_another_stage_is_not_taken(planned, tmp_path):
    before, _ = half(planned)
    base, extend = (
        tmp_path / "experiments" / "archive" / before.trials[0].stages[name].folder.name for name in ("base", "extend")
    )
    shutil.rmtree(extend)
    base.rename(extend)
    with pytest.raises(UserError, match=f"is of {base.name}, another stage than its folder says"):
        planned()
