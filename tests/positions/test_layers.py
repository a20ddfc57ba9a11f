"""Query scales at the positions of their sources, and what of layers is refused."""

from __future__ import annotations

import math
import re

import pytest
import torch

from lit_long.config import LayerGroupConfig, LayersConfig, UserError
from lit_long.positions import build
from lit_long.positions.layers import LayerGroup, build_layers, build_scale, layer_settings

ROPE, NOPE = {"scheme": "rope", "base": 10_000.0}, {"scheme": "nope"}


def factors(query_scale, *positions):
    return build_scale(query_scale, "x").factors(torch.tensor(positions, dtype=torch.float64)).tolist()


def test_llama_4s_scale():
    """The numbers of transformers' Llama 4 (attn_scale 0.1, floor_scale 8192)."""
    found = factors({"form": "floor_log"}, 0, 8190, 8191, 16_382, 16_383)
    assert found == pytest.approx([1, 1, 1.0693147, 1.0693147, 1.1098612], abs=1e-7)


def test_swans_scale():
    """log_a(a + n): 1 at the first token, 2 where a + n = a²."""
    assert factors({"form": "log", "base": 100}, 0, 9900, 999_900) == pytest.approx([1, 2, 3])


def test_dropes_scale():
    """The paper's constants: 0.412 for its model from scratch, at twice and at eight times the trained context."""
    assert factors({"form": "constant", "coefficient": 0.412, "factor": 2}, 0, 77) == pytest.approx([1 + 0.412 * math.log(2)] * 2)
    assert factors({"form": "constant", "coefficient": 0.103, "factor": 8}, 5) == pytest.approx([1.214182], abs=1e-6)


@pytest.mark.parametrize("position", [ROPE, NOPE], ids=lambda each: each["scheme"])
def test_a_scale_is_in_the_tables_of_queries_alone(position):
    encoder = build(position, 16)
    positions = torch.arange(20_000)[None]
    plain = encoder.rotation(positions, 20_000)
    scaled = LayerGroup(encoder, None, build_scale({"form": "floor_log"}, "x")).rotation(positions, 20_000)
    beta = scaled.cos_q.square() + scaled.sin_q.square()
    expected = torch.tensor(factors({"form": "floor_log"}, *range(20_000)), dtype=torch.float32)
    torch.testing.assert_close(beta.sqrt(), expected[None, :, None].expand_as(beta), atol=1e-6, rtol=1e-6)
    assert torch.equal(scaled.cos_k, plain.cos_k) and torch.equal(scaled.sin_k, plain.sin_k)
    assert scaled.cos_q.dtype == torch.float32


def layers(pattern=("a", "b"), **groups):
    return LayersConfig({name: LayerGroupConfig(**group) for name, group in groups.items()}, list(pattern))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (layers(("a", "bb"), a={}, b={}), "m.yaml: layers.pattern: no group 'bb'; did you mean 'b'?"),
        (
            layers(("a",), a={}, b={}),
            "m.yaml: layers.groups.b is in no place of layers.pattern=[a]; put it there, or leave it out",
        ),
        (
            layers(a={}, b={"position": {"scheme": "rop"}}),
            "m.yaml: layers.groups.b: unknown position.scheme 'rop'; did you mean 'rope'?",
        ),
        (layers(a={}, b={"position": {"base": 10}}), "m.yaml: layers.groups.b: position.scheme is missing"),
        (layers(a={}, b={"position": ROPE | {"factor": 2}}), "m.yaml: layers.groups.b: unknown key 'position.factor'"),
        (
            layers(a={}, b={"position": NOPE | {"training": {}}}),
            "m.yaml: layers.groups.b.position.training: tokens have one position in all",
        ),
        (
            layers(a={}, b={"query_scale": {"base": 10}}),
            "m.yaml: layers.groups.b: query_scale.form is missing; known here: log, floor_log, constant",
        ),
        (
            layers(a={}, b={"query_scale": {"form": "logs"}}),
            "m.yaml: layers.groups.b: unknown query_scale.form 'logs'; did you mean 'log'?",
        ),
        (
            layers(a={}, b={"query_scale": {"form": "log"}}),
            "m.yaml: layers.groups.b: query_scale.base is missing; log has no default for it",
        ),
        (
            layers(a={}, b={"query_scale": {"form": "log", "base": 1}}),
            "m.yaml: layers.groups.b: query_scale.base must be above 1",
        ),
        (layers(a={}, b={"position": {"scheme": "xpos"}}), "position: xPos with scale_base=512 and centre=0 holds up to"),
    ],
)
def test_what_is_refused(config, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build_layers(config, ROPE, 16, "m.yaml", 10**6)


def test_settings_are_spelt_out():
    found = layer_settings(
        layers(a={"position": {"scheme": "rope"}, "window": 7}, b={"query_scale": {"form": "floor_log"}}), ROPE, 16
    )
    assert found.groups["a"] == LayerGroupConfig({"scheme": "rope", "base": 10_000.0}, 7)
    assert found.groups["b"] == LayerGroupConfig(query_scale={"form": "floor_log", "coefficient": 0.1, "length": 8192})
    assert layer_settings(layers(a={"position": {"scheme": "rope"}}, b={}), ROPE, 16) == LayersConfig()  # all are alike


class OwnScale:
    pass


def test_a_scale_of_ones_own_must_be_one():
    with pytest.raises(UserError, match="must be a dataclass derived from QueryScale"):
        build_scale({"form": f"{__name__}:OwnScale"}, "x")
