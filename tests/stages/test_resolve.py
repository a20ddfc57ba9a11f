"""What makes no sense in a stage's data and curriculum is refused before anything runs; the message names the file, the stage and the key."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from lit_long.config import (
    AdapterConfig,
    CurriculumConfig,
    DataConfig,
    LayerGroupConfig,
    LayersConfig,
    ModelConfig,
    OptimConfig,
    SamplingConfig,
    SourceConfig,
    StageConfig,
    TrainerConfig,
    UserError,
)
from lit_long.config.ranges import Positive
from lit_long.config.schema import PhaseConfig
from lit_long.config.typed import count
from lit_long.planning.job import why_not
from lit_long.positions.schemes import RoPE
from lit_long.stages.costs import job_of
from lit_long.stages.resolve import check_optimizer, resolve_data, resolve_stage

WHERE = "my.yaml: stages.base"
ROPE = {"scheme": "rope", "base": 10_000.0}


def resolved(*phases, context=1024, context_parallel=1, **data):
    return resolved_with(
        context=context,
        data=DataConfig(**{"weights": {"code": 1.0, "docs": 0.0}} | data),
        curriculum=CurriculumConfig([PhaseConfig(**phase) for phase in phases]),
        trainer=TrainerConfig(strategy="fsdp", devices=context_parallel, context_parallel=context_parallel),
    )


def resolved_with(**settings):
    shape = ModelConfig(head_dim=16, d_model=32, n_heads=2, n_kv_heads=1)
    data = DataConfig(weights={"code": 1.0, "docs": 0.0})
    common = {"context": 1024, "tokens": 2**20, "tokens_per_update": 4096, "model": shape, "position": ROPE, "data": data}
    return resolve_stage(StageConfig(**common | settings), None, ("position",), WHERE)


def sampled(**sampling):
    return {"sampling": {"code": SamplingConfig(**sampling)}}


@pytest.mark.parametrize(
    "data, message",
    [
        ({"packing": "bestfit"}, ": data.packing must be concat, best_fit, single, not 'bestfit'; did you mean 'best_fit'?"),
        ({"sampling": {"cod": SamplingConfig()}}, ": data.sampling.cod: unknown domain; did you mean 'code'?"),
        ({"sampling": {"copying": SamplingConfig()}}, ": data.sampling.copying: unknown domain"),
        ({"sampling": {"retrieval": SamplingConfig(min_tokens=200)}}, ": data.sampling.retrieval: .* only max_tokens can be set"),
        (
            {"sampling": {"retrieval": SamplingConfig(max_tokens=64)}},
            ": data.sampling.retrieval.max_tokens must be at least 128, .* not 64",
        ),
        (sampled(long_tokens=100), ": data.sampling.code: long_tokens and long_share belong together"),
        (sampled(long_share=0.5), ": data.sampling.code: long_tokens and long_share belong together"),
        ({"repeats": {"cod": 1.0}}, ": data.repeats.cod: unknown domain; did you mean 'code'?"),
        ({"repeats": {"code": 0.0}}, ": data.repeats gives no domain a share; known here: code, docs, retrieval"),
        ({"repeats": {"code": 1.0, "retrieval": 1.0}}, ": data.repeats.retrieval: there is no pass"),
        ({"repeats": {"code": 1.0, "copying": 1.0}}, ": data.repeats.copying: there is no pass"),
        ({"weights": {"cod": 1.0}}, ": data.weights.cod: unknown domain; did you mean 'code'?"),
        ({"weights": {"code": 0.0}}, ": data.weights gives no domain a share"),
        (
            {"weights": {"retrieval": 1.0}, "context": 64},
            ": data.weights.retrieval needs a context of at least 127 tokens, not 64",
        ),
    ],
)
def test_data_that_make_no_sense(data, message):
    pattern = re.escape(WHERE) + message.replace("?", r"\?").replace("(", r"\(")
    with pytest.raises(UserError, match=f"^{pattern}"):
        resolved(**data)


@pytest.mark.parametrize(
    "first, message",
    [
        ({"scale": 0.3}, r"\.scale=0\.3 makes sequences of 307"),
        ({"weights": {"cod": 1.0}}, r"\.weights\.cod: unknown domain; did you mean 'code'"),
        ({"weights": {"code": 0.0}}, r"\.weights gives no domain a share"),
        (
            {"weights": {"retrieval": 1.0}, "scale": 0.0625},
            r": data\.weights\.retrieval needs a context of at least 127 .* not 64",
        ),
        ({"weights": {"retrieval": 1.0}, "grow_from": 0.0625}, r": data\.weights\.retrieval needs a context of at least 127"),
        ({"position": {"bas": 1.0}}, r".*base"),
        ({"position": {"scheme": "rop"}}, r".*rope"),
    ],
)
def test_phases_that_make_no_sense(first, message):
    with pytest.raises(UserError, match=rf"^{re.escape(WHERE)}\.curriculum\.phases\[0\]{message}"):
        resolved({"until": 0.5} | first, {})


def test_the_stages_weights_hold_in_short_phases_too():
    with pytest.raises(UserError, match=r"phases\[0\]: data\.weights\.retrieval needs a context of at least 127 tokens, not 64"):
        resolved({"until": 0.5, "scale": 0.0625}, {}, weights={"code": 0.9, "retrieval": 0.1})
    resolved({"until": 0.5, "scale": 0.0625, "weights": {"code": 1.0}}, {}, weights={"code": 0.9, "retrieval": 0.1})
    resolved(context=64, weights={"retrieval": 1.0}, repeats={"code": 1.0})  # repeats count instead of weights


def test_a_phases_position_is_completed():
    found = resolved({"until": 0.3, "position": {"base": 500.0}}, {"until": 0.6, "position": {"scheme": "nope"}}, {})
    first, second, last = found.curriculum.phases
    assert first.position["scheme"] == "rope" and first.position["base"] == 500.0
    assert second.position["scheme"] == "nope" and "base" not in second.position and last.position == {}


def test_ranks_that_share_sequences_need_equal_chunks_in_every_phase():
    """1,024 tokens can be cut into 2 · 32 chunks, and those of a short or a growing phase, too; 16 tokens cannot."""
    resolved(context_parallel=32)
    resolved({"until": 0.5, "scale": 0.0625}, {}, context_parallel=32)
    message = rf"^{re.escape(WHERE)}: trainer\.context_parallel=16 .*32 equal .*update 0 on .*16 tokens"
    for first in ({"scale": 0.015625}, {"grow_from": 0.015625}):
        with pytest.raises(UserError, match=message):
            resolved({"until": 0.5} | first, {}, context_parallel=16)
    with pytest.raises(UserError, match=r"trainer\.context_parallel=3 cuts every sequence into 6 equal chunks"):
        resolved(context_parallel=3)


def test_ranks_share_the_sequences_of_every_phase_equally():
    """4 of 96 tokens by 4 ranks, but 6 of 64: the stage would have failed when it started."""

    def found(devices):
        phases = CurriculumConfig([PhaseConfig(until=0.5, scale=2 / 3), PhaseConfig(until=1.0)])
        trainer = TrainerConfig(strategy="fsdp", devices=devices)
        return {"context": 96, "tokens": 384_000, "tokens_per_update": 384, "curriculum": phases, "trainer": trainer}

    message = r"from update 0 on, an update of tokens_per_update=384 has 6 sequences of 64 tokens, which 4 ranks"
    with pytest.raises(UserError, match=message):
        resolved_with(**found(4))
    assert "6 sequences of 64 tokens, which 4 data ranks" in why_not(job_of(StageConfig(**found(4)), WHERE))
    assert why_not(job_of(resolved_with(**found(2)), WHERE)) == ""


@pytest.mark.parametrize(
    ("tokens_per_update", "context", "remedy"),
    [
        (8192, 2**20, "stages.base.tokens_per_update=1M or stages.base.context=8k"),
        (8192, 3001, "stages.base.tokens_per_update=9003 or stages.base.context=2k"),
        (4 * 2**20, 32_000, "stages.base.tokens_per_update=4192000 or stages.base.context=32k"),
        (8191, 512, "stages.base.tokens_per_update=8k"),  # is prime
    ],
)
def test_updates_that_end_within_a_sequence(tokens_per_update, context, remedy):
    with pytest.raises(UserError) as caught:
        resolved_with(context=context, tokens_per_update=tokens_per_update)
    assert str(caught.value) == (
        f"{WHERE}: tokens_per_update={tokens_per_update} must be a multiple of context={context}, whole sequences; take {remedy}"
    )
    for word in remedy.replace("stages.base.", "").split(" or "):
        key, _, value = word.partition("=")
        resolved_with(**{"context": context, "tokens_per_update": tokens_per_update} | {key: count(value, "", key)})


@dataclass(frozen=True)
class Shrunk(RoPE):
    factor: Positive = 1.0


YARN = {"scheme": "yarn", "base": 10_000.0, "original": 2048, "alpha": 1.0, "beta": 32.0}
SHORTER = "context=1024 is shorter than model.context=2048, from which yarn extends (position.factor=0.5 is context / model.context); take a"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"position": YARN | {"factor": 0.5}}, f"{WHERE}: {SHORTER} context of 2k or more"),
        (
            {"layers": LayersConfig({"all": LayerGroupConfig(YARN | {"factor": 0.5})}, ["all"])},
            f"{WHERE}: layers.groups.all: {SHORTER}",
        ),
        (
            {"curriculum": CurriculumConfig([PhaseConfig(until=0.5, position=YARN | {"factor": 0.5}), PhaseConfig()])},
            f"{WHERE}.curriculum.phases[0]: {SHORTER}",
        ),
        (  # one group has another encoder's, which may be below 1, and what is wrong is the other
            {
                "layers": LayersConfig(
                    {
                        "own": LayerGroupConfig({"scheme": f"{__name__}:Shrunk", "factor": 0.5}),
                        "x": LayerGroupConfig({"scheme": "y"}),
                    },
                    ["own", "x"],
                )
            },
            "layers.groups.x: unknown position.scheme 'y'",
        ),
        ({"position": YARN | {"factor": 0.3}}, "position.factor must be at least 1 (new context / old context), not 0.3"),
        ({"position": YARN | {"factor": 0.5, "beta": "x"}}, "position.beta must be a number"),
    ],
)
def test_a_stretch_to_fewer_tokens_than_the_model_was_trained_with(settings, message):
    """Whose factor follows from the two contexts; one that was set is told by its own name."""
    shape = ModelConfig(head_dim=16, d_model=32, n_heads=2, n_kv_heads=1, context=2048)
    with pytest.raises(UserError) as caught:
        resolved_with(model=shape, **settings)
    assert message in str(caught.value)


def trained_by(name, strategy):
    return resolved_with(
        optim=OptimConfig(name=name), trainer=TrainerConfig(strategy=strategy, devices=2 if strategy == "fsdp" else 1)
    )


def test_optimizers():
    for name, strategy in (("muon", "single"), ("adamw", "fsdp")):
        check_optimizer(trained_by(name, strategy), WHERE)
    with pytest.raises(UserError, match=f"^{re.escape(WHERE)}: optim.name must be adamw or muon, not 'muo'; did you mean 'muon'"):
        check_optimizer(trained_by("muo", "single"), WHERE)
    with pytest.raises(
        UserError,
        match=f"^{re.escape(WHERE)}: optim.name=muon needs whole matrices, and trainer.strategy=fsdp .*; stages.base.optim.name=adamw, or",
    ):
        check_optimizer(trained_by("muon", "fsdp"), WHERE)


def test_where_sources_take_the_mixture_over_they_do_so_in_phases_too():
    sources = {"mine": SourceConfig(path="x.jsonl")}
    phases = [PhaseConfig(until=0.5, scale=0.5, weights={"copying": 1.0}), PhaseConfig()]
    found = resolved_with(data=DataConfig(sources=sources, weights={"mine": 1.0}), curriculum=CurriculumConfig(phases))
    assert [phase.weights for phase in found.curriculum.phases] == [{}, {}]
    phases[0] = PhaseConfig(until=0.5, scale=0.5, weights={"mine": 1.0})
    named = resolved_with(data=DataConfig(sources=sources, weights={"mine": 1.0}), curriculum=CurriculumConfig(phases))
    assert named.curriculum.phases[0].weights == {"mine": 1.0}
    phases[0] = PhaseConfig(until=0.5, scale=0.5, weights={"mine": 0.5, "cod": 0.5})
    with pytest.raises(UserError, match="weights.cod: unknown domain"):
        resolved_with(data=DataConfig(sources=sources, weights={"mine": 1.0}), curriculum=CurriculumConfig(phases))


def test_an_adapter_of_a_matrix_that_is_not_there():
    """ReLU² has no gate."""
    shape = ModelConfig(head_dim=16, d_model=32, n_heads=2, n_kv_heads=1, activation="relu2", init="weights")
    there, gone = (AdapterConfig(rank=4, targets=["q_proj", name]) for name in ("up_proj", "gate_proj"))
    assert resolved_with(model=shape, adapter=there).adapter == there
    with pytest.raises(UserError, match="my.yaml: stages.base: adapter.targets: model.activation=relu2 has no gate_proj; leave"):
        resolved_with(model=shape, adapter=gone)


def test_sampling_of_the_builtin_corpus_goes_where_sources_take_over(tmp_path):
    (tmp_path / "text.txt").write_text("A text.\n" * 50)
    sampling = {
        "docs": SamplingConfig(min_tokens=512),
        "retrieval": SamplingConfig(max_tokens=256),
        "mine": SamplingConfig(min_tokens=2),
    }
    sources = {"mine": SourceConfig(path=str(tmp_path))}
    over = resolve_data(DataConfig(weights={"docs": 0.9, "retrieval": 0.1}, sources=sources, sampling=sampling), WHERE, {})
    assert over.weights == {"mine": 1.0} and over.sampling == {"mine": sampling["mine"]}
    beside = resolve_data(DataConfig(weights={"docs": 0.9, "mine": 0.1}, sources=sources, sampling=sampling), WHERE, {})
    assert beside.weights == {"docs": 0.9, "mine": 0.1} and beside.sampling == sampling
