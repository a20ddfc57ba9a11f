"""The constant of query scales that is fitted to held-out text, against models that have each constant from the start."""

from __future__ import annotations

import math

import pytest
import torch

from lit_long.config import EvaluationConfig
from lit_long.evaluation.perplexity import text_measurements
from lit_long.evaluation.query_scale import fit_query_scales
from lit_long.positions import build
from lit_long.positions.layers import LayerGroup, LayerPattern
from lit_long.positions.query_scale import ConstantScale, LogScale
from tests.evaluation.models import SHAPE
from tests.generation.llamas import small

CPU = torch.device("cpu")
TRIED = [1.5, 0.4, 0.0, 3.0]


def model(scale):
    nope = build({"scheme": "nope"}, SHAPE.head_dim)
    return small(SHAPE, LayerPattern((LayerGroup(nope, query_scale=scale), LayerGroup(nope, 32)), (0, 1)), seed=1)


@pytest.mark.parametrize("form", [lambda c: ConstantScale(c, trained=64), lambda c: LogScale(2 + 100 * c)])
def test_the_constant_of_the_lowest_perplexity(store, form):
    """And all lengths are then measured with it: DroPE's in proportion to each."""
    asked = EvaluationConfig(domains=["code", "docs"], lengths=[32, 128], sequences=3, batch_tokens=512)
    values = [getattr(form(c), form(c).fitted) for c in TRIED]
    asked.query_scales = values

    def nats(one, lengths):
        asked.lengths = lengths
        found = text_measurements(one, store, asked, CPU, lambda tokens: None)
        return {(row.domain, row.length): row.settings["nats"] for row in found if row.metric == "perplexity"}

    with torch.no_grad():
        each = [nats(model(form(c)), [32, 128]) for c in TRIED]
        sums = [(found["code", 128] + found["docs", 128]) / 2 for found in each]  # of as many tokens
        one, seen = model(form(TRIED[0])), []
        asked.lengths = [32, 128]
        (fitted,) = fit_query_scales(one, store, asked, CPU, seen.append)
        asked.skip, asked.sequences = 3, 2
        assert fit_query_scales(model(form(TRIED[0])), store, asked, CPU, lambda tokens: None) == [fitted]  # on what is left out
        asked.skip, asked.sequences = 0, 3
        best = sums.index(min(sums))
        assert len(set(sums)) == len(TRIED) and fitted.value == values[best] and best > 0
        assert [*fitted.settings["perplexity"].values()] == pytest.approx([math.exp(mean) for mean in sums])
        assert nats(one, [32, 128]) == each[best] and fitted.length == 128 and sum(seen) == len(TRIED) * fitted.tokens


def test_a_constant_by_context():
    """Within the trained context it changes nothing; beyond it is DroPE's with the factor that was named there."""
    group, positions = (
        LayerGroup(build({"scheme": "nope"}, 16), query_scale=ConstantScale(0.412, trained=64)),
        torch.arange(256)[None],
    )
    for length, factor in ((32, 1), (64, 1), (128, 2), (256, 4)):
        expected = LayerGroup(group.encoder, query_scale=ConstantScale(0.412, factor)).rotation(positions, length)
        assert group.rotation(positions, length).cos_q.equal(expected.cos_q)
