"""BABILong's documents: bAbI as its files are, facts in their order among whole sentences of books; and lm-eval's task on them."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest

from lit_long.config import UserError
from lit_long.evaluate import main
from lit_long.evaluation.babilong import Question, documents, read_questions
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.in_memory_corpus import InMemoryCorpus
from lit_long.evaluation.lm_eval import HarnessTask, Wanted
from lit_long.evaluation.lm_eval_tasks import BABILONG
from lit_long.evaluation.public_data import Unavailable
from lit_long.pretrained import open_pretrained
from tests.evaluation.models import bytes_folder
from tests.evaluation.public import read_task
from tests.pretrained.llamas import read

BABI = Path(__file__).resolve().parents[3] / "shared" / "data" / "raw" / "babi"  # real files; see MANIFEST.md there
LINES = [
    "1 John travelled to the hallway.",
    "2 Mary journeyed to the bathroom.",
    "3 Where is John? \thallway\t1",
    "4 John moved to the bedroom.",
    "5 Where is John? \tbedroom\t4",
    "1 Sandra went to the garden.",
    "2 Where is Sandra? \tgarden\t1",
]
BOOK = " ".join(f"Sentence number {number} of a very long book is here." for number in range(400))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    pretrained = open_pretrained(str(bytes_folder(tmp_path_factory.mktemp("llama") / "model", 2048)))
    return EvaluatedModel(read(pretrained), pretrained.tokenizer(), 2048, 4096)


@pytest.fixture
def babi(tmp_path):
    folder = tmp_path / "babi" / "en-10k"
    folder.mkdir(parents=True)
    with gzip.open(folder / "qa1_single-supporting-fact_test.txt.gz", "wt") as file:
        file.write("\n".join(LINES) + "\n")
    (tmp_path / "babi" / "en").mkdir()  # a thousand of each, not ten: not what BABILong takes
    (tmp_path / "babi" / "en" / "qa1_single-supporting-fact_test.txt").write_text("1 X is Y.\n2 Where is X? \tZ\t1\n")
    return tmp_path


def test_questions_have_the_facts_before_them(babi):
    first, second, third = read_questions("babilong_qa1", str(babi))
    assert first == Question(["John travelled to the hallway.", "Mary journeyed to the bathroom."], "Where is John?", "hallway")
    assert second.facts == [*first.facts, "John moved to the bedroom."] and second.answer == "bedroom"
    assert third.facts == ["Sandra went to the garden."]  # a new story
    (babi / "babi" / "en-10k" / "qa2_two-supporting-facts_test.txt").write_text("1 A.\nno number\n")
    with pytest.raises(UserError, match="line 2: 'no number' is no numbered sentence"):
        read_questions("babilong_qa2", str(babi))
    with pytest.raises(Unavailable, match="holds no qa3_…_test.txt"):
        read_questions("babilong_qa3", str(babi))


@pytest.mark.skipif(not BABI.is_dir(), reason="no real data here")
@pytest.mark.parametrize("task", BABILONG)
def test_the_real_files(task):
    """1,000 questions, as BABILong's own reader finds them; every answer is one of its labels (babilong/metrics.py)."""
    questions = read_questions(task, str(BABI))
    labels = {"bathroom", "bedroom", "garden", "hallway", "kitchen", "office"}
    labels = {"Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"} if task == "babilong_qa5" else labels
    assert len(questions) == 1000 and {each.answer for each in questions} == labels
    assert all(each.facts and each.question.endswith("?") and not any("?" in fact for fact in each.facts) for each in questions)


