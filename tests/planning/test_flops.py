"""The paper's own figures."""

from __future__ import annotations

import pytest

from lit_long.config import CurriculumConfig, ModelConfig, StageConfig
from lit_long.config.schema import PhaseConfig
from lit_long.planning.flops import parameters, stage_flops, training_flops
from lit_long.planning.paper import paper_runs
from lit_long.planning.speed import computed_again, run_flops
from lit_long.stages.costs import model_and_context
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
    return model_and_context({"model": {"option": name}})[0]


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
    for way in ("selective", "full"):
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
