"""Stages that go on from within their parent's run, or measure it there: its data from there on, its weights, and what is refused before anything runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_long.config import (
    CorpusConfig,
    CurriculumConfig,
    DataConfig,
    EvaluationConfig,
    LayersConfig,
    ModelConfig,
    OptimConfig,
    StageConfig,
    TrainerConfig,
    UserError,
    plain,
    read_command,
)
from lit_long.config.schema import PhaseConfig, ValidationConfig
from lit_long.config.updates import first_update, number_of_updates
from lit_long.data.token_store import open_store
from lit_long.evaluation.perplexity import text_measurements
from lit_long.model.llama import Llama
from lit_long.planning.flops import stage_flops
from lit_long.positions.layers import build_layers
from lit_long.pretrained.weights import WEIGHTS, read_checkpoint
from lit_long.stages.costs import job_of
from lit_long.stages.folder import run_digest, write_stage
from lit_long.stages.identity import RELEVANT, identity_settings
from lit_long.stages.plan import make_plan
from lit_long.stages.resolve import resolve_stage
from lit_long.stages.run import run_stage
from tests.integration.mini import losses

UPDATES = 8
BASE = StageConfig(
    model=ModelConfig(vocab_size=1024, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, d_ffn=64, context=128),
    position={"scheme": "rope", "base": 10_000.0},
    context=128,
    tokens=UPDATES * 512,
    tokens_per_update=512,
    seed=3,
    data=DataConfig(corpus=CorpusConfig(vocab_size=1024), weights={"code": 0.6, "retrieval": 0.4}),
    curriculum=CurriculumConfig([PhaseConfig(until=0.75, scale=0.5, weights={"code": 1.0}), PhaseConfig(until=1.0)]),
    optim=OptimConfig(lr=1e-2, min_lr_ratio=1.0, warmup_fraction=0.0),
    validation=ValidationConfig(times=0),
    trainer=TrainerConfig(precision="32-true", threads=1, milestones=[0.5]),
)


def branch(share: float, **changes: object) -> StageConfig:
    """A resolved branch of it, whose own settings of the run would be others."""
    own = replace(BASE, parent="base", branch=share, tokens=1, context=64, seed=0, curriculum=CurriculumConfig())
    model = replace(BASE.model, **changes.pop("model", {}))
    return resolve_stage(replace(own, model=model, **changes), BASE, [], "x.yaml: stages.drop")


def run(config: StageConfig, folder: Path, store: Path, parent: Path | None = None) -> Path:
    folder.mkdir()
    settings = {name: plain(getattr(config, name)) for name in ("kind", "parent", *RELEVANT[config.kind])}
    write_stage(folder, folder.name, settings, store, parent)
    run_stage(folder, lambda message, done: None)
    return folder


@pytest.fixture(scope="module")
def stages(store, tmp_path_factory):
    """A folder with the store, and ``base``, trained to its end."""
    folder = tmp_path_factory.mktemp("stages")
    shutil.copytree(store.folder, folder / "store")
    run(BASE, folder / "base", folder / "store")
    return folder


def test_from_the_midst(stages):
    """With nothing changed, the loss of the branch's first update is that of the parent's next one, to the bit; the data go on through a phase's end."""
    folder = run(branch(0.5), stages / "same", stages / "store", stages / "base")
    whole, rest = losses(stages / "base"), losses(folder)
    assert len(rest) == 4 and rest[0] == whole[4] and rest[1:] != whole[5:]  # its optimizer begins anew
    rows = [
        [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()] for place in (stages / "base", folder)
    ]
    counted = [[row["data/retrieval/tokens"] for row in steps] for steps in rows]
    assert counted[1] == counted[0][4:]  # none before the last phase, which is the run's
    assert json.loads((folder / "result.json").read_text())["tokens"] == 4 * 512


def test_from_the_beginning(stages):
    folder = run(branch(0), stages / "again", stages / "store", stages / "base")
    assert losses(folder) == losses(stages / "base")
    assert "parent_run" not in json.loads((folder / "result.json").read_text())  # the base started from nothing


def test_positions_dropped_and_norms_switched_on(stages):
    """Norms begin at 1, all else where the parent was; position and norms change what is computed."""
    nope = {"scheme": "nope"}
    still = OptimConfig(lr=0.0, weight_decay=0.0)
    config = branch(0.5, position=nope, model={"qk_norm": "layer"}, optim=still)
    folder = run(config, stages / "dropped", stages / "store", stages / "base")
    assert json.loads((folder / "result.json").read_text())["parent_run"] == run_digest(stages / "base") != ""
    found = load_file(folder / WEIGHTS)
    before = dict(read_checkpoint(stages / "base" / "checkpoints" / "step-00000004.ckpt"))
    norms = [name for name in found if name.endswith(("q_norm.weight", "k_norm.weight"))]
    assert len(norms) == 4 and all(found[name].eq(1).all() for name in norms)
    assert all(torch.equal(found[name], before[name]) for name in before) and len(found) == len(before) + 4
    unnormed = run(branch(0.5, position=nope, optim=still), stages / "unnormed", stages / "store", stages / "base")
    assert len({losses(stages / "base")[4], losses(folder)[0], losses(unnormed)[0]}) == 3


