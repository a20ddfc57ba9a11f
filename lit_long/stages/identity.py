"""What a stage is known by: a hash of what it is made of.

    the settings that its result depends on and that differ from their defaults, so that a new setting changes no identity
    the identities of its inputs: data store, parent, pretrained weights by their content
    the code of the user's own modules
    a version number of its kind, raised by hand when the meaning of a result changes, or a default

tests/stages/defaults.yaml holds the defaults; a test fails when one changes and the version does not.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_long.config import (
    CorpusConfig,
    CurriculumConfig,
    DataConfig,
    EvaluationConfig,
    LayersConfig,
    SourceConfig,
    StageConfig,
    differing,
    plain,
    typed,
)
from lit_long.config.mesh import gathers_rounded
from lit_long.data.builtin_corpus import fingerprint
from lit_long.data.synthetic import SYNTHETIC
from lit_long.evaluation.registry import code_digest, draws_documents, task_code
from lit_long.positions import default_settings
from lit_long.positions.layers import default_scale_settings
from lit_long.stages.resolve import chat_templates, uses_builtin

KIND_VERSIONS = {"data": 3, "train": 2, "evaluate": 3}
# The settings that mean something to a stage of each kind; of those the result of training does not depend on ``validation``.
TRAIN = (
    "context",
    "tokens",
    "tokens_per_update",
    "branch",
    "seed",
    "model",
    "position",
    "layers",
    "data",
    "curriculum",
    "adapter",
    "optim",
)
RELEVANT = {
    "data": ("data",),
    "train": (*TRAIN, "validation", "trainer"),
    "evaluate": ("model", "position", "layers", "evaluation", "trainer", "branch", "tokens", "tokens_per_update"),
}
COUNTED = {"data": ("data",), "train": (*TRAIN, "trainer"), "evaluate": ("model", "position", "layers", "evaluation", "branch")}
DEFAULT = StageConfig()


def stage_identity(config: StageConfig, inputs: Sequence[str]) -> str:
    """The identity of a resolved stage, 12 hexadecimal digits.

    Args:
        inputs: the identities of data store and parent, and the digest of pretrained weights that it starts from.
    """
    content = {
        "kind": config.kind,
        "version": KIND_VERSIONS[config.kind],
        "inputs": list(inputs),
        "settings": identity_settings(config),
    }
    return digest(content, 12)


def digest(content: Any, length: int) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:length]


def identity_settings(config: StageConfig) -> dict[str, Any]:
    """The settings that the stage's result depends on, where they differ from their defaults; its inputs' identities cover the rest."""
    scopes = [config.kind] + (["gpu"] if config.kind != "data" and config.trainer.accelerator != "cpu" else [])
    counted, settings = without_idle_settings(config), {}
    for name in COUNTED[config.kind]:
        value = getattr(counted, name)
        found = OPEN[name](value) if name in OPEN else differing(value, *scopes)
        if found != {} and value != getattr(DEFAULT, name):
            settings[name] = found
    if config.kind == "train" and gathers_rounded(config.trainer):
        settings["gathered"] = "bf16"
    if config.kind == "train" and places_single(config):
        settings["single"] = "by documents"  # before, long_share counted whole documents, and later phases read some again
    if config.kind == "data":
        settings["made_from"] = fingerprint(config.data.corpus, uses_builtin(config.data))
        if templates := chat_templates(config.data):
            settings["chat_templates"] = templates
        if any(source.instruct.schema == "qa" for source in config.data.sources.values()):
            # With all questions about them, in all sources; before, single questions were, and then those of the same source.
            settings["held_out"] = "documents of all sources" if asks_across_sources(config.data) else "documents"
        return settings
    evaluates = config.kind == "evaluate"
    if evaluates and draws(config.evaluation):
        settings["documents"] = "drawn"
    if code := own_code(config) | (task_code(config.evaluation.tasks) if evaluates else {}):
        settings["code"] = code
    return settings


def places_single(config: StageConfig) -> bool:
    """Whether sequences of one document each depend on how much of it they hold: their ``long_share``, and where phases of another context go on."""
    instruct = {name: source.instruct.packing for name, source in config.data.sources.items() if source.instruct.schema}
    mixed = {name for weights in all_weights(config) for name, weight in weights.items() if weight} - set(SYNTHETIC)
    single = {name for name in mixed if instruct.get(name, config.data.packing) == "single"}
    several = any(phase.scale != 1 or phase.grow_from not in (0, 1) for phase in config.curriculum.phases)
    # Conversations that are longer than a sequence are never drawn, so of those drawn all of each is trained on.
    shared = {name for name, sampling in config.data.sampling.items() if sampling.long_tokens} - set(instruct)
    return bool((single and several) or single & shared)


def asks_across_sources(data: DataConfig) -> bool:
    """Whether a document that one source holds out may be asked about in another, or the other way round. Those of one share hold out the same
    documents, unless names of files decide."""
    of_documents = [source for source in data.sources.values() if source.instruct.schema in ("", "qa")]
    asks = any(source.instruct.schema == "qa" for source in of_documents)
    holds = any(source.validation_share for source in of_documents)
    return asks and holds and len({(source.validation_share, source.split_by) for source in of_documents}) > 1


def draws(evaluation: EvaluationConfig) -> bool:
    """Whether documents of public data sets are drawn. (Before 0.2 the first ones were asked.)"""
    return bool(evaluation.task_samples) and draws_documents(evaluation.tasks)


def without_idle_settings(config: StageConfig) -> StageConfig:
    """``config`` with what does not count for it at its default: the corpus of a mixture that does not use it, weights of 0, and so on."""
    data = config.data
    if config.kind == "data":
        corpus = data.corpus if uses_builtin(data) else CorpusConfig(vocab_size=data.corpus.vocab_size)
        sources = {
            name: source if source.instruct.schema else replace(source, instruct=SourceConfig().instruct)
            for name, source in data.sources.items()
        }
        return replace(config, data=DataConfig(corpus=corpus, sources=sources))
    trainer = config.trainer
    if trainer.on_bad_step == "stop":  # then the limit changes no result, only whether there is one
        trainer = replace(trainer, spike=0.0)
    return replace(config, data=mixture(data), curriculum=phases_of(config.curriculum), trainer=trainer)


def mixture(data: DataConfig) -> DataConfig:
    """What of the data makes the stream of training sequences: which documents there are is the data stage's identity."""
    weights = {name: weight for name, weight in data.weights.items() if weight}
    mixed = {name for name, share in (data.repeats or weights).items() if share}
    loss = {name: loss_of(source) for name, source in data.sources.items() if source.instruct.schema and name in mixed}
    return replace(data, corpus=CorpusConfig(), sources=loss, weights=weights)


