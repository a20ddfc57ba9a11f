"""RoPE in config.json: what is refused on the way in, and what transformers computes from what we write."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lit_long.config import ModelConfig, UserError
from lit_long.positions import SCHEMES, build, settings
from lit_long.positions.encoder import PositionalEncoder
from lit_long.pretrained.rope_config import hf_from_position, position_from_hf, trained_context

LLAMA = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 256}
MODEL = ModelConfig(d_model=64, n_heads=4, n_kv_heads=2, head_dim=16, context=64)
FACTORS = [1.0, 1.1, 1.3, 1.9, 2.5, 3.0, 3.5, 4.0]
STRETCHED = {"factor": 4.0, "original": 64}
# Every scheme that transformers can express, with settings that are not its defaults.
EXPORTED = {
    "rope": {"base": 31_250.0},
    "abf": {"base": 500_000.0},
    "pi": {"base": 10_000.0, "factor": 4.0},
    "ntk": {"base": 10_000.0, "factor": 4.0},
    "dynamic_ntk": {"base": 20_000.0, "factor": 2.0, "original": 64},
    "yarn": {"base": 10_000.0, "alpha": 0.1, "beta": 2.0} | STRETCHED,
    "yarn, attention": {"base": 10_000.0, "attention": 1.25} | STRETCHED,
    "yarn, 8 times": {"base": 10_000.0, "alpha": 0.1, "beta": 2.0} | STRETCHED | {"factor": 8.0},
    "yarn, 2.7 times": {"base": 10_000.0, "alpha": 0.1, "beta": 2.0} | STRETCHED | {"factor": 2.7},
    "yarn, once": {"base": 10_000.0, "alpha": 0.1, "beta": 2.0} | STRETCHED | {"factor": 1.0},
    "longrope": {"base": 10_000.0, "short_factors": FACTORS, "long_factors": FACTORS[::-1]} | STRETCHED,
    "llama3": {"base": 500_000.0, "low_freq_factor": 0.5, "high_freq_factor": 3.0} | STRETCHED,
    "p_rope": {"base": 10_000.0, "fraction": 0.6},
    "p_rope, none": {"base": 10_000.0, "fraction": 0.0},
    "rope, trained by pose": {"base": 10_000.0, "training": {"transform": "pose", "window": 64, "target": 256}},
}
REFUSED = {
    "xpos": {},
    "xpos_abf": {},
    "truncated": {},
    "power": {},
    "ntk_by_parts": STRETCHED,
    "nope": {},
    "alibi": {},
    "tests.pretrained.test_rope_config:Own": {},
}


@dataclass(frozen=True)
class Own(PositionalEncoder):
    def inverse_frequencies(self, length):
        return [0.1] * (self.head_dim // 2)


def read(**config):
    return position_from_hf(LLAMA | config, "FOLDER/config.json")


def transformers_tables(keys, length):
    """Cosines and sines [T, K/2] that transformers computes from a config.json with ``keys``, after a trip through JSON."""
    config = LlamaConfig.from_dict(json.loads(json.dumps(LLAMA | {"model_type": "llama"} | keys)))
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(length)[None])
    return cos[0, :, :8], sin[0, :, :8]


def assert_tables(position, cos, sin):
    own = build(position, 16).rotation(torch.arange(len(cos))[None], len(cos))
    torch.testing.assert_close(own.cos_q[0], cos, atol=3e-5, rtol=0)  # transformers' phases are fp32
    torch.testing.assert_close(own.sin_k[0], sin, atol=3e-5, rtol=0)


@pytest.mark.parametrize("layout", ["both", "old", "new"])
@pytest.mark.parametrize("name", EXPORTED)
def test_transformers_computes_what_is_written(name, layout):
    """The same tables within the original context and beyond, from either layout and from both; and reading it back."""
    position = {"scheme": name.split(",")[0]} | EXPORTED[name]
    keys = hf_from_position(position, MODEL, context=256)
    gone = {"old": ["rope_parameters"], "new": ["rope_theta", "rope_scaling"], "both": []}[layout]
    keys = {key: value for key, value in keys.items() if key not in gone}
    for length in (40, 64, 65, 256):
        assert_tables(position, *transformers_tables(keys, length))
    back = read(**keys)
    for length in (64, 256):
        positions = torch.arange(length)[None]
        for one, other in zip(build(position, 16).rotation(positions, length), build(back, 16).rotation(positions, length)):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert keys.get("original_max_position_embeddings") == (64 if name == "longrope" else None)  # transformers 4 looks there
    assert trained_context(keys, "FOLDER/config.json") == 256


@pytest.mark.parametrize("name", [name for name in EXPORTED if name.startswith("yarn")])
@pytest.mark.parametrize("context", [64, 256, 300])
def test_yarn_says_its_factor_twice_or_once(name, context):
    """transformers up to 4.53 takes max_position_embeddings / original for it where an original context is named
    (test_transformers_4.py has that version compute it)."""
    position = {"scheme": "yarn"} | EXPORTED[name]
    keys = hf_from_position(position, MODEL, context)
    for group in (keys["rope_scaling"], keys["rope_parameters"]):
        original = group.get("original_max_position_embeddings", keys["max_position_embeddings"])
        named = "original_max_position_embeddings" in group
        assert (keys["max_position_embeddings"] / original if named else group["factor"]) == position["factor"]
        assert original == 64
    assert trained_context(keys, "FOLDER/config.json") == context


SCALING = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
KEYS = {"linear": ["factor"], "dynamic": ["factor"], "yarn": ["factor"]}
KEYS |= {"llama3": ["factor", "low_freq_factor", "high_freq_factor"], "longrope": ["factor", "short_factor", "long_factor"]}


@pytest.mark.parametrize("layout", ["old", "new"])
@pytest.mark.parametrize("kind", KEYS)
def test_context_of_weights_with_scaling(kind, layout):
    """max_position_embeddings may be before the scaling, as transformers' documentation wants it, or after it."""
    group = {"rope_type": kind} | {key: SCALING[key] for key in KEYS[kind]}

    def context(top=None, **more):
        scaling = group | more
        keys = (
            {"rope_theta": 1e4, "rope_scaling": scaling}
            if layout == "old"
            else {"rope_parameters": scaling | {"rope_theta": 1e4}}
        )
        read(**keys, **(top or {}))  # an encoder that is known
        return trained_context(LLAMA | keys | (top or {}), "FOLDER/config.json")

    original = "original_max_position_embeddings"
    assert context() == 1024
    assert context(**{original: 256}) == 1024  # both before: Qwen's way
    assert context(top={"max_sequence_length": 300}) == 300  # FastChat's key
    if kind != "dynamic":  # which begins at max_position_embeddings, and there alone
        assert context(**{original: 64}) == 256  # after it: Llama 3.1's way, whose factor times original is not its context
        assert context(top={original: 64}) == 256  # Phi-3's


