"""Every experiment in experiments/, at every scale: its plan, its models (on the meta device), its encoders, and its tables."""

from __future__ import annotations

import functools

import huggingface_hub.constants
import pytest
import torch
import yaml

from lit_long.config import read_command
from lit_long.evaluation.registry import BUILT_IN
from lit_long.evaluation.suites import TASK_REGISTRY
from lit_long.model.llama import Llama
from lit_long.planning.flops import parameters
from lit_long.positions import build
from lit_long.stages.plan import make_plan
from tests.integration.mini import REPOSITORY

FILES = {file.stem: yaml.safe_load(file.read_text()) for file in sorted((REPOSITORY / "experiments").glob("*.yaml"))}
CASES = [(name, scale) for name, content in FILES.items() for scale in content.get("scales", [""])]
# Published numbers of parameters, without embeddings counted twice: model cards of Llama and Llama 2.
SIZES = {"7b": 6.74e9, "13b": 13.0e9, "34b": 33.7e9, "70b": 69.0e9}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@functools.cache
def planned(name, scale):
    return make_plan(read_command([f"experiment={name}", *([f"scale={scale}"] if scale else []), "dry_run=true"]))


@pytest.mark.parametrize(("name", "scale"), CASES, ids=lambda value: value or "-")
def test_every_experiment_builds(name, scale):
    plan = planned(name, scale)
    assert plan.trials and plan.stages
    for reason in plan.unseen:  # at the paper's scale weights and data lie elsewhere; nothing else may be amiss
        assert "model.init" in reason or "data.sources" in reason or "data.corpus.tokenizer" in reason, reason
    shapes = {}
    for stage in plan.stages:
        config = stage.config
        if config.kind == "data":
            continue
        encoder = build(config.position, config.model.head_dim)
        lengths = [*config.evaluation.lengths, *config.evaluation.retrieval_lengths, *config.evaluation.task_lengths]
        longest = config.context if config.kind == "train" else max(lengths)
        rotation = encoder.rotation(torch.tensor([[0, longest - 1]]), longest)
        assert torch.isfinite(rotation.cos_q).all()
        shapes[str(config.model)] = config
    for config in shapes.values():
        with torch.device("meta"):
            model = Llama(config.model, build(config.position, config.model.head_dim))
        assert sum(p.numel() for p in model.parameters()) == parameters(config.model)


@pytest.mark.parametrize(
    ("name", "scale"), [case for case in CASES if FILES[case[0]].get("report")], ids=lambda value: value or "-"
)
def test_published_columns_are_of_what_is_measured(name, scale):
    """A measurement beside the paper's must be one that the stage makes, at that scale or at another."""
    plan = planned(name, scale)
    measured = {m.metric.partition(".")[0] for table in plan.sweep.report.published for m in table.measured.values()}
    if scale in ("paper", ""):
        tasks = {task for stage in plan.stages if stage.config.kind == "evaluate" for task in stage.config.evaluation.tasks}
        assert measured - {"paper_average", "perplexity", "retrieval_accuracy", "query_scale"} <= tasks


def test_the_papers_sizes():
    plan = planned("main_results", "paper")
    for trial in plan.trials:
        extend = trial.stages["extend"].config
        assert parameters(extend.model) == pytest.approx(SIZES[trial.variant], rel=0.01)
        assert extend.tokens == 100_000 * extend.tokens_per_update
        assert extend.context == (32_768 if trial.variant in ("7b", "13b") else 16_384)
        assert extend.position["base"] == 500_000


def test_models_are_trained_once_for_two_tables():
    """prompt_length and scaling_law measure what main_results trained."""
    trained = {
        trial.variant: [s.identity for s in trial.stages.values() if s.config.kind == "train"]
        for trial in planned("main_results", "paper").trials
    }
    for name in ("prompt_length", "scaling_law"):
        for trial in planned(name, "paper").trials:
            assert [s.identity for s in trial.stages.values() if s.config.kind == "train"] == trained[trial.variant]


@pytest.mark.parametrize("scale", ["laptop", "one_gpu", "paper"])
def test_olmpools_designs_have_as_many_parameters(scale):
    sizes = {parameters(stage.config.model) for stage in planned("olmpool", scale).stages if stage.name == "base"}
    assert max(sizes) < 1.01 * min(sizes)


def test_dropes_arms_branch_from_one_run():
    """A run for each seed, of which every arm is a part or a branch; the untrained arms train nothing more."""
    trained = {}
    for trial in planned("drope", "laptop").trials:
        stages = {stage.name: stage for stage in trial.stages.values()}
        trained.setdefault(trial.seed, set()).add(stages["base"].identity)
        above = stages["recalibrate"] if "recalibrate" in stages else stages["base"]
        assert stages["evaluate"].parent.name == above.folder.name  # of what is archived, the archive's
        assert ("recalibrate" in stages) == ("drope" in trial.variant or "trained" in trial.variant)
    assert sorted(map(len, trained.values())) == [1, 1, 1]


def test_the_names_of_our_tasks():
    assert set(BUILT_IN) == set(TASK_REGISTRY)