def loss_of(source: SourceConfig) -> SourceConfig:
    """The settings of instruction data that enter the loss, not the store."""
    names = ("packing", "prompt_weight", "answer_weight", "divisor")
    default = SourceConfig()
    return replace(default, instruct=replace(default.instruct, **{name: getattr(source.instruct, name) for name in names}))


def phases_of(curriculum: CurriculumConfig) -> CurriculumConfig:
    """The phases with each position as `differing_position` describes it, and layers likewise."""
    found = []
    for phase in curriculum.phases:
        layers = differing_layers(typed(LayersConfig, phase.layers, "curriculum")) if phase.layers else {}
        found.append(replace(phase, position=differing_position(phase.position), layers=layers))
    return CurriculumConfig(found)


def differing_position(position: dict[str, Any]) -> dict[str, Any]:
    """A complete positional encoder: its scheme (and transform), and the settings that differ from their defaults; {} without one."""
    if not position:
        return {}
    usual = default_settings(position)
    found = {key: value for key, value in position.items() if key != "training" and (key not in usual or value != usual[key])}
    if training := position.get("training"):
        usual = usual["training"]
        found["training"] = {key: value for key, value in training.items() if key not in usual or value != usual[key]}
    return found


def differing_layers(layers: LayersConfig) -> dict[str, Any]:
    """Complete layers: the pattern, and of each group what differs from its defaults."""
    groups = {}
    for name, group in layers.groups.items():
        scale, usual = group.query_scale, default_scale_settings(group.query_scale) if group.query_scale else {}
        own = {"position": differing_position(group.position), "window": group.window}
        own["query_scale"] = {key: value for key, value in scale.items() if key not in usual or value != usual[key]}
        groups[name] = {key: value for key, value in own.items() if value}
    return {"groups": groups, "pattern": layers.pattern}


OPEN = {"position": differing_position, "layers": differing_layers}  # settings that the schema does not list


def own_code(config: StageConfig) -> dict[str, str]:
    """{module: digest} of the modules that hold the user's own encoders, transform or query scales (``module:Class``), {} without one.

    Comments and layout do not count, and what such a module imports does not either.
    """
    phases = config.curriculum.phases if config.kind == "train" else []
    groups = [plain(group) for group in config.layers.groups.values()]
    groups += [group for phase in phases for group in phase.layers.get("groups", {}).values()]
    positions = [config.position, *(phase.position for phase in phases), *(group.get("position") or {} for group in groups)]
    names = [str(position.get("scheme", "")) for position in positions]
    names += [str((position.get("training") or {}).get("transform", "")) for position in positions]
    names += [str((group.get("query_scale") or {}).get("form", "")) for group in groups]
    modules = {name.partition(":")[0] for name in names if ":" in name}
    files = {module: spec.origin for module in modules if (spec := importlib.util.find_spec(module))}
    return {module: code_digest(Path(file)) for module, file in files.items() if file and file.endswith(".py")}


def all_weights(config: StageConfig) -> list[dict[str, float]]:
    """The mixtures of the stage: its own, and its phases'."""
    return [config.data.repeats or config.data.weights, *(phase.weights for phase in config.curriculum.phases)]


def recipe(config: StageConfig) -> dict[str, Any]:
    """What a resolved training stage computes, but for the machine's precision and the versions of the corpus' packages (archive.py)."""
    settings = identity_settings(replace(config, trainer=replace(config.trainer, precision=DEFAULT.trainer.precision)))
    mixed = {name for weights in all_weights(config) for name, weight in weights.items() if weight}
    made = {"version": KIND_VERSIONS["train"], "settings": settings, "corpus": differing(config.data.corpus)}
    return json.loads(json.dumps(made | {"sources": sorted(mixed & set(config.data.sources))}))