# max_position_embeddings, factor and base of files with linear scaling that name no original context, and the context they are for. The first is as it
# was published and trained; the others are Llamas scaled the way transformers' documentation has it.
LINEAR = {
    "togethercomputer/LLaMA-2-7B-32K": (32_768, 8.0, 10_000.0, 32_768),
    "Llama 1 for 16,384, written down as scaled": (16_384, 8.0, 10_000.0, 16_384),
    "Llama 1": (2048, 4.0, 10_000.0, 8192),
    "Llama 2": (4096, 4.0, 10_000.0, 16_384),
    "Llama 2, twice, which could be Llama 1 after scaling": (4096, 2.0, 10_000.0, 8192),
    "Llama 3": (8192, 4.0, 500_000.0, 32_768),
    "another": (1000, 4.0, 10_000.0, 4000),
}


@pytest.mark.parametrize("kind", ["type", "rope_type"])
@pytest.mark.parametrize("name", LINEAR)
def test_context_of_linear_scaling_without_an_original(name, kind):
    longest, factor, base, context = LINEAR[name]
    config = LLAMA | {"max_position_embeddings": longest, "rope_theta": base, "rope_scaling": {kind: "linear", "factor": factor}}
    assert position_from_hf(config, "x") == {"scheme": "pi", "base": base, "factor": factor}
    assert trained_context(config, "x") == context


def test_context_without_scaling():
    default = {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}
    for keys in ({}, {"rope_scaling": None}, default, {"original_max_position_embeddings": 4096}):
        assert trained_context(LLAMA | keys, "x") == 256
    assert trained_context({}, "x") == 2048
    with pytest.raises(UserError, match="x: max_sequence_length must be a whole number"):
        trained_context(LLAMA | {"max_sequence_length": "long"}, "x")


@pytest.mark.parametrize("scheme", REFUSED)
def test_schemes_that_transformers_cannot_express(scheme):
    with pytest.raises(UserError, match="cannot be exported to Hugging Face: transformers") as caught:
        hf_from_position({"scheme": scheme} | REFUSED[scheme], MODEL, context=256)
    assert "position=" in str(caught.value) or "built-in" in str(caught.value)  # what to use instead


def test_every_scheme_is_exported_or_refused():
    assert {name.split(",")[0] for name in EXPORTED} | set(REFUSED) >= set(SCHEMES)


@pytest.mark.parametrize(
    ("refused", "same"),
    [
        ({"scheme": "nope"}, {"scheme": "p_rope", "fraction": 0.0}),
        ({"scheme": "power", "base": 10_000.0, "k": 0.5}, "longrope"),
        ({"scheme": "ntk_by_parts", "base": 10_000.0} | STRETCHED, "longrope"),
    ],
)
def test_what_messages_advise_is_the_same_encoder(refused, same):
    """p_rope with fraction 0 for nope; longrope with the divisors in both lists for power and ntk_by_parts."""
    wanted = build(refused, 16).inverse_frequencies(256)
    if same == "longrope":
        divisors = [10_000 ** (-j / 8) / frequency for j, frequency in enumerate(wanted)]
        same = {"scheme": "longrope", "base": 10_000.0, "factor": 1.0, "short_factors": divisors, "long_factors": divisors}
    assert build(same, 16).inverse_frequencies(256) == pytest.approx(wanted, rel=1e-12)
    assert build(same, 16).attention_factor(256) == build(refused, 16).attention_factor(256) == 1
    assert_tables(same, *transformers_tables(hf_from_position(same, MODEL, 256), 256))


