"""Giraffe's question answering: the published schema, altered numbers, and questions that are built."""

from __future__ import annotations

import gzip
import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from lit_long.config import UserError
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.qa import NEW, NUMBER, AlteredNumericQA, FreeFormQA, alter, built_question, facts, read_published
from tests.evaluation.models import evaluated_of
from tests.evaluation.test_retrieval_tasks import answering, run


def row(prompt, answer):
    return {"conversations": [{"from": "human", "value": prompt, "tok_len": 9}, {"from": "gpt", "value": answer, "tok_len": 1}]}


@pytest.fixture(scope="module")
def evaluated(store):
    return evaluated_of(store)


@pytest.fixture
def published(tmp_path):
    """Two lengths of one task as the repository has them, one of the other as the hub has it."""
    free, altered = tmp_path / "WikiQA" / "Free_Form_QA", tmp_path / "WikiQA-Altered_Numeric_QA" / "data"
    free.mkdir(parents=True), altered.mkdir(parents=True)
    short = [row(f"Document: {'x ' * 30}. Question: {i}?", f" Paris {i} ") for i in range(3)]
    (free / "ffqa_2k.json").write_text(json.dumps(short))
    (free / "ffqa_4k.json").write_text(json.dumps([row(f"BEGIN {'y ' * 9000} END", "Rome")]))
    table = pyarrow.Table.from_pylist([row("How many?", "1889"), row("How few?", "12")])
    pyarrow.parquet.write_table(table, altered / "2k-00000-of-00001.parquet")
    return tmp_path


def test_the_published_schema(published):
    free, altered = (read_published(str(published), task) for task in ("free_form_qa", "altered_numeric_qa"))
    assert {length: len(found) for length, found in free.questions.items()} == {2048: 3, 4096: 1}
    assert free.questions[2048][1].answer == "Paris 1" and free.questions[2048][1].prompt.endswith("Question: 1?")
    assert [each.answer for each in altered.questions[2048]] == ["1889", "12"] and list(altered.questions) == [2048]
    assert free.digest != altered.digest
    file = published / "WikiQA" / "Free_Form_QA" / "ffqa_2k.json"
    lines = file.with_suffix(".jsonl")
    lines.write_text("\n".join(map(json.dumps, json.loads(file.read_text()))))
    assert read_published(str(lines), "free_form_qa").questions == {2048: free.questions[2048]}


def test_lines_end_at_newlines_only_whatever_the_file_is_called(tmp_path):
    """JSON may hold what Unicode calls line ends as they are, and TriviaQA, MMLU and GSM8K do."""
    found = [row(f"How{end}many {i}?", f"{i}{end}!") for i, end in enumerate("\u2028\u2029\x85")]
    content = "".join(json.dumps(each, ensure_ascii=False) + "\r\n" for each in found).encode()
    for name, written in (("ffqa_2k.jsonl", content), ("ffqa_4k.JSON.gz", gzip.compress(content)), ("ffqa_8k.ndjson", content)):
        (tmp_path / name).write_bytes(written)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "ffqa_16k.jsonl").write_bytes(content)
    (tmp_path / "in").mkdir()
    for name in ("ffqa_2k.jsonl", "ffqa_4k.JSON.gz", "ffqa_8k.ndjson"):
        (tmp_path / name).rename(tmp_path / "in" / name)
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    questions = read_published(str(tmp_path / "in"), "free_form_qa").questions
    assert {length: len(rows) for length, rows in questions.items()} == {2048: 3, 4096: 3, 8192: 3, 16384: 3}
    assert questions[2048][0].prompt == "How\u2028many 0?"


