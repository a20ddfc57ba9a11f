"""Positional encoders in Hugging Face's configuration of a Llama, read and written.

Two layouts say the same: ``rope_theta`` beside ``rope_scaling`` (transformers 4), and one group ``rope_parameters`` (transformers 5).
Nothing is dropped on the way in: a kind or a key whose effect cannot be had here is an error, and so is a missing base, for which
transformers would silently take 10,000. On the way out a scheme that transformers would compute otherwise is refused.
"""

from __future__ import annotations

import math
from typing import Any

from lit_long.config import ModelConfig, UserError, nearest
from lit_long.positions import PositionalEncoder, build, settings

ORIGINAL = "original_max_position_embeddings"
TRAINED = "max_sequence_length"  # tokens that the model is for, where max_position_embeddings says something else; vLLM and FastChat know it
PRETRAINED = (2048, 4096, 8192)  # contexts of Llama 1, 2 and 3 before anything scaled them
# Keys of each kind besides rope_type and rope_theta; `finetuned` is a remark in old YaRN configurations.
KINDS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor", ORIGINAL},
    "dynamic": {"factor", ORIGINAL},
    "yarn": {
        "factor",
        ORIGINAL,
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "finetuned",
    },
    "longrope": {"factor", ORIGINAL, "attention_factor", "short_factor", "long_factor"},
    "llama3": {"factor", ORIGINAL, "low_freq_factor", "high_freq_factor"},
    "proportional": {"factor", "partial_rotary_factor"},
}
TOP_LEVEL = {"rope_theta", "rope_scaling", "rope_parameters"}
# Schemes that transformers' Llama cannot compute: why, and what to do.
REFUSED = {
    "xpos": "transformers has no decay over distance; train with position=rope to export",
    "xpos_abf": "transformers has no decay over distance; train with position=abf to export",
    "truncated": "transformers has no truncated basis; position=p_rope also stops the slowest pairs and can be exported",
    "power": "transformers has no power basis; position=longrope with factor=1 and the same divisors in both lists is the same encoder "
    "and can be exported",
    "ntk_by_parts": "transformers' yarn, with truncate or without, has a ramp in the pair's index instead of its turns; position=yarn "
    "can be exported, and position=longrope with factor=1 and the same divisors in both lists is the same encoder",
    "nope": "transformers has no kind without positions; position=p_rope with fraction=0 is the same encoder and can be exported",
    "alibi": "transformers' Llama adds nothing to its scores; train with position=rope or nope to export",
}


