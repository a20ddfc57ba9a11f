"""What a stage is known by: the settings that it computes with. What its inputs are made of is covered by their own identities."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from lit_long.config import DataConfig, OptimConfig, StageConfig, identity_fields, plain
from lit_long.data.corpus import RETRIEVAL
from lit_long.stages.mixture import DOCS, data_identity


def identity_settings(config: StageConfig) -> dict[str, Any]:
    """The settings that a stage of this kind computes with; its inputs' identities cover the rest."""
    if config.kind == "data":
        return data_identity(config.data)
    settings = {name: identity_fields(getattr(config, name)) for name in ("model", "position")} | own_code(config.position)
    if config.kind == "evaluate":
        evaluation = identity_fields(config.evaluation)
        if evaluation["retrieval_domain"] in ("", DOCS):  # as it was before it could be chosen: results of that time stay valid
            del evaluation["retrieval_domain"]
        if not evaluation["retrieval_control"]:  # likewise
            del evaluation["retrieval_control"]
        if not evaluation["tasks"]:  # likewise
            evaluation = {key: value for key, value in evaluation.items() if not key.startswith("task")}
        return settings | {"evaluation": evaluation}
    names = ("context", "tokens", "tokens_per_update", "seed")
    return (
        settings
        | {name: getattr(config, name) for name in names}
        | {
            "data": mixture_identity(config.data),
            "optim": optim_identity(config.optim),
            "trainer": identity_fields(config.trainer),
        }
        | ({"curriculum": plain(config.curriculum)} if config.curriculum.phases else {})
        | ({"adapter": plain(config.adapter)} if config.adapter.rank else {})
        # Its examples have all lengths; they once had the context's.
        | ({"retrieval": "all lengths"} if any(weights.get(RETRIEVAL) for weights in all_weights(config)) else {})
        # It leaves out updates only where stop would have no result at all; what it leaves out depends on the limit.
        | ({"bad_update": {"skip": config.trainer.spike}} if config.trainer.bad_update == "skip" else {})
    )


def own_code(position: dict[str, Any]) -> dict[str, Any]:
    """{"code": {module: digest}} of the modules that hold the user's own encoder or transform (``module:Class``), {} without one.

    Comments and layout do not count, and what such a module imports does not either.
    """
    names = (str(position.get("scheme", "")), str((position.get("training") or {}).get("transform", "")))
    modules = {name.partition(":")[0] for name in names if ":" in name}
    files = {module: spec.origin for module in modules if (spec := importlib.util.find_spec(module))}
    found = {
        module: hashlib.sha256(ast.unparse(ast.parse(Path(file).read_bytes())).encode()).hexdigest()[:12]
        for module, file in files.items()
        if file and file.endswith(".py")
    }
    return {"code": found} if found else {}


def all_weights(config: StageConfig) -> list[dict[str, float]]:
    """The mixtures of the stage: its own, and its phases'."""
    return [config.data.repeats or config.data.weights, *(phase.weights for phase in config.curriculum.phases)]


def optim_identity(optim: OptimConfig) -> dict[str, Any]:
    """Without its name where there was no other: results from before there was a choice stay valid."""
    return {key: value for key, value in plain(optim).items() if (key, value) != ("name", "adamw")}


def mixture_identity(data: DataConfig) -> dict[str, Any]:
    """How the stream of training sequences is made. What is at its default is left out, so that results from before it existed stay valid."""
    default = DataConfig()
    later = {name: plain(getattr(data, name)) for name in ("repeats", "sampling", "packing")}
    mixed = {k: w for k, w in (data.repeats or data.weights).items() if w}
    instruct = {k: plain(source.instruct) for k, source in data.sources.items() if source.instruct.schema and k in mixed}
    loss = {k: {name: v[name] for name in ("packing", "prompt_weight", "answer_weight")} for k, v in instruct.items()}
    return (
        {
            "weights": {k: w for k, w in data.weights.items() if w},
            "mask_documents": data.mask_documents,
        }
        | {name: value for name, value in later.items() if value != plain(getattr(default, name))}
        | ({"instruct": loss} if loss else {})
    )
