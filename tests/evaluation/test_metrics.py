"""SCROLLS' metrics against the packages that others compute them with, and programs that models write."""

from __future__ import annotations

import random
import resource
from pathlib import Path

import numpy as np
import pytest

from lit_long.evaluation.code_execution import humaneval, mbpp, passes
from lit_long.evaluation.scrolls import rouge, squad
from lit_long.evaluation.statistics import geometric

WORDS = [
    "The",
    "a",
    "ferry",
    "left,",
    "at",
    "nine.",
    "Anna",
    "carried",
    "an",
    "old",
    "Blue",
    "lamp;",
    "letters",
    "the",
    "keeper's",
    "café",
    "42",
]


def texts(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(count)]


def test_f1_and_exact_match_are_squads():
    from lm_eval.tasks.longbench.metrics import normalize_answer, qa_f1_score  # of LongBench's authors

    drawn = texts(120)
    for written, *right in zip(drawn[::3], drawn[1::3], [drawn[0], *drawn[5::3]], strict=False):
        found = squad(written, right)
        assert found["f1"] == pytest.approx(max(qa_f1_score(written, each) for each in right), abs=1e-6)
        assert found["exact_match"] == any(normalize_answer(written) == normalize_answer(each) for each in right)
    assert squad("The Lamp.", ["lamp"])["exact_match"] == 1 and squad("", ["lamp"])["f1"] == 0


def test_rouge_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    drawn = [text.replace("é", "e") for text in texts(60)]
    for written, *right in zip(drawn[::3], drawn[1::3], drawn[2::3], strict=True):
        expected = [scorer.score(each, written) for each in right]
        found = rouge({"outputs": right}, [written])
        for key, value in found.items():
            assert value == pytest.approx(max(each[key].fmeasure for each in expected), abs=1e-6)


def test_rouge_geo_is_the_geometric_mean_of_the_means():
    samples = np.random.default_rng(0).uniform(0.05, 0.9, (200, 3))
    found = geometric(samples.tolist())
    assert found["value"] == pytest.approx(np.prod(samples.mean(0)) ** (1 / 3))
    draws = np.random.default_rng(1).integers(200, size=(4000, 200))
    assert found["stderr"] == pytest.approx(np.prod(samples[draws].mean(1), -1).__pow__(1 / 3).std(), rel=0.05)
    assert found["low"] < found["value"] < found["high"]
    assert geometric([[0.2, 0.0, 0.1], [0.1, 0.0, 0.4]])["value"] == 0
    assert geometric([[0.2, 0.1, 0.1]])["stderr"] is None


@pytest.mark.parametrize(
    ("program", "passed"),
    [
        ("x = 1\nassert x == 1", True),
        ("assert False", False),
        ("import sys; sys.exit(0)", False),  # leaves before the tests
        ("import os; os._exit(0)", False),
        ("while True: pass", False),
        ("x = bytearray(4 << 30)", False),
        ("open('big', 'wb').write(b'x' * (4 << 20))", False),
        ("import os; assert not {'HOME', 'PATH', 'HF_TOKEN'} & set(os.environ)", True),
        ("import os; assert os.listdir('.') == []", True),
        ("def f(:", False),
        ("print('x' * 100)", True),
    ],
)
def test_programs(program, passed, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    before = set(Path.cwd().iterdir())
    assert passes(program, seconds=2) is passed and set(Path.cwd().iterdir()) == before


def test_a_program_that_prints_without_end_takes_no_memory_of_ours():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not passes("s = 'x' * 10**6\nwhile True: print(s)", seconds=2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes
    assert passes("print('x' * 10**7)", seconds=2)  # a right answer may print as much as it likes


def test_humaneval_and_mbpp():
    doc = {"prompt": "def plus(x):\n", "test": "def check(f):\n    assert f(1) == 3\n", "entry_point": "plus"}
    assert humaneval(doc, ["    return x + 2\n"]) == {"pass@1": 1.0} and humaneval(doc, ["    return x\n"]) == {"pass@1": 0.0}
    task = {"test_list": ["assert add(1) == 3"], "test_setup_code": ""}
    assert mbpp(task, ["def add(x):\n    return x + 2\n"]) == {"pass@1": 1.0} and mbpp(task, ["def add(x): 1"]) == {"pass@1": 0.0}
