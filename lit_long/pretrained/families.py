"""The families of models that transformers has and that are a Llama but for switches of `ModelConfig`: one entry of `FAMILIES` each, for reading their
config.json and for writing it.

Every field that decides what a class of transformers computes is read, or refused by name where it cannot be had here; a field that the class does not
read decides nothing. Where a field is absent the class's own default stands in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lit_long.config import LayerGroupConfig, LayersConfig, ModelConfig, UserError, nearest
from lit_long.positions import settings
from lit_long.pretrained.rope_config import ORIGINAL, hf_from_position, position_from_hf, whole

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
    windows       none · all (layers have ``sliding_window``) · types (those that ``layer_types`` says; without it, where ``slides`` does)
    slides        of the whole config.json and a layer's number
    rotates       likewise: whether the layer has positions, where not all have
    rotations     whether ``rope_parameters`` has a group for each type of layer
    rope_types    those that the class knows, or takes for what they are, where not all
    fused         matrix → those of which it holds the rows, one after the other
    """

    architecture: str
    always: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, tuple[str, ...]] = field(default_factory=dict)
    only: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    windows: str = "none"
    slides: Callable[[dict[str, Any], int], bool] = lambda config, layer: True
    rotates: Callable[[dict[str, Any], int], bool] | None = None
    rotations: bool = False
    rope_types: tuple[str, ...] = ()
    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)


def rotates_in_smollm3(config: dict[str, Any], layer: int) -> bool:
    if (listed := config.get("no_rope_layers")) is None:
        return (layer + 1) % config["no_rope_layer_interval"] != 0
    return bool(listed[layer])


