"""Each measurement has one name in a tracker."""

from __future__ import annotations

from lit_long.evaluation.measurement import Measurement
from lit_long.tracking.metric_names import metrics_of, name_of


def test_names():
    cell = Measurement("score_at_depth", "docs", 512, 0.5, task="needle", settings={"depth": 0.0})
    curve = [Measurement("loss_by_position", "docs", edge, 1.0 / edge) for edge in (16, 32)]
    found = metrics_of([Measurement("perplexity", "docs", 512, 8.0), *curve, cell])
    assert found == {
        ("eval/perplexity/docs/512", 0): 8.0,
        ("eval/loss_by_position/docs", 16): 1 / 16,
        ("eval/loss_by_position/docs", 32): 1 / 32,
    }


def test_a_quantity_has_one_name():
    """Whether an evaluate stage measures it itself, as one of evaluation.tasks, or the command does."""
    stage, asked = Measurement("perplexity", "docs", 512, 8.0), Measurement("perplexity.perplexity", "docs", 512, 8.5)
    command = Measurement("perplexity", "docs", 512, 9.0, task="perplexity")
    assert {name_of(each) for each in (stage, asked, command)} == {"eval/perplexity/docs/512"}
    assert metrics_of([stage, asked]) == {("eval/perplexity/docs/512", 0): 8.0}  # of two the first
    in_sweep, alone = Measurement("needle.score", "docs", 512, 1.0), Measurement("score", "docs", 512, 1.0, task="needle")
    assert name_of(in_sweep) == name_of(alone) == "eval/needle.score/docs/512"
