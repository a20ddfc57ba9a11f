"""The paper's own figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lit_long.config import (
    CurriculumConfig,
    EvaluationConfig,
    LayerGroupConfig,
    LayersConfig,
    ModelConfig,
    StageConfig,
    UserError,
)
from lit_long.config.schema import PhaseConfig
from lit_long.planning.flops import parameters, seen, stage_flops, training_flops, windows_of
from lit_long.planning.job import Job, job_layers
from lit_long.planning.paper import paper_runs
from lit_long.planning.speed import computed_again, run_flops
from lit_long.stages.costs import model_of
from tests.planning.jobs import LLAMA_7B, job

PARAMETERS = {  # as Hugging Face's model cards count them; a tied head once
    "llama3.1-8b": 8_030_261_248,
    "llama3.2-1b": 1_235_814_400,
    "mistral-7b": 7_248_023_552,
    "olmo3-7b": 7_298_011_136,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "smollm3-3b": 3_075_098_624,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-34b": 33_743_970_304,
    "llama2-70b": 68_976_648_192,
}


def option(name: str) -> ModelConfig:
    return model_of({"model": {"option": name}}).model


@pytest.mark.parametrize("name", PARAMETERS)
def test_options_are_the_published_models(name):
    """Without a look at weights on the hub."""
    assert parameters(option(name)) == PARAMETERS[name]


def test_table_10_as_printed():
    """LLaMA 2 Long, Table 10, to the last digit."""
    printed = {
        "32k from scratch": "3.783e+22",
        "4k → 32k at 20 %": "3.405e+22",
        "4k → 32k at 40 %": "3.026e+22",
        "4k → 32k at 80 %": "2.270e+22",
    }
    runs = {run.name: run for run in paper_runs() if run.flops}
    assert {name: f"{run.flops_as_printed(option(run.model)):.3e}" for name, run in runs.items()} == printed
    assert {name: f"{run.flops:.3e}" for name, run in runs.items()} == printed


def test_runs_are_the_papers():
    runs = {run.name: run for run in paper_runs()}
    assert runs["position ablation"].tokens == pytest.approx(80e9, rel=0.05)  # "80B"
    assert [runs[f"pretraining {size}"].context for size in ("7B", "13B", "34B", "70B")] == [32_768, 32_768, 16_384, 16_384]
    assert all(runs[f"pretraining {size}"].tokens == pytest.approx(400e9, rel=0.05) for size in ("7B", "13B", "34B", "70B"))


def test_a_curriculum_costs_its_phases():
    plain = job(LLAMA_7B, context=32_768)
    phased = job(LLAMA_7B, context=32_768, phases=((0.8, 4096), (0.2, 32_768)))
    tokens = plain.tokens
    assert run_flops(phased) == pytest.approx(
        training_flops(LLAMA_7B, 0.8 * tokens, 0.8 * tokens * 2048)
        + training_flops(LLAMA_7B, 0.2 * tokens, 0.2 * tokens * 16_384)
    )
    assert run_flops(phased) < 0.75 * run_flops(plain)  # 40 % are saved where causality is ignored


def test_what_is_computed_again_is_what_torch_computes_again():
    """Matrix products of a whole update with and without checkpointing, as torch's own counter has them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from lit_long.model.llama import Llama
    from lit_long.positions import build
    from lit_long.training.memory_trace import make_batch
    from lit_long.training.parallel import parallelize
    from tests.planning.jobs import SMALL

    def products(way: str) -> int:
        each = job(SMALL, checkpointing=way)
        model = Llama(SMALL, build({"scheme": "rope"}, SMALL.head_dim), loss_chunk=10_000)
        model.init_weights(0)
        parallelize(model, None, way)
        with FlopCounterMode(display=False) as counter:
            model(make_batch(each))[0].backward()
        return sum(n for op, n in counter.get_flop_counts()["Global"].items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))

    plain = products("none")
    for way in ("selective", "attention", "full"):
        each = job(SMALL, checkpointing=way)
        attention = SMALL.n_layers * 2 * SMALL.n_heads * SMALL.head_dim * SMALL.context if way == "full" else 0
        assert products(way) - plain == (computed_again(each) - attention) * SMALL.context


def test_a_curriculum_costs_what_its_phases_cost():
    def stage(*phases):
        phases = [PhaseConfig(**phase) for phase in phases]
        return StageConfig(context=32_768, tokens=1000, curriculum=CurriculumConfig(phases))

    whole, short = (stage_flops(StageConfig(context=context, tokens=1000)) for context in (32_768, 4096))
    switched = stage({"until": 0.8, "scale": 0.125}, {"until": 1.0})
    assert stage_flops(switched) == pytest.approx(0.8 * short + 0.2 * whole)
    grown = stage({"until": 1.0, "grow_from": 0.5})
    assert stage_flops(grown) == pytest.approx(stage_flops(StageConfig(context=24_576, tokens=1000)))


def test_windows_save_pairs():
    """T·W − W(W − 1)/2 pairs, counted one by one; windows beyond the text are none; the mean is over layers, and over a curriculum's phases."""
    for length, window in ((100, 1), (100, 7), (100, 99), (8, 3)):
        assert length * seen(length, [window]) == sum(min(token + 1, window) for token in range(length))
    assert seen(100, [100, 1000, None]) == seen(100) == 50
    assert seen(100, [7, None]) == (seen(100, [7]) + seen(100)) / 2
    swan = LayersConfig({"g": LayerGroupConfig(), "l": LayerGroupConfig(window=512)}, ["g", "l", "l", "l"])
    config = StageConfig(context=8192, tokens=8192, layers=swan)
    assert windows_of(swan, 6) == [None, 512, 512, 512, None, 512]
    pairs = 8 * 8192**2 / 2 + 24 * (8192 * 512 - 512 * 511 / 2)
    assert stage_flops(config) == pytest.approx(training_flops(config.model, 8192, pairs / 32))
    phases = CurriculumConfig([PhaseConfig(0.5, layers={"groups": {}, "pattern": []}), PhaseConfig()])
    halves = (seen(8192, windows_of(swan, 32)) + seen(8192)) / 2
    assert stage_flops(replace(config, curriculum=phases)) == pytest.approx(training_flops(config.model, 8192, 8192 * halves))
    short = replace(config, kind="evaluate", evaluation=EvaluationConfig(domains=["code"], lengths=[1024], sequences=1))
    assert stage_flops(short) == pytest.approx(training_flops(config.model, 1024, 1024 * seen(1024, windows_of(swan, 32))) / 3)
    fitted = replace(short, evaluation=replace(short.evaluation, query_scales=[8, 64, 512], skip=2))
    assert stage_flops(fitted) == pytest.approx((1 + 3 * 2) * stage_flops(short)), (
        "each constant that is tried reads the texts once"
    )


def test_a_plan_of_local_layers_is_cheaper():
    local = model_of({"model": {"option": "llama2-7b"}, "layers": {"option": "swan"}, "context": 32_768})
    full = model_of({"model": {"option": "llama2-7b"}, "context": 32_768})
    ours, theirs = (Job(each.model, 32_768, 2**22, 2**30, layers=job_layers(each.layers, 32)) for each in (local, full))
    assert run_flops(ours) < 0.75 * run_flops(theirs)
    assert computed_again(ours) < computed_again(theirs)
    with pytest.raises(UserError, match=r"command line: layers.groups.all.window=100000 is above the context of 4096"):
        model_of({"model": {"option": "llama2-7b"}, "layers": {"groups": {"all": {"window": 100_000}}}})