NO_ROPE = ("no_rope_layers", "no_rope_layer_interval")  # SmolLM3's; read by `rotates_in_smollm3`
FULL, SLIDING = "full_attention", "sliding_attention"
OLMO_BASE = 500_000.0  # of local layers in transformers where a config.json has one base for all
DEFAULTS = {  # of a Llama
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
    "attention_bias": False,
    "mlp_bias": False,
}
WINDOW = {"num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096}  # of Mistral's classes
QWEN = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
QWEN_WINDOWS: dict[str, Any] = {"windows": "types", "slides": lambda config, layer: layer >= config["max_window_layers"]}
OLMO = {"qk_norm": "layer", "norm": "post"}
FAMILIES = {  # in the order in which an export tries them
    "llama": Family("LlamaForCausalLM", fields=ATTENTION_BIAS | MLP_BIAS, only=SILU),
    "mistral": Family("MistralForCausalLM", only=SILU, defaults=WINDOW, windows="all"),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        fields=ATTENTION_BIAS | MLP_BIAS,
        only=SILU,
        defaults={
            "num_key_value_heads": 4,
            "max_position_embeddings": 32_768,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "sliding_window": None,
            "no_rope_layer_interval": 4,
        },
        windows="types",
        slides=lambda config, layer: not rotates_in_smollm3(config, layer),
        rotates=rotates_in_smollm3,
    ),
    "qwen2": Family("Qwen2ForCausalLM", {"qkv_bias": True}, only=SILU, defaults=QWEN, **QWEN_WINDOWS),
    "qwen3": Family("Qwen3ForCausalLM", {"qk_norm": "head"}, ATTENTION_BIAS, SILU, QWEN | {"head_dim": 128}, **QWEN_WINDOWS),
    "olmo2": Family("Olmo2ForCausalLM", OLMO, ATTENTION_BIAS, SILU, {"rms_norm_eps": 1e-5}),
    "olmo3": Family(
        "Olmo3ForCausalLM",
        OLMO,
        ATTENTION_BIAS,
        SILU,
        {"rms_norm_eps": 1e-5, "sliding_window": 4096},
        windows="types",
        slides=lambda config, layer: (layer + 1) % 4 != 0,
        rotations=True,
    ),
    "exaone4": Family(
        "Exaone4ForCausalLM",
        {"qk_norm": "head", "norm": "post"},
        only=SILU,
        defaults={"num_key_value_heads": 32, "rms_norm_eps": 1e-5, "sliding_window": 4096, "sliding_window_pattern": 4},
        windows="types",
        slides=lambda config, layer: (layer + 1) % config["sliding_window_pattern"] != 0,
        rotates=lambda config, layer: config["sliding_window"] is None or layer_types(config, "")[layer] == SLIDING,
    ),
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
    "ministral": Family("MinistralForCausalLM", only=SILU, defaults=WINDOW, windows="types"),
    "phi3": Family(
        "Phi3ForCausalLM",
        only=SILU,
        defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, ORIGINAL: 4096, "sliding_window": None},
        windows="all",
        rope_types=("default", "longrope"),  # it takes yarn for longrope
        fused={
            "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
        },
    ),
}
NOPE = {"scheme": "nope"}
SAME_AS_NOPE = {"scheme": "p_rope", "fraction": 0.0}  # which transformers has
# Families that are something else: why
OTHERS = {
    "gemma": "its norms multiply by 1 + weight, its gate is a GELU",
    "cohere": "its attention and feed-forward stand side by side, under one LayerNorm",
    "llama4": "it has experts, and attention in chunks",
    "mixtral": "it has experts",
    "ministral3": "its queries grow in steps that begin a token earlier than those of any query scale here",
    "mistral3": "it reads images, too",
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
    for key in ("tie_word_embeddings", "use_sliding_window"):
        if not isinstance(full.get(key), bool | None):
            raise UserError(f"{where}: {key} must be true or false, not {full[key]!r}")
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(full.get(key), dict | None):
            raise UserError(f"{where}: {key} must be a group of settings, not {full[key]!r}")
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


# --------------------------------------------------------------------------------------------------- layers that differ


def layer_types(config: dict[str, Any], where: str) -> list[str]:
    """Of each layer, whether it sees all tokens before it or a window, of a `complete` config.json.

    Raises:
        UserError: a type that is not computed here, or a window that is not there.
    """
    family, count = family_of(config, where), whole(config, "num_hidden_layers", where)
    size = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise UserError(f"{where}: sliding_window must be a whole number above 0, or null, not {size!r}")
    if family.windows != "types":
        return [SLIDING if family.windows == "all" and size else FULL] * count
    check_places(config, where, size is not None, count)
    if (types := config.get("layer_types")) is None:
        return [SLIDING if (size or family.rotations) and family.slides(config, layer) else FULL for layer in range(count)]
    if not isinstance(types, list) or len(types) != count:
        raise UserError(f"{where}: layer_types must name the type of each of {count} layers")
    for kind in types:
        if kind not in (FULL, SLIDING):
            raise UserError(f"{where}: layer_types has {kind!r}; only {FULL} and {SLIDING} are computed here")
    return types


def check_places(config: dict[str, Any], where: str, windows: bool, count: int) -> None:
    """Raise a UserError for a field from which the family's ``slides`` and ``rotates`` cannot tell what each of ``count`` layers is."""
    family = family_of(config, where)
    if windows and config.get("layer_types") is None:
        for key, least in (("sliding_window_pattern", 1), ("max_window_layers", 0)):
            if key in family.defaults and not (isinstance(config[key], int) and config[key] >= least):
                raise UserError(
                    f"{where}: {key}={config[key]!r} is no whole number of at least {least}, and there are no layer_types; write these"
                )
    if "no_rope_layer_interval" in family.defaults:
        listed = config.get("no_rope_layers")
        if listed is None:
            whole(config, "no_rope_layer_interval", where)
        elif not isinstance(listed, list) or len(listed) < count or any(each not in (0, 1) for each in listed):
            raise UserError(f"{where}: no_rope_layers must have an entry, 0 or 1, for each of {count} layers")


def read_layers(config: dict[str, Any], where: str) -> LayersConfig:
    """Windows, and positions of their own, of the layers that a `complete` config.json describes; empty where all are alike and see everything.

    Raises:
        UserError: as `layer_types` and `position_from_hf`.
    """
    family, types = family_of(config, where), layer_types(config, where)
    if SLIDING in types and (config.get("sliding_window") is None or not config.get("use_sliding_window", True)):
        raise UserError(f"{where}: has layers of type {SLIDING}, but sliding_window is null or not used; give the window")
    groups: dict[str, LayerGroupConfig] = {}
    names = []
    for layer, kind in enumerate(types):
        rotated = family.rotates is None or family.rotates(config, layer)
        name = ("local" if kind == SLIDING else "full") if rotated else ("local_nope" if kind == SLIDING else "nope")
        if name not in groups:
            own = {} if rotated else NOPE
            if family.rotations and kind == SLIDING:
                own = position_from_hf(rotation_config(config, where, SLIDING), where)
            groups[name] = LayerGroupConfig(own, config["sliding_window"] if kind == SLIDING else None)
        names.append(name)
    return LayersConfig() if set(names) == {"full"} else LayersConfig(groups, shortest_pattern(names))


def shortest_pattern(names: list[str]) -> list[str]:
    """What gives ``names`` when it is repeated."""
    return next(names[:size] for size in range(1, len(names) + 1) if all(name == names[i % size] for i, name in enumerate(names)))


def rotation_config(config: dict[str, Any], where: str, kind: str = FULL) -> dict[str, Any]:
    """A `complete` config.json with the rotation of layers of type ``kind`` as if it were that of all.

    Raises:
        UserError: a layout or kind for which transformers takes another rotation than it says.
    """
    family = family_of(config, where)
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if family.rope_types and (own := said.get("rope_type", said.get("type", "default"))) not in family.rope_types:
        raise UserError(
            f"{where}: rope_type {own!r} is none of {config['model_type']}, which has {' and '.join(family.rope_types)}"
        )
    config = {key: value for key, value in config.items() if key not in NO_ROPE}
    if not family.rotations:
        return config
    groups = config.get("rope_parameters")
    if groups is None:
        if config.get("rope_theta") != OLMO_BASE:
            raise UserError(
                f"{where}: rope_theta={config.get('rope_theta')!r} is that of full layers only, for transformers gives the local ones {OLMO_BASE:,.0f}; write "
                f"rope_parameters with a group for {FULL} and one for {SLIDING}"
            )
        return config if kind == FULL else {key: value for key, value in config.items() if key != "rope_scaling"}
    if not isinstance(groups, dict) or not isinstance(groups.get(kind), dict):
        raise UserError(
            f"{where}: rope_parameters has no group {kind}, so that transformers takes a base of {OLMO_BASE:,.0f} there, whatever else it says; "
            f"write one for {FULL} and one for {SLIDING}"
        )
    top = {key: value for key, value in config.items() if kind == FULL or key not in ("rope_theta", "rope_scaling")}
    return top | {"rope_parameters": groups[kind]}


# ------------------------------------------------------------------------------------------------------------ the way out


def write_family(
    model: ModelConfig, position: dict[str, Any], context: int, layers: LayersConfig | None = None
) -> dict[str, Any]:
    """Architecture, model_type and fields of the first class of transformers that computes what the switches of ``model``, and ``layers``, say;
    its positions, too (`hf_from_position`).

    Raises:
        UserError: there is none, or transformers cannot express ``position``.
    """
    attending = attending_layers(model, position, layers)
    if first := first_family(model, attending):
        name, family, fields = first
        rotated = {"scheme": "rope", "base": model.rope_base} if all(each.own == NOPE for each in attending) else position
        found = {"architectures": [family.architecture], "model_type": name} | family.only | fields
        return found | rotations(family, model, rotated, attending, context)
    usual = ModelConfig()
    said = [f"model.{name}={getattr(model, name)}" for name in SWITCHES if getattr(model, name) != getattr(usual, name)]
    if layers and layers.pattern:
        said.append(f"layers.pattern=[{', '.join(layers.pattern)}] with its windows, positions and query scales")
    only_nope = position["scheme"] == "nope" and first_family(model, attending_layers(model, SAME_AS_NOPE, layers))
    if not said or only_nope:  # so it is the stage's position; says what to do
        hf_from_position(position, model, context)
    raise UserError(
        f"transformers has no class that computes {' and '.join(said)}, so this model cannot be exported to Hugging Face"
    )


def first_family(model: ModelConfig, attending: list[Attending]) -> tuple[str, Family, dict[str, Any]] | None:
    """Name and family of the first class that computes what the switches of ``model`` say in layers that attend so, and its fields."""
    for name, family in FAMILIES.items():
        fields = None if family.fused else fields_of(family, model)
        own = None if fields is None else layer_fields(name, family, attending)
        if own is not None:
            return name, family, fields | own
    return None


def attending_layers(model: ModelConfig, position: dict[str, Any], layers: LayersConfig | None) -> list[Attending]:
    return [Attending(model, position, layers or LayersConfig(), layer) for layer in range(model.n_layers)]


class Attending:
    """How one layer attends: its window, and its position where that is not the stage's."""

    def __init__(self, model: ModelConfig, position: dict[str, Any], layers: LayersConfig, layer: int) -> None:
        group = layers.groups[layers.pattern[layer % len(layers.pattern)]] if layers.pattern else LayerGroupConfig()
        stage, own = (
            {k: v for k, v in settings(each, model.head_dim).items() if k != "training"} if each else {}
            for each in (position, group.position)
        )
        self.window, self.scaled = group.window, bool(group.query_scale)
        self.own = stage if stage == NOPE and not own else own if own != stage or stage == NOPE else {}


def layer_fields(name: str, family: Family, attending: list[Attending]) -> dict[str, Any] | None:
    """The fields with which a class has layers that attend so; None where it cannot."""
    windows = {each.window for each in attending}
    size = next((window for window in windows if window), None)
    others = [each for each in attending if each.own and each.own != NOPE]
    unrotated = [each.own == NOPE for each in attending]
    if any(each.scaled for each in attending) or len(windows - {None}) > 1 or (any(unrotated) and not family.rotates):
        return None
    if family.windows != "types":
        if others or len(windows) > 1 or (size and family.windows == "none"):
            return None
        return {"sliding_window": size} if family.windows == "all" else {}
    own: dict[str, Any] = {"sliding_window": size, "layer_types": [SLIDING if each.window else FULL for each in attending]}
    if family.rotations:
        local = [each.own for each in attending if each.window]
        return own if size and all(bool(each.window) for each in others) and all(each == local[0] for each in local) else None
    if others:
        return None
    if name == "smollm3":
        own |= {"no_rope_layers": [int(not nope) for nope in unrotated]}
    elif name == "exaone4":
        right = unrotated == [not each.window for each in attending] if size else not any(unrotated)
        return own | {"sliding_window_pattern": 4} if right else None
    elif "max_window_layers" in family.defaults:
        own |= {"max_window_layers": next((layer for layer, each in enumerate(attending) if each.window), len(attending))}
    return own | ({"use_sliding_window": size is not None} if "use_sliding_window" in family.defaults else {})


def rotations(
    family: Family, model: ModelConfig, position: dict[str, Any], attending: list[Attending], context: int
) -> dict[str, Any]:
    """The fields of positions, with a group for each type of layer where the class wants that."""
    found = hf_from_position(position, model, context)
    if family.rotations:
        own = next(each.own for each in attending if each.window) or position
        local = hf_from_position(own, model, context)["rope_parameters"]
        found["rope_parameters"] = {FULL: found["rope_parameters"], SLIDING: local}
    return found


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
