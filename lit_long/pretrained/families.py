"""The families of models that transformers has and that are a Llama but for switches of `ModelConfig`: one entry of `FAMILIES` each, for reading their
config.json and for writing it.

Every field that decides what a class of transformers computes is read, or refused by name where it cannot be had here; a field that the class does not
read decides nothing. Where a field is absent the class's own default stands in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lit_long.config import ModelConfig, UserError, nearest

SILU = {"hidden_act": "silu"}
ATTENTION_BIAS = {"attention_bias": ("qkv_bias", "o_bias")}
MLP_BIAS = {"mlp_bias": ("mlp_bias",)}
MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")  # called alike here
SWITCHES = ("qk_norm", "norm", "activation", "qkv_bias", "o_bias", "mlp_bias", *MULTIPLIERS)


@dataclass(frozen=True)
class Family:
    """A ``model_type``.

    architecture  its class with a head
    always        switches that the class has set, whatever its config.json says
    fields        field of config.json → the switches that it sets
    only          field → the one value with which the class computes what is computed here
    defaults      what the class takes for an absent field, where that is not `DEFAULTS`
    """

    architecture: str
    always: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, tuple[str, ...]] = field(default_factory=dict)
    only: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)


DEFAULTS = {  # of a Llama
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
    "attention_bias": False,
    "mlp_bias": False,
}
QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32_768, "use_sliding_window": False}
FAMILIES = {  # in the order in which an export tries them
    "llama": Family("LlamaForCausalLM", fields=ATTENTION_BIAS | MLP_BIAS, only=SILU),
    "qwen2": Family("Qwen2ForCausalLM", {"qkv_bias": True}, only=SILU | {"use_sliding_window": False}, defaults=QWEN),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        {"qk_norm": "head"},
        ATTENTION_BIAS,
        SILU | {"use_sliding_window": False},
        QWEN | {"head_dim": 128},
    ),
    "olmo2": Family("Olmo2ForCausalLM", {"qk_norm": "layer", "norm": "post"}, ATTENTION_BIAS, SILU, {"rms_norm_eps": 1e-5}),
    "granite": Family(
        "GraniteForCausalLM",
        fields=ATTENTION_BIAS | MLP_BIAS | {name: (name,) for name in MULTIPLIERS},
        only=SILU,
        defaults=dict.fromkeys(MULTIPLIERS, 1.0),
    ),
    "arcee": Family(
        "ArceeForCausalLM",
        {"activation": "relu2"},
        ATTENTION_BIAS | MLP_BIAS,
        {"hidden_act": "relu2"},
        {"hidden_act": "relu2", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    ),
    "mistral": Family(
        "MistralForCausalLM",
        only=SILU | {"sliding_window": None},
        defaults={"num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096},
    ),
}
# Families that are something else: why
OTHERS = {
    "gemma": "its norms multiply by 1 + weight, its gate is a GELU",
    "cohere": "its attention and feed-forward stand side by side, under one LayerNorm",
    "llama4": "it has experts, and attention in chunks",
    "mixtral": "it has experts",
    "qwen2_moe": "it has experts",
    "qwen3_moe": "it has experts",
    "qwen3_next": "most of its layers have no attention",
    "granite_swa": "its heads have learned sinks",
    "gpt_oss": "it has experts, and its heads have learned sinks",
}


def family_of(config: dict[str, Any], where: str) -> Family:
    """The family of a config.json.

    Raises:
        UserError: it is none of those here; names them, or says what is different.
    """
    name = str(config.get("model_type"))
    if name in FAMILIES:
        return FAMILIES[name]
    why = next((reason for start, reason in OTHERS.items() if name.startswith(start)), "")
    known = f": {why}; known here: {', '.join(FAMILIES)}" if why else nearest(name, FAMILIES)
    raise UserError(f"{where}: model_type is {config.get('model_type')!r}, which cannot be read{known}")


def complete(config: dict[str, Any], where: str) -> dict[str, Any]:
    """A config.json with the defaults of its class where a field is absent.

    Raises:
        UserError: a family, or the value of a field, that is not computed here.
    """
    family = family_of(config, where)
    full = DEFAULTS | family.defaults | config
    for key, supported in (family.only | {"quantization_config": None}).items():
        if full.get(key, supported) not in (supported, None):
            said = "" if key in config else ", the default where it is absent,"
            raise UserError(f"{where}: {key}={full[key]!r}{said} is not supported, only {supported!r}")
    return full


def read_switches(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The switches that a `complete` config.json sets."""
    family = family_of(config, where)
    found = dict(family.always)
    for key, switches in family.fields.items():
        value, usual = config[key], (DEFAULTS | family.defaults)[key]
        number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        if not (isinstance(value, bool) if isinstance(usual, bool) else number):
            raise UserError(
                f"{where}: {key} must be {'true or false' if isinstance(usual, bool) else 'a number above 0'}, not {value!r}"
            )
        found |= dict.fromkeys(switches, value if isinstance(usual, bool) else float(value))
    return found


def write_switches(model: ModelConfig) -> dict[str, Any]:
    """Architecture, model_type and fields of the first class of transformers that computes what the switches of ``model`` say.

    Raises:
        UserError: there is none.
    """
    for name, family in FAMILIES.items():
        if (fields := fields_of(family, model)) is not None:
            return {"architectures": [family.architecture], "model_type": name} | family.only | fields
    usual = ModelConfig()
    own = [f"model.{name}={getattr(model, name)}" for name in SWITCHES if getattr(model, name) != getattr(usual, name)]
    raise UserError(
        f"transformers has no class that computes {' and '.join(own)}, so this model cannot be exported to Hugging Face"
    )


def fields_of(family: Family, model: ModelConfig) -> dict[str, Any] | None:
    """The fields with which the class computes what the switches of ``model`` say; None where it cannot."""
    said = {name: getattr(model, name) for name in SWITCHES}
    found, covered = {}, dict(family.always)
    for key, switches in family.fields.items():
        found[key] = said[switches[0]]
        if key == "attention_multiplier":  # which is never absent there
            found[key] = found[key] or model.head_dim**-0.5
            covered[key] = said[key]
        else:
            covered |= dict.fromkeys(switches, found[key])
    usual = ModelConfig()
    return found if all(covered.get(name, getattr(usual, name)) == value for name, value in said.items()) else None