def position_from_hf(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Scheme and settings, complete, of the encoder that a config.json describes.

    Args:
        config: the whole config.json of a Llama.
        where: its path, for messages.

    Raises:
        UserError: no base, an unknown kind, a key without counterpart, layouts that contradict each other, or a bad value.
    """
    for key, value in config.items():
        if ("rope" in key or "rotary" in key) and key not in TOP_LEVEL | {"partial_rotary_factor"} and value not in (None, False):
            raise UserError(f"{where}: {key}={value!r} is not known here and may change the positional encoder")
    groups = {key: config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)} or {"": {}}
    found = {key: position_from_group(group, key, config, where) for key, group in groups.items()}
    first, *others = found.values()
    if any(other != first for other in others):
        raise UserError(
            f"{where}: rope_parameters and rope_scaling describe different positional encoders ({first} and {others[0]}); "
            f"remove the one that is wrong"
        )
    return first


def position_from_group(group: Any, key: str, config: dict[str, Any], where: str) -> dict[str, Any]:
    """The same for one group of settings, which is called ``key`` in ``config``."""
    label = f"{where}: {key or 'rope_theta'}"
    if not isinstance(group, dict) or any(isinstance(value, dict) for value in group.values()):
        raise UserError(f"{label} must be one group of settings for all layers, not {group!r}")
    rope = {name: value for name, value in group.items() if value is not None}
    for name, value in rope.items():
        lists = name in ("short_factor", "long_factor")
        if name not in ("rope_type", "type") and not isinstance(value, list if lists else int | float):
            raise UserError(f"{label}: {name} must be {'a list of numbers' if lists else 'a number'}, not {value!r}")
    kind = rope.pop("rope_type", rope.get("type", "default"))
    if rope.pop("type", kind) != kind:
        raise UserError(f"{label}: rope_type and type contradict each other: {group!r}")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{label}: unknown rope_type {kind!r}{nearest(str(kind), KINDS)}")

    base = the_base(rope.pop("rope_theta", None), config.get("rope_theta"), where)
    share = config.get("partial_rotary_factor")
    if share is not None:
        rope.setdefault("partial_rotary_factor", share)
    if kind != "proportional" and rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"{label}: partial_rotary_factor goes with rope_type proportional only; a Llama of type {kind} turns whole heads"
        )
    if unknown := sorted(rope.keys() - KINDS[kind]):
        raise UserError(f"{label}: {unknown[0]}={rope[unknown[0]]!r} has no meaning here for rope_type {kind}")
    found = mapped(kind, base, rope, config, label)
    try:
        return settings(found, head_dim_of(config, where), label)
    except UserError as error:  # what the encoder itself says of a value names no file
        raise UserError(str(error) if where in str(error) else f"{label}: {error}") from None


def the_base(inner: Any, outer: Any, where: str) -> float:
    """The one RoPE base of ``rope_theta`` within the group and at the top."""
    said = [base for base in (inner, outer) if base is not None]
    if not said:
        raise UserError(
            f"{where}: there is no rope_theta, neither at the top nor in rope_parameters, and a RoPE base cannot be guessed; if it was "
            f'trained with 10,000 (Llama 1 and 2), add "rope_theta": 10000.0'
        )
    if not all(isinstance(base, int | float) for base in said) or said[0] != said[-1]:
        raise UserError(f"{where}: rope_theta is given as {' and '.join(map(repr, said))}; leave one number, the right one")
    return float(said[0])


def mapped(kind: str, base: float, rope: dict[str, Any], config: dict[str, Any], label: str) -> dict[str, Any]:
    """Scheme and settings of ``kind``. ``rope`` holds keys of this kind only, none of them None."""
    context = whole(config, "max_position_embeddings", label, 2048)  # transformers' default for a Llama
    if kind == "default":
        return {"scheme": "rope", "base": base}
    if kind == "proportional":
        if rope.get("factor", 1.0) != 1.0:
            raise UserError(f"{label}: proportional with factor={rope['factor']} has no counterpart here; p_rope has no factor")
        return {"scheme": "p_rope", "base": base, "fraction": rope.get("partial_rotary_factor", 1.0)}
    if kind == "dynamic":  # counts from max_position_embeddings, whatever else is said
        if rope.get(ORIGINAL, context) != context:
            raise UserError(
                f"{label}: dynamic scaling starts at max_position_embeddings={context}, not {ORIGINAL}={rope[ORIGINAL]}"
            )
        return {"scheme": "dynamic_ntk", "base": base, "factor": need(rope, "factor", label), "original": context}
    if kind == "linear":
        return {"scheme": "pi", "base": base, "factor": need(rope, "factor", label)}

    original = whole(config, ORIGINAL, label, rope.get(ORIGINAL, context))
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        return {"scheme": "llama3", "base": base, "original": original} | {name: need(rope, name, label) for name in names}
    own = {"base": base, "original": original, "factor": rope.get("factor", context / original)}
    if kind == "longrope":
        own |= {"short_factors": need(rope, "short_factor", label), "long_factors": need(rope, "long_factor", label)}
        return {"scheme": "longrope"} | own | longrope_factor(rope, own["factor"], original, label)
    if rope.get("truncate") is False:
        raise UserError(
            f"{label}: yarn with truncate=false has no counterpart here; the ramp of yarn begins and ends at whole pairs"
        )
    own |= {
        "alpha": rope.get("beta_slow", 1.0),
        "beta": rope.get("beta_fast", 32.0),
        "attention": yarn_attention(rope, own["factor"]),
    }
    return {"scheme": "yarn"} | own


def yarn_attention(rope: dict[str, Any], factor: float) -> float | None:
    """YaRN's attention factor: given, or the ratio of two (DeepSeek's mscale), or None for 0.1·ln factor + 1."""
    if "attention_factor" in rope:
        return rope["attention_factor"]
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        over, under = (0.1 * rope[name] * math.log(max(factor, 1)) + 1 for name in ("mscale", "mscale_all_dim"))
        return over / under
    return None


def longrope_factor(rope: dict[str, Any], factor: float, original: int, label: str) -> dict[str, float]:
    """What ``factor`` must be here for the attention factor that is given: it serves the attention only, √(1 + ln factor/ln original)."""
    attention = rope.get("attention_factor")
    if attention is None or math.isclose(attention, math.sqrt(1 + math.log(max(factor, 1)) / math.log(original)), rel_tol=1e-9):
        return {}
    if attention < 1:
        raise UserError(f"{label}: attention_factor={attention:g} below 1 has no counterpart here in longrope")
    return {"factor": original ** (attention**2 - 1)}


def trained_context(config: dict[str, Any], where: str) -> int:
    """Tokens of context that the model of a config.json is for, its scaling included.

    ``max_position_embeddings`` may be that, or the context before scaling, as transformers' documentation wants it ("don't update
    max_position_embeddings"); `scaled_context` tells which.
    """
    if config.get(TRAINED) is not None:
        return whole(config, TRAINED, where)
    context = whole(config, "max_position_embeddings", where, 2048)  # transformers' default for a Llama
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":  # Phi-3's class has an original context even so
        return context
    original = whole(config, ORIGINAL, where, rope.get(ORIGINAL) or context)
    return scaled_context(context, original, rope.get("factor") or 1.0, kind)


def scaled_context(context: int, original: int, factor: float, kind: str) -> int:
    """``context`` where it is scaled already, else what scaling by ``factor`` makes of the ``original`` one.

    It is scaled already where it is more than the original context that the file names; and where linear scaling, which usually names
    none, leads to it from a context that Llamas are pretrained with: 32,768 with factor 8 (LLaMA-2-7B-32K) comes from Llama 2's 4,096, while
    4,096 with factor 4 is Llama 2 before scaling.
    """
    if context > original or (kind == "linear" and context not in PRETRAINED and context / factor in PRETRAINED):
        return context
    return round(original * max(factor, 1.0))


def hf_from_position(position: dict[str, Any], model: ModelConfig, context: int) -> dict[str, Any]:
    """Keys of config.json for transformers 4 and 5 that make a Llama compute what ``position`` does.

    Args:
        position: scheme and settings, as in configs/position/; its group ``training`` plays no part, as it ends with training.
        context: tokens the exported model is for.

    Returns:
        rope_theta, rope_scaling, rope_parameters and max_position_embeddings; for longrope also original_max_position_embeddings; with
        scaling also max_sequence_length, which is ``context``.

    Raises:
        UserError: transformers cannot express the scheme; says why and what to use instead.
    """
    scheme = str(position.get("scheme"))
    if reason := REFUSED.get(
        scheme, "" if ":" not in scheme else "transformers does not know your own schemes; train with a built-in one"
    ):
        raise UserError(f"position.scheme={scheme} cannot be exported to Hugging Face: {reason}")
    encoder = build(position, model.head_dim)
    own = {key: value for key, value in settings(position, model.head_dim).items() if key in ("factor", "original", "fraction")}
    base, rope = expressed(scheme, encoder, own)
    longest = context
    if scheme == "dynamic_ntk":  # the length at which it begins to scale; it has no end
        longest = own["original"]
    if scheme == "yarn" and context != own["factor"] * own["original"]:
        # Where an original context is named, transformers up to 4.53 take the factor from max_position_embeddings / original; where none
        # is, all versions take max_position_embeddings for it, and the factor that is written.
        longest = rope.pop(ORIGINAL)
    parameters = {"rope_theta": base, "rope_type": "default"} | rope
    result = {"rope_theta": base, "rope_scaling": rope or None, "rope_parameters": parameters, "max_position_embeddings": longest}
    if scheme == "longrope":  # where transformers 4 looks for it
        result[ORIGINAL] = own["original"]
    if "factor" in rope:  # then max_position_embeddings alone would be ambiguous
        result[TRAINED] = context
    return result


def expressed(scheme: str, encoder: PositionalEncoder, own: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Base, and the settings of the kind that ``encoder`` is; none of them for plain RoPE."""
    base = float(encoder.base)
    if scheme == "ntk":
        return base * own["factor"] ** (encoder.head_dim / (encoder.head_dim - 2)), {}
    if scheme == "p_rope":
        return base, {"rope_type": "proportional", "partial_rotary_factor": own["fraction"]}
    if scheme == "pi":
        return base, {"rope_type": "linear", "factor": own["factor"]}
    if scheme == "dynamic_ntk":
        return base, {"rope_type": "dynamic", "factor": own["factor"]}
    if scheme not in ("yarn", "longrope", "llama3"):
        return base, {}
    rope = {"rope_type": scheme, "factor": own["factor"], ORIGINAL: own["original"]}
    if scheme == "llama3":
        return base, rope | {"low_freq_factor": encoder.low_freq_factor, "high_freq_factor": encoder.high_freq_factor}
    rope["attention_factor"] = encoder.attention_factor(own["original"])  # said, since transformers 4 and 5 derive it differently
    if scheme == "yarn":
        return base, rope | {"beta_fast": encoder.beta, "beta_slow": encoder.alpha}
    return base, rope | {"short_factor": list(encoder.short_factors), "long_factor": list(encoder.long_factors)}


def head_dim_of(config: dict[str, Any], where: str) -> int:
    """Components of a head: head_dim, else hidden_size / num_attention_heads."""
    if config.get("head_dim") is not None:
        return whole(config, "head_dim", where)
    return whole(config, "hidden_size", where) // whole(config, "num_attention_heads", where)


def need(group: dict[str, Any], key: str, where: str) -> Any:
    """``group[key]``, or a UserError that says it is missing."""
    if group.get(key) is None:
        raise UserError(f"{where}: {key} is missing")
    return group[key]


def whole(group: dict[str, Any], key: str, where: str, default: int | None = None) -> int:
    """``group[key]``, a whole number above 0; ``default`` where it is missing."""
    value = default if group.get(key) is None and default is not None else need(group, key, where)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}: {key} must be a whole number above 0, not {value!r}")
    return value