def test_an_evaluation_of_a_checkpoint(stages):
    """What is measured is what the run had learned by then, under the parent's positions, and has an identity of its own."""
    asked = EvaluationConfig(domains=["code"], lengths=[128], sequences=2)

    def measure(share: float, name: str) -> dict:
        own = StageConfig(kind="evaluate", parent="base", branch=share, evaluation=asked)
        run(resolve_stage(own, BASE, [], "x.yaml: evaluate"), stages / name, stages / "store", stages / "base")
        return json.loads((stages / name / "result.json").read_text())["measurements"]

    midst, end = measure(0.5, "midst"), measure(1.0, "end")
    model = Llama(BASE.model, build_layers(LayersConfig(), BASE.position, 16))
    model.load_state_dict(dict(read_checkpoint(stages / "base" / "checkpoints" / "step-00000004.ckpt")))
    then = text_measurements(model.eval(), open_store(stages / "store"), asked, torch.device("cpu"), lambda tokens: None)
    assert midst == [row.to_row() for row in then] and midst != end


def test_what_it_has_of_its_parent():
    config = branch(0.5)
    assert (config.context, config.seed, config.data, config.curriculum) == (128, 3, BASE.data, BASE.curriculum)
    assert (first_update(config), number_of_updates(config)) == (4, 4)
    assert first_update(branch(0)) == 0 and first_update(BASE) == 0 and number_of_updates(BASE) == UPDATES
    assert "branch" not in identity_settings(BASE) and identity_settings(config)["branch"] == 0.5
    measured = replace(StageConfig(kind="evaluate"), branch=0.5)
    assert "branch" not in identity_settings(replace(measured, branch=1.0)) and identity_settings(measured)["branch"] == 0.5
    assert stage_flops(branch(0)) == stage_flops(BASE)
    longer = replace(BASE, curriculum=CurriculumConfig(), tokens=BASE.tokens // 4)  # two updates of 128 tokens, and two of 64
    shorter = replace(longer, context=64)
    assert stage_flops(config) == pytest.approx(stage_flops(longer) + stage_flops(shorter))
    assert (job_of(config, "x").tokens, job_of(config, "x").phases) == (4 * 512, ((0.5, 64), (0.5, 128)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stages.extend.tokens=1M"], "stages.extend.branch=0.5: tokens is that of base, whose run it goes on with"),
        (["stages.extend.branch=0.25"], r"branch=0.25: base keeps no checkpoint there; stages.base.trainer.milestones=\[0.25\]"),
        (["base=shipped"], "needs a parent, a stage that is trained here: base=train"),
        (["stages.extend.model.d_ffn=64"], "branch=0.5: model.d_ffn=64 is not that of base, 352"),
        (["stages.extend.adapter=lora"], "may be a branch of another stage or train an adapter"),
        (["stages.evaluate.branch=0.5"], "stages.evaluate.branch=0.5: neither it nor extend may be a branch of another stage"),
        (["stages.evaluate.parent=base", "stages.evaluate.branch=0.25"], r"base keeps no checkpoint there; .*milestones=\[0.25\]"),
        (["stages.evaluate.parent=base", "stages.evaluate.branch=0"], "nothing is trained there yet; measure what base starts from"),
        (["stages.evaluate.parent=base", "stages.evaluate.branch=0.5", "base=shipped"], "needs a parent, a stage that is trained here"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, words, message):
    (tmp_path / "x.yaml").write_text(EXPERIMENT)
    with pytest.raises(UserError, match=message):
        make_plan(read_command([f"experiment={tmp_path / 'x.yaml'}", f"root={tmp_path}", "dry_run=true", *words]))


EXPERIMENT = """
model: mini
data: builtin
stages:
  base: {recipe: mini, trainer: {milestones: [0.5]}}
  extend: {parent: base, branch: 0.5, position: nope}
  evaluate: {kind: evaluate, parent: extend}
evaluation: {domains: [docs], lengths: [256]}
base: train
"""


def test_a_parent_that_ended_without_that_checkpoint(tmp_path):
    """Found before anything runs; one that has it, and one that is still to be trained, are planned."""
    (tmp_path / "x.yaml").write_text(EXPERIMENT)
    words = [f"experiment={tmp_path / 'x.yaml'}", f"root={tmp_path}", "dry_run=true", "base=train"]
    base = make_plan(read_command(words)).trials[0].stages["base"]
    base.folder.mkdir(parents=True)
    (base.folder / "DONE").touch()
    with pytest.raises(
        UserError, match=r"step-00002048.ckpt: is not there, and extend starts from it.*Delete .* to train it again"
    ):
        make_plan(read_command(words))
    (base.folder / "checkpoints").mkdir()
    (base.folder / "checkpoints" / "step-00002048.ckpt").touch()
    assert make_plan(read_command(words)).trials[0].stages["extend"].config.position == {"scheme": "nope"}
