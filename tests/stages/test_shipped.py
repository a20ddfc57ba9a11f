"""Stages whose weights came with lit-long: what starts from them, and what they are known by."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

from lit_long.config import UserError, read_command
from lit_long.data.tokenizer import train_tokenizer
from lit_long.stages.archive import RECIPE
from lit_long.stages.identity import recipe
from lit_long.stages.plan import make_plan
from lit_long.stages.sweep_folder import outline
from lit_long.tracking.record import run_name
from tests.pretrained.llamas import random_llama, save

EXPERIMENT = """
model: {vocab_size: 300, d_model: 64, n_layers: 2, n_heads: 4, n_kv_heads: 2, head_dim: 16, d_ffn: 96, context: 128, rope_base: 7000, tie_embeddings: false}
data: {corpus: {vocab_size: 300}}
grid: {position: [rope, abf], seed: [0, 1]}
stages:
  base: {shipped: "mine-s${seed}", position: rope, context: 128, tokens: 1k, tokens_per_update: 256}
  extend: {parent: base, context: 256, tokens: 1k, tokens_per_update: 256}
  evaluate_base: {kind: evaluate, parent: base}
  evaluate: {kind: evaluate, parent: extend}
report: {rows: evaluate_base}
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """The plan of an experiment in a working directory that has shipped weights for two seeds."""
    bases = tmp_path / "experiments" / "bases"
    for seed in (0, 1):
        folder = save(random_llama(seed, vocab=300, rope={"rope_theta": 7000.0}, context=128), bases / f"mine-s{seed}")
        train_tokenizer(["some text, and some more text"], 280).save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text('{"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}')
    (tmp_path / "experiments" / "mine.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)

    def planned(*words):
        return make_plan(read_command(["experiment=mine", *words]))

    for trial in planned("base=train").trials:
        (bases / f"mine-s{trial.seed}" / RECIPE).write_text(json.dumps(recipe(trial.stages["base"].config)))
    return planned


def test_what_follows_starts_from_them(plan, tmp_path):
    found = plan()
    assert {stage.name for stage in found.stages} == {"corpus", "extend", "evaluate_base", "evaluate"}
    for trial in found.trials:
        folder = tmp_path / "experiments" / "bases" / f"mine-s{trial.seed}"
        for stage in (trial.stages["extend"], trial.stages["evaluate_base"]):
            assert (stage.config.model.init, stage.parent, stage.config.parent) == (str(folder), None, None)
            assert stage.config.data.corpus.tokenizer == str(folder)  # the tokens it was trained on
        assert trial.stages["extend"].config.position["scheme"] == trial.variant
        assert trial.stages["evaluate"].parent == trial.stages["extend"].folder
        assert trial.stages["evaluate"].store == trial.stages["extend"].store  # and so on, down the chain
        # A base is measured under the encoder it was trained with, whatever the variant.
        assert (
            trial.stages["evaluate_base"].config.position["scheme"],
            trial.stages["evaluate_base"].config.position["base"],
        ) == (
            "rope",
            7000,
        )
    assert len({stage.identity for stage in found.stages if stage.name == "evaluate_base"}) == 2  # one a seed, for both variants
    assert f"shipped    base s1                                      {tmp_path}/experiments/bases/mine-s1" in outline(found)


def test_they_can_be_trained_anew(plan):
    found = plan("base=train")
    bases = {stage.identity: stage for stage in found.stages if stage.name == "base"}
    assert len(bases) == 2 and not found.shipped
    for trial in found.trials:
        assert trial.stages["extend"].parent == trial.stages["evaluate_base"].parent == trial.stages["base"].folder
        assert not trial.stages["extend"].config.model.init


def test_they_are_known_by_their_content(plan, tmp_path):
    before = {(t.variant, t.seed): t.stages["extend"].identity for t in plan().trials}
    file = tmp_path / "experiments" / "bases" / "mine-s1" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    after = {(t.variant, t.seed): t.stages["extend"].identity for t in plan().trials}
    assert {key for key in before if before[key] != after[key]} == {("rope", 1), ("abf", 1)}


@pytest.mark.parametrize(
    "other",
    ["model.n_layers=3", "stages.base.tokens=2k", "stages.base.optim.lr=1e-4", "data.corpus.vocab_size=290", "grid.seed=[7,8]"],
)
def test_another_recipe_is_trained(plan, other):
    found = plan(other)
    assert len({stage.identity for stage in found.stages if stage.name == "base"}) == 2 and not found.shipped


def test_what_does_not_change_the_weights_keeps_them(plan):
    more = (
        "trainer.precision=32-true",
        "trainer.threads=1",
        "stages.extend.tokens=2k",
        "stages.extend.data.weights.code=1",
        "grid.seed=[0,7]",
    )
    found = plan(*more)
    assert list(found.shipped) == ["base s0"]
    assert [stage.config.seed for stage in found.stages if stage.name == "base"] == [7]


def test_what_makes_no_sense_is_refused(plan, tmp_path):
    with pytest.raises(UserError, match="base=new: must be shipped or train"):
        plan("base=new")
    file = tmp_path / "experiments" / "bases" / "mine-s0" / RECIPE
    text = file.read_text()
    file.write_text(text[:40])
    with pytest.raises(UserError, match=r"mine-s0/recipe.json: cannot be read .*Export the stage anew .*base=train trains it"):
        plan()
    file.unlink()
    with pytest.raises(UserError, match=r"mine-s0/recipe.json: cannot be read"):
        plan()
    plan("base=train")
    changed = json.loads(text)
    changed["settings"]["model"]["n_layers"] = 3
    file.write_text(json.dumps(changed))
    with pytest.raises(
        UserError, match=r"stages.base: the weights in .*mine-s0 are of another shape than its recipe.json says; base=train"
    ):
        plan("model.n_layers=3", "grid.seed=[0]")
    bare = EXPERIMENT.replace('shipped: "mine-s${seed}", ', "")
    (tmp_path / "bare.yaml").write_text(bare)
    with pytest.raises(UserError, match="base=train: no stage of .*bare.yaml has shipped weights"):
        make_plan(read_command(["experiment=bare.yaml", "base=train"]))


def test_a_grid_may_hold_models_with_and_without_shipped_weights(plan):
    """The base of one variant is trained, the other's came along: that trial has no such stage."""
    found = plan("grid.model.n_layers=[2,3]", "position=rope", "seed=0")
    assert [sorted(trial.stages) for trial in found.trials] == [
        ["corpus", "evaluate", "evaluate_base", "extend"],
        ["base", "corpus", "evaluate", "evaluate_base", "extend"],
    ]
    assert "to run     base rope n_layers=3 " in outline(found) and "to run     extend rope n_layers=2 " in outline(found)
    assert [run_name(found, stage) for stage in found.stages if stage.name == "base"] == ["rope n_layers=3 | base 128 | seed 0"]
