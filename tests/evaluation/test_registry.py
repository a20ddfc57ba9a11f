"""One registry of names: planning reads it without torch, suites have a maker for each, and a user adds a task from a folder of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lit_long.config import EvaluationConfig, StageConfig, UserError
from lit_long.evaluation.in_memory_corpus import InMemoryCorpus
from lit_long.evaluation.registry import BUILT_IN, check_task, task_code
from lit_long.evaluation.suites import TASK_REGISTRY, Asked, Size, domains_for, make_task
from lit_long.evaluation.task import run_tasks
from lit_long.positions import SCHEMES, TRANSFORMS
from lit_long.positions.titles import TITLES
from lit_long.stages.identity import identity_settings, stage_identity
from tests.evaluation.models import evaluated_of
from tests.evaluation.own_task import Likeliest

OWN = "tests.evaluation.own_task:Likeliest"


def test_every_name_has_a_maker_and_a_metric_that_it_measures(store):
    assert set(BUILT_IN) == set(TASK_REGISTRY) and set(TITLES) == {*SCHEMES, *TRANSFORMS}
    evaluated = evaluated_of(store)
    asked = Asked(evaluated, store, "d", ["docs"], Size((256,), 2, 2, 2, 64))
    for name in BUILT_IN:
        if name == "ruler6":  # needs longer texts: test_ruler6.py
            continue
        task = make_task(name, asked)
        samples = [key._asdict() | record for key, record in task.measure(evaluated, task.keys())]
        assert task.name == name and BUILT_IN[name].metric in {each.metric for each in task.scores(samples)}


@pytest.mark.parametrize("name", ["multi_document_qa", "chapter_summary", "document_qa"])
def test_only_tasks_that_read_whole_documents_need_long_ones(name, store):
    """Of texts that are all shorter than the length, a task either makes its samples or is refused by `domains_for`."""
    evaluated = evaluated_of(store, context=2048)
    held_out = store.documents("docs", "validation")
    pieces = [held_out[i][start : start + 900] for i in range(len(held_out)) for start in range(1, len(held_out[i]), 900)]
    texts = InMemoryCorpus(evaluated.tokenizer, {"text": [store.tokenizer.decode(piece.tolist()) for piece in pieces]})
    assert texts.documents("text", "validation").lengths.max() < 1024
    if BUILT_IN[name].whole_document:
        with pytest.raises(UserError, match="no held-out document has the"):
            domains_for([name], texts, 1024)
        return
    domains = domains_for([name], texts, 1024)
    task = make_task(name, Asked(evaluated, texts, "d", domains, Size((1024,), 2, 2, 2, 64)))
    made = [record for _, record in task.measure(evaluated, task.keys())]
    assert len(made) == 2 and all(512 < record["prompt_tokens"] < 1024 for record in made)


def test_planning_needs_no_torch_and_runs_nothing_of_the_module(tmp_path):
    (tmp_path / "mine.py").write_text("raise RuntimeError('ran')\nclass Mine: pass\n")
    code = "import sys; from lit_long.evaluation.registry import check_task, task_code; check_task('mine:Mine', 'x')"
    code += "; assert len(task_code(['mine:Mine', 'needle'])['mine']) == 12; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nedle", "there is no task 'nedle'.*needle"),
        ("tests.evaluation.own_tusk:Likeliest", "there is no module 'tests.evaluation.own_tusk'"),
        ("tests.evaluation.own_task:Likelyest", "no class 'Likelyest'.*Likeliest"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(UserError, match=message):
        check_task(name, "evaluation.tasks")


def test_a_class_that_is_no_task(store):
    asked = Asked(evaluated_of(store), store, "d", ["docs"], Size((256,), 2, 2, 2, 64))
    with pytest.raises(UserError, match=r"own_task:NoTask: must be a class made from lit_long.evaluation.task.Task"):
        make_task("tests.evaluation.own_task:NoTask", asked)
    assert isinstance(make_task(OWN, asked), Likeliest)


def test_samples_of_other_code_are_refused(store, tmp_path, monkeypatch):
    evaluated = evaluated_of(store)
    task = make_task(OWN, Asked(evaluated, store, "d", ["docs"], Size((256,), 1, 1, 2, 64)))
    (measured,) = run_tasks(evaluated, [task], {}, tmp_path, lambda *_: None)
    assert (measured.task, measured.metric, measured.n) == ("likeliest", "written", 1)
    monkeypatch.setattr("lit_long.evaluation.task.code_digest", lambda file: "changed")
    with pytest.raises(UserError, match=r"likeliest.jsonl: holds the samples of another evaluation, which differs in code"):
        run_tasks(evaluated, [task], {}, tmp_path, lambda *_: None)


def test_the_code_of_a_users_task_enters_the_identity_of_its_stage(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "counted.py"

    def identity(*tasks):
        return stage_identity(StageConfig(kind="evaluate", evaluation=EvaluationConfig(tasks=list(tasks))), [])

    file.write_text("class Mine:\n    name = 'a'\n")
    first = identity("counted:Mine")
    file.write_text("class Mine:\n    # another comment\n    name = 'a'\n")
    assert identity("counted:Mine") == first
    file.write_text("class Mine:\n    name = 'b'\n")
    assert identity("counted:Mine") != first
    plain = StageConfig(kind="evaluate", evaluation=EvaluationConfig(tasks=["needle"]))
    assert "code" not in identity_settings(plain) and task_code(["needle"]) == {}
