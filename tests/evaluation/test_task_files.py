"""A task file of lm-eval's as the user's own task, on data of the user's own: against lm-eval itself, in a stage, its identity, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lit_long.config import EvaluationConfig, StageConfig, UserError
from lit_long.evaluate import main
from lit_long.evaluation.registry import check_task, task_code
from lit_long.evaluation.run import task_measurements
from lit_long.stages.identity import identity_settings, stage_identity
from tests.evaluation.models import SHAPE, bytes_folder, evaluated_of

BASE = """\
output_type: multiple_choice
test_split: train
doc_to_target: right
num_fewshot: 0
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 3}
"""
TASK = """\
include: base.inc
task: capitals  # a comment
dataset_path: json
dataset_kwargs: {data_files: DATA}
doc_to_text: !function utils.question
doc_to_choice: "{{cities}}"
"""
UTILS = '''"""Beside the task file."""


def question(doc):
    return f"The capital of {doc['country']} is"
'''


@pytest.fixture
def task(tmp_path):
    """A task in a folder with other files, as a working directory has; 12 documents of its own."""
    (tmp_path / "base.inc").write_text(BASE)
    (tmp_path / "utils.py").write_text(UTILS)
    rows = [{"country": f"land {n}", "cities": [f"town {n + k}" for k in range(3)], "right": n % 3} for n in range(12)]
    (tmp_path / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "other.yaml").write_text("task: capitals\nnothing: {of: lm-eval\n")
    file = tmp_path / "mine.yaml"
    file.write_text(TASK.replace("DATA", str(tmp_path / "capitals.jsonl")))
    return file


def run(capsys, *words):
    return main([*words, "tracking.enabled=false"]), *capsys.readouterr()


def test_scores_are_those_of_lm_eval_with_its_own_model(task, tmp_path, capsys):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager  # without its own 14,000 task files, which it reads for 20 s

    folder = bytes_folder(tmp_path / "model", 512)
    words = (f"model.init={folder}", "dtype=float32", f"tasks=[{task}]", "lengths=[256]", "samples=12", f"out={tmp_path}/out")
    code, printed, err = run(capsys, *words)
    assert code == 0, err
    rows = {row["metric"]: row for row in json.loads((tmp_path / "out" / "scores.json").read_text())}
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)
    found = lm_eval.simple_evaluate(
        theirs, tasks=[str(task)], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0
    )["results"]["capitals"]
    for metric in ("acc", "acc_norm"):
        assert rows[metric]["value"] == pytest.approx(found[f"{metric},none"], abs=1e-9)
        assert (rows[metric]["task"], rows[metric]["n"], rows[metric]["verified"]) == ("capitals", 12, None)
    assert rows["acc"]["main"] and rows["acc"]["prompt"] == "of a task file, version 3; 0 shots"
    assert "capitals" in printed and "never" not in printed
    assert run(capsys, *words)[0] == 0  # from the samples
    (tmp_path / "utils.py").write_text(UTILS.replace(" is", " was"))
    code, _, err = run(capsys, *words)
    assert code == 2 and "holds the samples of another evaluation, which differs in code, data" in " ".join(err.split())


def test_a_stage_measures_it(task, store, tmp_path):
    evaluation = EvaluationConfig(tasks=[str(task)], task_samples=5)
    config = StageConfig(kind="evaluate", model=SHAPE, evaluation=evaluation)
    rows = task_measurements(evaluated_of(store).model, store, config, tmp_path / "stage", lambda message, done: None)
    found = {each.metric: each for each in rows}
    assert (
        found["capitals.acc"].n == 5 and found["capitals.acc"].length == SHAPE.context and 0 <= found["capitals.acc"].value <= 1
    )
    assert len((tmp_path / "stage" / "samples" / "capitals.jsonl").read_text().splitlines()) == 1 + 5


def identity(*tasks):
    return stage_identity(StageConfig(kind="evaluate", evaluation=EvaluationConfig(tasks=[str(each) for each in tasks])), [])


def replaced(file: Path, before: str, after: str) -> None:
    file.write_text(file.read_text().replace(before, after))


def test_its_content_enters_the_identity_of_its_stage(task):
    first = identity(task)
    replaced(task, "# a comment", "# another one")
    replaced(task.with_name("utils.py"), "Beside the task file.", "Beside the task file.")
    task.with_name("utils.py").write_text(f"# a comment\n{UTILS}")
    assert identity(task) == first
    seen = {first}
    for name, before, after in (
        ("mine.yaml", "{{cities}}", "{{cities | list}}"),
        ("base.inc", "version: 3", "version: 4"),
        ("utils.py", "The capital", "The largest town"),
        ("capitals.jsonl", "land 11", "land 13"),
    ):
        replaced(task.with_name(name), before, after)
        assert identity(task) not in seen, name
        seen.add(identity(task))
    config = StageConfig(kind="evaluate", evaluation=EvaluationConfig(tasks=[str(task)]))
    assert identity_settings(config)["code"] == task_code([str(task)]) and identity("needle") not in seen


def test_planning_runs_nothing_of_it_and_needs_no_torch(task):
    task.with_name("utils.py").write_text("raise RuntimeError('ran')\n")
    code = "import sys; from lit_long.evaluation.registry import check_task, task_code; check_task('mine.yaml', 'x')"
    code += "; assert len(task_code(['mine.yaml'])['mine.yaml']) == 12; sys.exit(bool({'torch', 'lm_eval'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=task.parent).returncode == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.yaml", None, "none.yaml: cannot be read: No such file"),
        ("a.yaml", "task: [a, b\n", r"a.yaml cannot be read: .* line 2"),
        ("a.yaml", "- task\n", "a.yaml must hold key: value lines"),
        ("a.yaml", "dataset_path: json\n", "is no task file of lm-eval's; it needs a key task:"),
        ("a.yaml", "task: a/b\n", r"needs a key task: with the task's name \(without /\)"),
        ("a.yaml", "group: mine\ntask: [hellaswag, piqa]\n", "is a group of tasks; name the task files of its tasks"),
        ("a.yaml", "task: hellaswag\n", "its task, 'hellaswag', has the name of one that lit-long has"),
        ("a.yaml", "task: a\ninclude: none.inc\n", "included, .*none.inc, cannot be read: No such file"),
        ("a.yaml", "task: a\ninclude: a.yaml\n", "a.yaml includes itself"),
    ],
)
def test_what_is_no_task_file_is_refused_at_planning(name, content, message, tmp_path):
    if content:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        check_task(str(tmp_path / name), "evaluation.tasks")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("capitals.jsonl", "nothing.jsonl", "capitals: lm-eval cannot build it: FileNotFoundError"),
        ("utils.question", "utils.nothing", "has no function 'nothing'"),
        ("dataset_path: json\ndataset_kwargs", "dataset_path: owner/capitals\nother", "needs the data set owner/capitals: data=FOLDER"),
        ("task: capitals", "task: capitals\nunsafe_code: true", "run_code=true allows it"),
        ("doc_to_choice", "doc_to_choices", "capitals"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(before, after, message, task, tmp_path, capsys):
    replaced(task, before, after)
    folder = bytes_folder(tmp_path / "model", 256)
    code, out, err = run(capsys, f"model.init={folder}", f"tasks=[{task}]", "lengths=[256]", f"out={tmp_path}/o")
    assert code == 2 and out == "" and message in " ".join(err.split()), err


def test_two_tasks_of_one_name(task, tmp_path, capsys):
    again = tmp_path / "again.yml"
    again.write_text(task.read_text())
    words = (
        f"model.init={bytes_folder(tmp_path / 'model', 256)}",
        f"tasks=[{task},{again}]",
        "lengths=[256]",
        f"out={tmp_path}/o",
    )
    code, _, err = run(capsys, *words)
    assert code == 2 and "two tasks have the name 'capitals'" in err