def test_all_published_questions_are_asked_or_some_drawn_by_seed(store, tmp_path):
    rows = [{"conversations": [{"value": f"Where is {n}?"}, {"value": str(n)}]} for n in range(60)]
    (tmp_path / "ffqa_2k.json").write_text(json.dumps(rows))
    whole = FreeFormQA(store, "d", "docs", [2048], count=20, qa=str(tmp_path))
    assert [key.index for key in whole.keys()] == [*range(60)] and whole.settings()["seed"] is None
    some = [FreeFormQA(store, "d", "docs", [2048], seed=seed, qa=str(tmp_path), drawn=5) for seed in (0, 1)]
    first, second = ([key.index for key in task.keys()] for task in some)
    assert first == sorted(set(first)) != second and len(first) == 5 and first != [*range(5)] and some[1].settings()["seed"] == 1


def test_the_nearest_name_tells_whose_questions_a_file_has(tmp_path):
    folder = tmp_path / "altered_numeric" / "data"
    folder.mkdir(parents=True)
    for number, name in enumerate(("ffqa_2k.json", "altqa_2k.json", "4k.json")):
        (folder / name).write_text(json.dumps([{"conversations": [{"value": f"Where is {number}?"}, {"value": str(number)}]}]))
    found = {task: read_published(str(folder), task).questions for task in ("free_form_qa", "altered_numeric_qa")}
    asked = {task: {length: [each.answer for each in rows] for length, rows in by.items()} for task, by in found.items()}
    assert asked == {"free_form_qa": {2048: ["0"]}, "altered_numeric_qa": {2048: ["1"], 4096: ["2"]}}
    (folder / "ffqa_and_altqa_2k.json").write_text("[]")
    with pytest.raises(UserError, match="names both free_form_qa and altered_numeric_qa; rename it"):
        read_published(str(folder), "free_form_qa")


def test_published_prompts_beyond_the_range_lose_their_beginning(store, published, monkeypatch):
    """And are counted; answers must appear as they are written."""
    evaluated = evaluated_of(store, context=4096)
    asked = []

    def answers(text):
        asked.append(text)
        return "It is Paris 1." if "Question: 1?" in text else "paris 0 ROME"

    monkeypatch.setattr(EvaluatedModel, "write", None)
    answering(monkeypatch, answers)
    task = FreeFormQA(store, "d", "docs", [2048, 4096], qa=str(published))
    samples = run(task, evaluated)
    rows = {each.length: each for each in task.scores(samples)}
    assert (rows[2048].value, rows[2048].n) == (pytest.approx(1 / 3), 3) and rows[4096].value == 0
    assert [each["truncated"] for each in samples] == [False] * 3 + [True]
    assert samples[3]["prompt_tokens"] == 4096 - NEW and "BEGIN" not in asked[3] and asked[3].endswith("END\n\nAnswer:")
    assert {each["domain"] for each in samples} == {"WikiQA"} and task.settings()["data"] != "d"
    assert len(FreeFormQA(store, "d", "docs", [2048], qa=str(published), drawn=2).keys()) == 2
    with pytest.raises(UserError, match=r"has no free_form_qa of length 8,192; there is 2048, 4096"):
        FreeFormQA(store, "d", "docs", [8192], qa=str(published)).keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"conversations": [{"value": "x"}, {"value', "cannot be read as JSON"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        ("[]", "holds no rows"),
        ('[{"question": "x"}]', "row 0: holds no conversation"),
        ('[{"conversations": [{"value": "x"}]}]', "row 0: holds no conversation"),
        ('[{"conversations": [{"value": "x"}, {"value": " "}]}]', "row 0: its answer is empty"),
        ('[{"conversations": [{"value": ""}, {"value": "y"}]}]', "row 0: its question is empty"),
    ],
)
def test_damaged_data_are_named(tmp_path, content, message):
    (tmp_path / "ffqa_2k.json").write_text(content)
    with pytest.raises(UserError, match=f"ffqa_2k.json.*{message}"):
        read_published(str(tmp_path), "free_form_qa")
    with pytest.raises(UserError, match="holds no file of altered_numeric_qa"):
        read_published(str(tmp_path), "altered_numeric_qa")