def test_settings_are_complete():
    found = read(rope_theta=5e5, rope_scaling={"type": "yarn", "factor": 2, "finetuned": True})
    assert found == settings(found, 16)
    assert found == {"scheme": "yarn", "base": 5e5, "factor": 2.0, "original": 256, "alpha": 1.0, "beta": 32.0, "attention": None}


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_original_context_at_the_top(kind):
    """It comes before the one in the group, and max_position_embeddings stands in for both, as in transformers."""
    scaling = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
    scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    inferred = {key: value for key, value in scaling.items() if not key.startswith("original")}
    for parameters, top, original in ((scaling, 32, 32), (scaling, None, 128), (inferred, None, 256)):
        keys = {"rope_parameters": parameters} | ({"original_max_position_embeddings": top} if top else {})
        assert read(**keys)["original"] == original
        assert_tables(read(**keys), *transformers_tables(keys, 200))


def test_longrope_attention_given():
    """It is kept as the factor that makes it; the factor itself where the two agree."""
    lists = {"short_factor": FACTORS, "long_factor": FACTORS, "original_max_position_embeddings": 64}
    group = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "attention_factor": 1.3} | lists
    assert build(read(rope_parameters=group), 16).attention_factor(100) == pytest.approx(1.3, rel=1e-12)
    same = build(read(rope_parameters=group | {"attention_factor": None}), 16).attention_factor(100)
    assert read(rope_parameters=group | {"attention_factor": same})["factor"] == 4.0


LONG = {"rope_type": "longrope", "short_factor": FACTORS, "long_factor": FACTORS}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, ["no rope_theta", "cannot be guessed", '"rope_theta": 10000.0']),
        ({"rope_theta": None, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, ["no rope_theta"]),
        ({"rope_parameters": {"rope_type": "default"}}, ["no rope_theta"]),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            ["rope_theta", "10000.0", "500000.0"],
        ),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "lineal", "factor": 2.0}}, ["unknown rope_type 'lineal'", "linear"]),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "su"}},
            ["unknown rope_type 'su'; known here: default, dynamic, linear, llama3, longrope, proportional, yarn"],
        ),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 2.0}}, ["contradict"]),
        ({"rope_theta": 1e4, "rope_scaling": {"type": []}}, ["unknown rope_type []"]),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}},
            ["rope_scaling", "original_max_position_embeddings must be a whole number above 0, not 0"],
        ),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear"}}, ["rope_scaling", "factor is missing"]),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 0.5}}, ["factor", "at least 1"]),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": "two"}}, ["factor must be a number", "two"]),
        ({"rope_theta": "1e4"}, ["rope_theta", "'1e4'"]),
        ({"rope_theta": 1e4, "rope_scaling": LONG | {"long_factor": 2.0}}, ["long_factor must be a list"]),
        ({"rope_theta": 1e4, "max_position_embeddings": "4096"}, ["max_position_embeddings must be a whole number"]),
        ({"rope_theta": 1e4, "head_dim": 0}, ["head_dim must be a whole number above 0"]),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 32}}, ["beta_fast=32", "linear"]),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, ["truncate"]),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "llama3", "factor": 8.0}}, ["low_freq_factor is missing"]),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2.0} | {"original_max_position_embeddings": 64}},
            ["256"],
        ),
        ({"rope_theta": 1e4, "rope_scaling": LONG | {"short_factor": FACTORS[:3]}}, ["short_factors", "list of 8"]),
        ({"rope_theta": 1e4, "rope_scaling": LONG | {"attention_factor": 0.9, "factor": 2.0}}, ["attention_factor=0.9"]),
        ({"rope_theta": 1e4, "partial_rotary_factor": 0.5}, ["partial_rotary_factor", "proportional"]),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
            ["proportional"],
        ),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "proportional", "factor": 2.0}}, ["factor=2.0", "p_rope"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e4}}}, ["one group"]),
        ({"rope_theta": 1e4, "rope_interleaved": True}, ["rope_interleaved=True"]),
        ({"rope_theta": 1e4, "rotary_pct": 0.25}, ["rotary_pct"]),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}, "rope_theta": 1e4}
            | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            ["different positional encoders"],
        ),
    ],
)
def test_nothing_is_dropped_silently(config, words):
    with pytest.raises(UserError) as caught:
        read(**config)
    for word in ("FOLDER/config.json", *words):
        assert word in str(caught.value), f"no {word!r} in: {caught.value}"
    assert str(caught.value).count("known here") <= 1


def test_harmless_keys():
    """As in SmolLM2's own config.json."""
    assert read(rope_theta=1e5, rope_scaling=None, rope_interleaved=False) == {"scheme": "rope", "base": 1e5}
    assert read(rope_theta=1e5, partial_rotary_factor=1.0) == {"scheme": "rope", "base": 1e5}
