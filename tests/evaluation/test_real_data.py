"""The published test sets themselves, where they are: every task finds its rows, every right answer is one, and SmolLM2's scores are those of lm-eval's own model.

The sets are not part of this project (shared/data/MANIFEST.md names their sources); where they are not, these tests are skipped.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.lm_eval import HarnessTask, Wanted
from lit_long.evaluation.public_data import Unavailable
from lit_long.evaluation.task import run_tasks
from lit_long.pretrained import open_pretrained
from tests.evaluation.models import bytes_folder
from tests.evaluation.side_by_side import LIKELIHOODS, NEAR, TEXTS, both, compare
from tests.pretrained.llamas import read

CONVERT = Path(__file__).resolve().parents[3] / "shared" / "data" / "convert.py"
ROWS = {  # documents of each task
    "hellaswag": 10_042,
    "piqa": 1838,
    "arc_easy": 2376,
    "arc_challenge": 1172,
    "openbookqa": 500,
    "social_iqa": 1954,
    "winogrande": 1267,
    "gsm8k": 1319,
    "nq_open": 3610,
    "triviaqa": 2900,
    "humaneval": 164,
    "mbpp": 500,
    "qmsum": 272,
    "contract_nli": 1037,
}
REMARKS = {  # what its scores say of its data
    "nq_open": [
        "shots come from a part of, or a stand-in for, google-research-datasets/nq_open, split train: 1,800 rows, of 87,925 published"
    ],
    "triviaqa": [
        "shots come from a part of, or a stand-in for, mandarjoshi/trivia_qa, split train: 100 rows, of 138,384 published",
        "scored on rows of a part of, or a stand-in for, mandarjoshi/trivia_qa, split validation: 2,900 rows, of 17,944 published",
    ],
    "contract_nli": ["shots come from a part of, or a stand-in for, tau/scrolls, split train: 2,091 rows, of 7,191 published"],
}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CONVERT.is_file(), reason="no real data here")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    subprocess.run([sys.executable, CONVERT, root], check=True, capture_output=True)
    return str(root)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    pretrained = open_pretrained(str(bytes_folder(tmp_path_factory.mktemp("llama") / "model", 2048)))
    return EvaluatedModel(read(pretrained), pretrained.tokenizer(), 2048, 4096)


@pytest.mark.parametrize("name", ROWS)
def test_all_rows_are_there_with_a_right_answer(name, data, evaluated):
    """Building a task looks at the right answer of each of its documents."""
    task = HarnessTask(name, evaluated, [2048], Wanted(0, 0, data, run_code=True))
    assert len(task.items) == ROWS[name] and list(task.remarks) == REMARKS.get(name, [])


@pytest.mark.parametrize(("name", "parts"), [("mmlu", 4), ("mmlu_continuation", 1)])
def test_mmlu(name, parts, data, evaluated, tmp_path):
    task = HarnessTask(name, evaluated, [2048], Wanted(1, 0, data, shots=0))
    rows = run_tasks(evaluated, [task], {}, tmp_path, lambda *_: None)
    assert {row.n for row in rows if row.domain == "all"} == {57}
    assert len({row.domain for row in rows}) == (parts + 1 if parts > 1 else 1)


def test_what_is_not_there_is_named(data, evaluated):
    for name in ("narrativeqa", "math", "commonsense_qa"):
        with pytest.raises(Unavailable, match="holds no"):
            HarnessTask(name, evaluated, [2048], Wanted(1, 0, data))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return both(tmp_path_factory.mktemp("smollm2") / "model")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [*LIKELIHOODS, *TEXTS])
def test_smollm2_answers_as_lm_evals_own_model(name, pair, data):
    """Two rows; `python -m tests.evaluation.side_by_side` compares fifty."""
    found = compare(name, *pair, data, 2)
    assert found["rows"] == 2 and found["furthest"] < NEAR and found["other"] == 0, found