def test_every_occurrence_is_altered():
    text = "Built in 1889 (not 18890, nor 11889 or 1,889.5). In 1889, and 1889! Since 1888."
    found = set()
    for seed in range(40):
        changed, answer = alter(text, "1889", seed)
        new = int(answer)
        assert new != 1889 and abs(new - 1889) <= 10 and new != 1888
        assert "18890" in changed and "11889" in changed and not re.search(r"(?<!\d)1889(?!\d)", changed)
        assert changed.count(answer) == 3 and changed.replace(answer, "1889").replace(f"{new:,}", "1,889") == text
        assert (changed, answer) == alter(text, "1889", seed)
        found.add(new)
    assert len(found) > 10


def test_other_numbers_keep_their_digits():
    for number, lowest, highest in (("12,345", 10_000, 99_999), ("8849", 1000, 9999), ("80", 10, 99), ("7", 0, 9)):
        for seed in range(20):
            text, answer = alter(f"there are {number} of them; or 12345 or 81", f"about {number} of them", seed)
            new = NUMBER.findall(answer)[0]
            value = int(new.replace(",", ""))
            assert (
                lowest <= value <= highest
                and value not in (12345, 81, int(number.replace(",", "")))
                and ("," in new) == ("," in number)
            )
            assert f"there are {new} of them" in text and answer == f"about {new} of them"
    assert "12345" not in alter("12,345 is 12345", "12,345", 0)[0]  # however it is written
    for answer, message in (("Paris", "no number to alter"), ("55", "does not occur")):
        with pytest.raises(UserError, match=message):
            alter("80 of them", answer, 0)
    with pytest.raises(UserError, match="nothing that '5' could be altered to"):
        alter(" ".join(map(str, range(10))), "5", 0)


def test_facts_hold_their_answers():
    assert len(facts()) == 20
    for fact in facts():
        assert fact.word in fact.sentence and NUMBER.findall(fact.sentence).count(fact.number) == 1
        assert fact.word not in fact.asked and fact.number not in fact.asked_number


@pytest.mark.parametrize("numeric", [False, True])
def test_built_questions(store, evaluated, numeric):
    every = {fact.asked_number if numeric else fact.asked: fact for fact in facts()}
    places, asked_first = [], []
    for index in range(24):
        tokens, answer = built_question(evaluated, store, "docs", 500, numeric, 0, index)
        text = evaluated.tokenizer.decode(tokens)
        assert 440 <= len(tokens) <= 500 and text.endswith("Answer:")
        (asked,) = re.findall(r"Question: (.*\?)", text)
        fact, document = every[asked], text.partition("Document:\n")[2].rpartition("\n\n")[0]
        assert document.count(answer) >= 1 and (answer == fact.word if not numeric else answer != fact.number)
        if numeric:
            assert fact.number not in NUMBER.findall(text)
        places.append(document.index(answer) / len(document))
        asked_first.append(text.startswith("Question"))
        assert (tokens, answer) == built_question(evaluated, store, "docs", 500, numeric, 0, index)
    assert asked_first == [False, True] * 12
    start, bulk, end = ([place for i, place in enumerate(places) if i % 6 // 2 == part] for part in range(3))
    assert max(start) < 0.25 and min(end) > 0.6 and max(bulk) - min(bulk) > 0.25
    assert (
        built_question(evaluated, store, "docs", 500, numeric, 1, 3)[0]
        != built_question(evaluated, store, "docs", 500, numeric, 0, 3)[0]
    )
    with pytest.raises(UserError, match="leaves no room for a document"):
        built_question(evaluated, store, "docs", 60, numeric, 0, 0)


def test_knowing_by_heart_does_not_help_with_altered_numbers(store, evaluated, monkeypatch):
    def by_heart(text):
        return next(f"{fact.word} {fact.number}" for fact in facts() if fact.asked in text or fact.asked_number in text)

    answering(monkeypatch, by_heart)
    for kind, value in ((FreeFormQA, 1.0), (AlteredNumericQA, 0.0)):
        task = kind(store, "d", "docs", [400], count=12)
        (found,) = task.scores(run(task, evaluated))
        assert (found.value, found.n, found.metric) == (value, 12, "presence")
