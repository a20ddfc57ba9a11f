"""The report's first two sentences: true of the numbers, and no more than they tell."""

from __future__ import annotations

import pytest

from lit_long.report import write_report
from lit_long.report.headline import headline
from lit_long.report.results import aggregate, read_sweep


def told(folder):
    return headline(aggregate(read_sweep(folder)))


def scores(code, docs=30.0, **retrieval):
    """Perplexities at 2,048, and retrieval by ROUGE-L at 256 and 2,048."""
    found = [("perplexity", "code", 2048, code), ("perplexity", "docs", 2048, docs)]
    return found + [("retrieval_rouge_l", "docs", int(length[1:]), value) for length, value in retrieval.items()]


def test_the_order_of_the_rows_with_one_seed(tmp_path, make):
    """Lower perplexity is better, higher retrieval; ties are said; the report begins with it, before table and figure."""
    measured = {("rope", 0): scores(21.96, 26.2, _256=0.7, _2048=0.0), ("abf", 0): scores(17.78, 30.0, _256=0.6, _2048=0.747)}
    measured[("pi", 0)] = scores(26.3, 26.2, _256=0.7, _2048=0.0)
    folder = make.sweep(tmp_path, measured, base={0: scores(1.0)})  # the reference is no row of its own
    first, second = told(folder)
    assert first == (
        "Validation perplexity at 2,048 tokens, lowest (best) first, in code: RoPE ABF 17.78, RoPE 21.96, RoPE PI 26.30; "
        "in docs: RoPE 26.20 = RoPE PI 26.20, RoPE ABF 30.00; one seed: no interval."
    ).replace("17.78", "17.780").replace("21.96", "21.960").replace(
        "26.30;", "26.300;"
    )  # three places: the reference is below 10
    assert second == (
        "First-sentence retrieval by ROUGE-L at 2,048 tokens, highest (best) first, in docs: RoPE ABF 74.7 %, RoPE 0.0 % = RoPE PI 0.0 %; "
        "one seed: no interval."
    )
    markdown = write_report(folder).markdown
    top, _, below = markdown.partition("\n\n## What was run")
    assert top.startswith(
        f"# Positions, small\n\n{first}\n\n{second}\n\n## Validation perplexity (lower is better)\n\n| variant |"
    )
    assert "\n\n![" in top and "## Provenance" in below and "Which encoder extends best." in below


def test_differences_stand_beside_their_intervals_from_three_seeds_on(tmp_path, make):
    """abf is lower by 2 ± a little under every seed; pi is not told apart; xpos differs by exactly 1, which has no interval."""
    noise = [0.0, 0.3, 0.1]
    rows = {"rope": [21.0, 21.5, 22.0], "pi": [21.4, 21.2, 22.1]}
    rows |= {"abf": [rope - 2 - extra for rope, extra in zip(rows["rope"], noise, strict=True)], "xpos_abf": [22.0, 22.5, 23.0]}
    measured = {
        (row, seed): [("perplexity", "code", 2048, value)] for row, values in rows.items() for seed, value in enumerate(values)
    }
    (first,) = told(make.sweep(tmp_path, measured))
    assert first == (
        "Validation perplexity at 2,048 tokens, lowest (best) first, in code: RoPE ABF 19.37 (−2.13 [−2.51, −1.75]), RoPE 21.50, "
        "RoPE PI 21.57 (+0.067 [−0.806, +0.939], not told apart), xPOS ABF 22.50 (+1.00 under every seed); "
        "means of 3 seeds, in brackets the difference to RoPE under the same seed, with its 95 % interval."
    )


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({("rope", 0): 21.0, ("abf", 0): None}, "in code: RoPE 21.00, RoPE ABF not measured; one seed: no interval."),
        ({("rope", 0): 21.0, ("abf", 0): 21.0}, "tokens, in code: no difference, all 21.00; one seed: no interval."),
        ({("rope", 0): 21.0, ("abf", 0): float("nan")}, "in code: RoPE 21.00, RoPE ABF without a finite value; one seed"),
        ({("rope", s): 21.0 + s for s in (0, 1)} | {("abf", 0): 20.0}, "RoPE 21.50; means of 1 to 2 seeds: no interval"),
        ({(f"v{n}", 0): 20.0 + n for n in range(9)}, "v0 20.00, v1 21.00, v2 22.00, v3 23.00, … (4 more), v8 28.00; one"),
    ],
)
def test_what_is_not_known_is_said(tmp_path, make, measured, expected):
    found = {key: None if value is None else [("perplexity", "code", 2048, value)] for key, value in measured.items()}
    (first,) = told(make.sweep(tmp_path, found))
    assert expected in first


def test_one_variant_is_told_beside_the_reference_and_what_was_given_up(tmp_path, make):
    first, second = told(make.sweep(tmp_path, {("abf", 0): make.perplexities(20.0)}, base={0: make.perplexities(90.0)}))
    assert "in code: RoPE ABF 20.00, base 90.00; in docs" in first and "at 256 tokens" in second
    assert told(make.sweep(tmp_path / "none", {("abf", 0): None})) == []
