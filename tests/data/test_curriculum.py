"""Phases of a run: their borders and lengths, and how the data go on at a switch."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_long.config import CurriculumConfig, InstructConfig, SamplingConfig, UserError
from lit_long.config.schema import PhaseConfig
from lit_long.data import sampling
from lit_long.data.curriculum import Phase, make_phases
from lit_long.data.mixture import Recipe, Updates, make_mixtures
from lit_long.data.sampling import Shuffled
from tests.data.memory import MemoryDocuments, MemoryStore, numbered, origins

CONFIGS = Path(__file__).parents[2] / "configs" / "curriculum"


def phases(*rows, context=256, tokens_per_update=1024, updates=100):
    curriculum = CurriculumConfig([PhaseConfig(**row) for row in rows])
    return make_phases(curriculum, context, tokens_per_update, updates, "file.yaml: stage base")


def option(name):
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["phases"]


def test_without_phases_there_is_one():
    assert phases() == [Phase(0, 100, 256)] == phases(*option("constant"))


@pytest.mark.parametrize("percent", [20, 40, 80])
def test_the_papers_switches(percent):
    """4,096 and then 32,768, of the paper's 4M tokens per update."""
    found = phases(*option(f"switch_{percent}"), context=32_768, tokens_per_update=2**22, updates=1000)
    assert found == [Phase(0, 10 * percent, 4096), Phase(10 * percent, 1000, 32_768)]


def test_linear_growth_by_hand():
    """32 to 256 over 80 updates; a length lasts until half-way to the next: (48 - 32) / 224 of 80 is 5.7, and so on."""
    found = phases(*option("linear"))
    assert [(phase.start, phase.stop, phase.context) for phase in found] == [
        (0, 6, 32),
        (6, 23, 64),
        (23, 57, 128),
        (57, 80, 256),
        (80, 100, 256),
    ]


def test_linear_growth_is_as_near_to_a_line_as_lengths_allow():
    found = phases({"until": 1, "grow_from": 0.125}, context=480, tokens_per_update=480 * 4, updates=10_000)
    lengths = [length for length in range(60, 481) if 480 * 4 % length == 0]
    for update in range(0, 10_000, 97):
        context = next(phase.context for phase in found if update < phase.stop)
        wanted = 60 + 420 * update / 10_000
        assert abs(context - wanted) <= min(abs(length - wanted) for length in lengths) + 1


@settings(max_examples=100, deadline=None)
@given(
    cuts=st.lists(st.floats(0.01, 0.99), unique=True, max_size=4),
    scales=st.lists(st.sampled_from([0.0625, 0.125, 0.25, 0.5, 1.0]), min_size=10, max_size=10),
    grow=st.lists(st.booleans(), min_size=5, max_size=5),
    updates=st.integers(1, 300),
    factor=st.sampled_from([1, 3, 4, 15]),
)
def test_phases_follow_one_another_and_share_updates_out(cuts, scales, grow, updates, factor):
    context, tokens_per_update = 256, 256 * factor
    ends = [*sorted(cuts), 1.0]
    rows = [
        {"until": until, "scale": scales[2 * i], "grow_from": scales[2 * i + 1] if grow[i] else 0.0, "weights": {"a": 1.0 + i}}
        for i, until in enumerate(ends)
    ]
    rows[-1]["scale"] = 1.0
    found = phases(*rows, context=context, tokens_per_update=tokens_per_update, updates=updates)
    assert found[0].start == 0 and found[-1].stop == updates
    assert all(a.stop == b.start for a, b in itertools.pairwise(found))
    assert all(phase.start < phase.stop and tokens_per_update % phase.context == 0 for phase in found)
    for number, (row, begin) in enumerate(zip(rows, [0.0, *ends], strict=False)):
        own = [phase for phase in found if phase.weights == {"a": 1.0 + number}]
        span = round(updates * row["until"]) - round(updates * begin)
        assert sum(phase.updates for phase in own) == span
        contexts = [phase.context for phase in own]
        first, last = (round(context * share) for share in (row["grow_from"] or row["scale"], row["scale"]))
        assert contexts == sorted(contexts, reverse=first > last)
        assert all(min(first, last) <= length <= max(first, last) for length in contexts)
        if span > 200:
            assert (contexts[0], contexts[-1]) == (first, last)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"until": 0.0}], r"phases\[0\]\.until must lie above 0, .* at most 1, not 0\.0"),
        ([{"until": 0.5}, {"until": 0.5}], r"phases\[1\]\.until must lie above 0\.5, where the phase begins"),
        ([{"until": 1.2}], r"phases\[0\]\.until .*at most 1, not 1\.2"),
        ([{"until": float("nan")}], r"phases\[0\]\.until"),
        (
            [{"until": 0.5, "scale": 0.3}, {}],
            r"phases\[0\]\.scale=0\.3 makes sequences of 77 .* 16 to 256 .* tokens_per_update=1024",
        ),
        ([{"until": 0.5, "scale": 0.03125}, {}], r"phases\[0\]\.scale=0\.03125 makes sequences of 8 tokens"),
        ([{"until": 0.5, "scale": 2.0}, {}], r"phases\[0\]\.scale=2 makes sequences of 512 tokens"),
        ([{"grow_from": 0.3}], r"phases\[0\]\.grow_from=0\.3 makes sequences of 77"),
        ([{"until": 0.5}], "curriculum.phases: the last one must end with until=1 and scale=1"),
        ([{"scale": 0.5}], "curriculum.phases: the last one must end with until=1 and scale=1"),
        ([{"position": {"base": 3}}], "curriculum: the last phase has a position of its own.*name it there"),
    ],
)
def test_phases_that_make_no_run(rows, message):
    with pytest.raises(UserError, match=rf"^file\.yaml: stage base\.curriculum.*{message.removeprefix('curriculum')}"):
        phases(*rows)