def test_facts_lie_in_their_order_among_sentences_of_the_book(babi, evaluated):
    texts = InMemoryCorpus(evaluated.tokenizer, {"text": [BOOK, BOOK.replace("long", "short")]})
    made = documents("babilong_qa1", evaluated, texts, "text", 1324, 6, 3, str(babi))
    assert made == documents("babilong_qa1", evaluated, texts, "text", 1324, 6, 3, str(babi))
    assert made != documents("babilong_qa1", evaluated, texts, "text", 1324, 6, 4, str(babi))
    assert {doc["question"] + doc["target"] for doc in made} == {
        "Where is John?hallway",
        "Where is John?bedroom",
        "Where is Sandra?garden",
    }
    shares = []
    for doc in made:
        assert len(evaluated.encode(doc["input"])) in (1022, 1023, 1024)  # tokens are bytes; spaces at the ends are stripped
        facts = next(
            q for q in read_questions("babilong_qa1", str(babi)) if (q.question, q.answer) == (doc["question"], doc["target"])
        ).facts
        places = [doc["input"].index(fact) for fact in facts]
        assert places == sorted(places)
        shares += [place / 1024 for place in places]
        rest = doc["input"]
        for fact in facts:
            rest = rest.replace(fact, "")
        numbers = [int(word) for word in rest.split() if word.isdigit()]
        assert len(numbers) > 12 and all(b == a + 1 for a, b in pairwise(numbers))  # the book goes on between them
        ended = [each.strip() for each in rest.split(".")[:-1]]
        assert all(each.startswith("Sentence number") and each.endswith("is here") for each in ended if each)
    assert min(shares) < 0.3 and max(shares) > 0.7
    with pytest.raises(Unavailable, match="310 tokens leave no room"):
        documents("babilong_qa1", evaluated, texts, "text", 310, 1, 0, str(babi))
    with pytest.raises(UserError, match="no sentences of 10 tokens"):
        documents(
            "babilong_qa1", evaluated, InMemoryCorpus(evaluated.tokenizer, {"text": ["Go. No."]}), "text", 1324, 1, 0, str(babi)
        )


def test_qa5_shows_all_of_its_examples(evaluated, tmp_path):
    """BABILong's three, of which lm-eval's yaml has the texts; lm-eval itself asks with two."""
    import lm_eval

    (tmp_path / "qa5_three-arg-relations_test.txt").write_text("1 Bill gave the milk to Fred.\n2 Who gave the milk? \tBill\t1\n")
    texts = InMemoryCorpus(evaluated.tokenizer, {"text": [BOOK]})
    task = HarnessTask("babilong_qa5", evaluated, [2048], Wanted(1, 0, str(tmp_path), texts=(texts, "text")))
    (item,) = task.items.values()
    theirs = Path(lm_eval.__file__).parent / "tasks" / "babilong" / "babilong_qa5.yaml"
    examples = read_task(theirs)["fewshot_config"]["samples"]
    shown = item.requests[0].args[0]
    assert [shown.count(f"{each['input']}\n{each['question']} {each['target']}") for each in examples] == [1, 1, 1]
    assert task.shots == 3 and shown.endswith("Who gave the milk?")


def test_it_is_lm_evals_task(babi, tmp_path, capsys):
    """Its instruction, its two examples, the document and the question; through the command, with books of one's own."""
    (tmp_path / "book.txt").write_text(BOOK)
    model = bytes_folder(tmp_path / "model", 2048)
    words = [
        f"model.init={model}",
        "tasks=[babilong_qa1]",
        f"data={babi}",
        f"text={tmp_path / 'book.txt'}",
        "lengths=[1k,1536]",
        "samples=2",
    ]
    assert main([*words, f"out={tmp_path / 'out'}", "tracking.enabled=false"]) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [
        (row["task"], row["metric"], row["length"], row["n"], row["shots"], row["verified"])
        for row in rows
        if row["domain"] == "all"
    ] == [("babilong_qa1", "acc", length, 2, 2, True) for length in (1024, 1536)]
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples" / "babilong_qa1.jsonl").read_text().splitlines()[1:]]
    assert all(sample["reference"] in ("hallway", "bedroom", "garden") and len(sample["answers"]) == 1 for sample in samples)
    assert main([*words[:2], *words[3:], f"out={tmp_path / 'other'}", "tracking.enabled=false"]) == 2
    assert "needs bAbI's files (qa1_…_test.txt): data=FOLDER" in " ".join(capsys.readouterr().err.split())
