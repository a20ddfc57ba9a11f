"""The identities that stages had in 0.1 (to commit 6d0d953), so that folders, records and weights of that time go on. Goes with 0.3.

An identity of 0.1 holds every setting, at its default or not. The settings are listed here: what was added since has none there, so a stage
that uses it was never run by 0.1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lit_long.config import (
    AdapterConfig,
    CorpusConfig,
    CurriculumConfig,
    DataConfig,
    EvaluationConfig,
    InstructConfig,
    ModelConfig,
    OptimConfig,
    ReportConfig,
    SamplingConfig,
    SourceConfig,
    StageConfig,
    TrainerConfig,
    differing,
    plain,
)
from lit_long.config.schema import PhaseConfig
from lit_long.data.builtin_corpus import fingerprint
from lit_long.data.synthetic import RETRIEVAL
from lit_long.positions import default_settings
from lit_long.stages.identity import all_weights, asks_across_sources, digest, draws, own_code, places_single
from lit_long.stages.resolve import DOCS, chat_templates, uses_builtin

KIND_VERSIONS = {"data": 2, "train": 1, "evaluate": 2}
SETTINGS = {
    ModelConfig: "vocab_size d_model n_layers n_heads n_kv_heads head_dim d_ffn norm_eps tie_embeddings context rope_base",
    CorpusConfig: "name packages validation vocab_size",
    InstructConfig: "schema prompt answer template max_tokens",
    SourceConfig: "kind text where encoding subset split min_characters max_characters dedup keep validation_share content",
    SamplingConfig: "min_tokens max_tokens long_tokens long_share",
    DataConfig: "corpus sources weights repeats max_epochs sampling packing mask_documents",
    PhaseConfig: "until scale grow_from weights position",
    AdapterConfig: "rank alpha targets train_embeddings_and_norms",
    OptimConfig: "name lr min_lr_ratio warmup_fraction betas eps weight_decay grad_clip",
    TrainerConfig: "precision",
    EvaluationConfig: "domains lengths sequences retrieval_lengths passkey_lengths retrieval_examples retrieval_control retrieval_domain "
    "tasks task_lengths task_samples precision",
    ReportConfig: "title rows reference paper_table paper_source paper_length paper published curve law bound notes",
}
BY_THEMSELVES = {
    TrainerConfig: ("on_bad_step", "spike"),
    SourceConfig: ("instruct",),
    InstructConfig: ("packing", "prompt_weight", "answer_weight", "divisor"),
}  # treated below
SCHEMES = {
    **dict.fromkeys(("rope", "abf"), "base"),
    **dict.fromkeys(("pi", "ntk"), "base factor"),
    **dict.fromkeys(("xpos", "xpos_abf"), "base gamma scale_base centre"),
    "dynamic_ntk": "base factor original",
    "ntk_by_parts": "base factor original alpha beta",
    "yarn": "base factor original alpha beta attention",
    "longrope": "base factor original short_factors long_factors",
    "llama3": "base factor original low_freq_factor high_freq_factor",
    "p_rope": "base fraction",
    "power": "base k",
    "truncated": "base truncate a b rho",
    "nope": "",
}


class NotIn01(Exception):
    """The stage has a setting that 0.1 did not know."""


def identity_0_1(config: StageConfig, inputs: Sequence[str]) -> str:
    """The identity that a resolved stage had in 0.1; "" for one that 0.1 could not run, or whose inputs it could not make."""
    if not all(inputs):
        return ""
    try:
        settings = identity_settings(config)
    except NotIn01:
        return ""
    return digest({"kind": config.kind, "version": KIND_VERSIONS[config.kind], "inputs": list(inputs), "settings": settings}, 12)


def sweep_key_0_1(experiment: str, rows: list[Any], report: ReportConfig) -> str:
    """The key of a sweep's folder in 0.1; ``rows`` as in `plan.sweep_key`, with the identities of that time. "" as `identity_0_1`."""
    try:
        return digest([experiment, rows, known(report)], 8)
    except NotIn01:
        return ""


def recipe_0_1(config: StageConfig) -> dict[str, Any] | None:
    """The recipe.json that 0.1 wrote of a training stage; None where it could not have made it."""
    try:
        settings = {key: value for key, value in identity_settings(config).items() if key != "trainer"}
        corpus = known(config.data.corpus)
    except NotIn01:
        return None
    mixed = {name for weights in all_weights(config) for name, weight in weights.items() if weight}
    return json.loads(json.dumps(plain(settings | {"corpus": corpus, "sources": sorted(mixed & set(config.data.sources))})))


def known(value: Any) -> dict[str, Any]:
    """All settings of 0.1 that a dataclass holds. Raises NotIn01 for one that differs from its default and is not among them."""
    refuse_later(value)
    return {name: plain(getattr(value, name)) for name in SETTINGS[class_0_1(value)].split()}