def rows_of(store, found, weights, tokens_per_update, **recipe):
    """Rows of tokens of each phase."""
    made = Updates(
        make_mixtures(store, Recipe(weights, 3, **recipe), found, tokens_per_update), found, ["a", "b"], tokens_per_update
    )
    return [[row for step in range(p.start, p.stop) for row in made[step].tokens.tolist()] for p in found]


@pytest.mark.parametrize("contexts", [(16, 64), (16, 32, 64), (64, 16)])
def test_a_longer_phase_goes_on_where_the_shorter_one_was(contexts):
    """Within an epoch nothing comes twice and nothing is left out: what both phases read is one stretch."""
    store = MemoryStore(a=numbered([37] * 100))
    found = [Phase(6 * i, 6 * (i + 1), context) for i, context in enumerate(contexts)]
    tokens = [token for rows in rows_of(store, found, {"a": 1.0}, 64) for row in rows for token in row]
    assert len(tokens) == 6 * 64 * len(contexts)
    (straight,) = rows_of(store, [Phase(0, 6 * len(contexts), contexts[-1])], {"a": 1.0}, 64)
    assert tokens == [token for row in straight for token in row]


@pytest.mark.parametrize("contexts", [(16, 64), (64, 16), (16, 32, 64)])
def test_single_documents_come_once_an_epoch(contexts):
    """However much of each a phase reads: the next one begins with the document after its last."""
    lengths = [10 + i % 50 for i in range(100)]
    owner = {token: number for token, (number, _) in origins(numbered(lengths)).items()}
    found = [Phase(4 * i, 4 * (i + 1), context) for i, context in enumerate(contexts)]
    rows = rows_of(MemoryStore(a=numbered(lengths)), found, {"a": 1.0}, 64, packing="single")
    read = [owner[row[0]] for phase in rows for row in phase]
    straight = rows_of(MemoryStore(a=numbered(lengths)), [Phase(0, len(read), 64)], {"a": 1.0}, 64, packing="single")
    assert len(set(read)) == len(read) and read == [owner[row[0]] for row in straight[0]]


class Conversations(MemoryDocuments):
    def answers(self, index):
        return [(1, len(self[index]))]


@pytest.mark.parametrize("contexts", [(64, 256), (256, 64), (64, 128, 256)])
@pytest.mark.parametrize(
    "recipe",
    [
        {"packing": "single", "sampling": {"a": SamplingConfig(long_tokens=64, long_share=0.8)}},
        {"instruct": {"a": InstructConfig("messages", packing="single")}},
        {"instruct": {"a": InstructConfig("messages", packing="single")}, "sampling": {"a": SamplingConfig(documents=780)}},
    ],
)
def test_a_context_that_draws_other_documents_goes_on_in_the_same_order(recipe, contexts, monkeypatch):
    """Each phase reads what it draws of the documents that stand behind the last one of the phase before: none comes twice, none is passed over."""
    monkeypatch.setattr(sampling, "BLOCK", 256)
    documents = numbered([2 + number * 7919 % 97 * (1 + number % 4) for number in range(2400)])
    store = MemoryStore(a=documents)
    store._documents["a"] = Conversations(documents)
    order = Shuffled(len(documents), 3, "a", 0).stretch(0, len(documents)).tolist()
    place_of = {int(documents[number][0]): place for place, number in enumerate(order)}
    found = [Phase(6 * i, 6 * (i + 1), context) for i, context in enumerate(contexts)]
    behind = -1
    for phase, rows in zip(found, rows_of(store, found, {"a": 1.0}, 64 * 64, **recipe), strict=True):
        (alone,) = make_mixtures(store, Recipe({"a": 1.0}, 3, **recipe), [replace(phase, start=0, stop=1)], 64 * 64)
        source = alone.sources["a"]
        drawn = [place_of[int(source[number]["tokens"][0])] for number in range(source.sequences_per_epoch)]
        places = [place_of[row[0]] for row in rows]
        assert places == [place for place in drawn if place > behind][: len(places)]
        behind = places[-1]


def test_a_phase_goes_on_in_every_domain():
    """Two domains and a third of the second phase: repeated, or left out, is less than a sequence of either phase a domain."""
    store = MemoryStore(a=numbered([37] * 200), b=numbered([11] * 400, first=100_000))
    found = [Phase(0, 10, 16), Phase(10, 16, 64, {"a": 1.0}), Phase(16, 30, 64)]
    by_phase = rows_of(store, found, {"a": 0.3, "b": 0.7}, 128)
    for mine in (lambda token: token < 100_000, lambda token: token >= 100_000):
        parts = [[token for row in rows for token in row if mine(token)] for rows in by_phase]
        everything = [token for part in parts for token in part]
        repeated = len(everything) - len(set(everything))
        assert repeated <= 16 + 64
        domain = "a" if mine(1) else "b"
        (whole,) = rows_of(store, [Phase(0, 60, 64)], {domain: 1.0}, 128)
        order: dict[int, int] = {}
        for token in (token for row in whole for token in row):
            order.setdefault(token, len(order))
        places = [order[token] for token in everything]
        assert max(places) + 1 - len(set(places)) <= 16 + 64
    assert not [token for row in by_phase[1] for token in row if token >= 100_000]