def refuse_later(value: Any) -> None:
    cls = class_0_1(value)
    if set(differing(value, "gpu", "train")) - {*SETTINGS[cls].split(), *BY_THEMSELVES.get(cls, ())}:
        raise NotIn01


def class_0_1(value: Any) -> type:
    return next(cls for cls in type(value).__mro__ if cls in SETTINGS)


def position_of(position: dict[str, Any]) -> dict[str, Any]:
    """The encoder's settings of 0.1. Raises NotIn01 as `known`."""
    if not position or ":" in position["scheme"]:
        return position
    if position["scheme"] not in SCHEMES:
        raise NotIn01
    usual, names = default_settings(position), {"scheme", "training", *SCHEMES[position["scheme"]].split()}
    if any(name not in names and value != usual.get(name, object()) for name, value in position.items()):
        raise NotIn01
    return {name: value for name, value in position.items() if name in names}


def identity_settings(config: StageConfig) -> dict[str, Any]:
    if config.kind == "data":
        return data_settings(config.data)
    stage_alone = replace(config, curriculum=CurriculumConfig())  # code that only phases name did not count
    code = {"code": found} if (found := own_code(stage_alone)) else {}
    if config.layers.pattern or config.branch != 1:
        raise NotIn01
    settings = {"model": known(config.model), "position": position_of(config.position)} | code
    if config.kind == "evaluate":
        if draws(config.evaluation):  # 0.1 asked the first documents
            raise NotIn01
        evaluation = known(config.evaluation)
        if evaluation["retrieval_domain"] in ("", DOCS):
            del evaluation["retrieval_domain"]
        if not evaluation["retrieval_control"]:
            del evaluation["retrieval_control"]
        if not evaluation["tasks"]:
            evaluation = {key: value for key, value in evaluation.items() if not key.startswith("task")}
        return settings | {"evaluation": evaluation}
    if places_single(config):  # 0.1 read documents again at a switch of contexts, and did not meet long_share
        raise NotIn01
    trainer = config.trainer
    skips = {"bad_update": {"skip": trainer.spike}} if trainer.on_bad_step == "skip" else {}
    names = ("context", "tokens", "tokens_per_update", "seed")
    return (
        settings
        | {name: getattr(config, name) for name in names}
        | {"data": mixture(config.data), "trainer": known(trainer)}
        | {"optim": {key: value for key, value in known(config.optim).items() if (key, value) != ("name", "adamw")}}
        | ({"curriculum": phases(config.curriculum)} if config.curriculum.phases else {})
        | ({"adapter": known(config.adapter)} if config.adapter.rank else {})
        | ({"retrieval": "all lengths"} if any(weights.get(RETRIEVAL) for weights in all_weights(config)) else {})
        | skips
    )


def phases(curriculum: CurriculumConfig) -> dict[str, Any]:
    return {"phases": [known(phase) | {"position": position_of(phase.position)} for phase in curriculum.phases]}


def mixture(data: DataConfig) -> dict[str, Any]:
    default = DataConfig()
    refuse_later(data)
    if RETRIEVAL in data.sampling:
        raise NotIn01
    later = {name: plain(getattr(data, name)) for name in ("repeats", "packing")}
    later["sampling"] = {name: known(sampling) for name, sampling in data.sampling.items()}
    mixed = {name for name, weight in (data.repeats or data.weights).items() if weight}
    loss = {
        name: {key: getattr(source.instruct, key) for key in ("packing", "prompt_weight", "answer_weight")}
        for name, source in data.sources.items()
        if source.instruct.schema and name in mixed
    }
    if any(data.sources[name].instruct.divisor != InstructConfig().divisor for name in loss):
        raise NotIn01
    return (
        {"weights": {name: weight for name, weight in data.weights.items() if weight}, "mask_documents": data.mask_documents}
        | {name: value for name, value in later.items() if value != plain(getattr(default, name))}
        | ({"instruct": loss} if loss else {})
    )


def data_settings(data: DataConfig) -> dict[str, Any]:
    if not data.sources:
        return {"corpus": known(data.corpus), "sources": fingerprint(data.corpus)}
    if asks_across_sources(data):  # 0.1 trained on questions about documents that another source held out
        raise NotIn01
    builtin = uses_builtin(data)
    corpus = known(data.corpus) if builtin else {"vocab_size": data.corpus.vocab_size}
    templates = chat_templates(data)
    own = {}
    for name, source in data.sources.items():
        own[name] = known(source)
        if source.instruct.schema:
            own[name] |= {"instruct": known(source.instruct), "chat_template": templates[name]}
    return {"corpus": corpus, "sources": fingerprint(data.corpus, builtin), "own": own}
