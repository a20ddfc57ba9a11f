"""Questions about held-out texts: what is asked, at which length and depth, and how answers are judged. Readers are planted where one is needed."""

from __future__ import annotations

import re

import pytest

from lit_long.config import UserError
from lit_long.evaluation.answers import ChapterSummary, DocumentQA, MultiDocumentQA
from tests.evaluation.models import evaluated_of
from tests.evaluation.test_retrieval_tasks import answering, run

LENGTHS = [256, 512]


@pytest.fixture(scope="module")
def evaluated(store):
    return evaluated_of(store)


@pytest.fixture(scope="module", params=[DocumentQA, MultiDocumentQA])
def task(request, store):
    return request.param(store, "d", "docs", LENGTHS, count=6)


def find(prompt: str) -> str:
    """What a reader answers who looks for the quoted words in the text above the question."""
    text, _, asked = prompt.rpartition("Question: ")
    quoted = re.search(r'"(.*?)"', asked)[1]
    assert text.count(quoted) == 1
    found = re.match(r"[^\n]*?[.!?](?=\s|$)", text[text.index(quoted) :])[0]
    return " ".join(found.split(" ")[:4]) if "four words" in asked else found


def test_prompts_hold_their_sentence_at_its_depth(store, evaluated, task):
    documents = store.documents("docs", "validation")
    held_out = [store.tokenizer.decode(documents[index].tolist()) for index in range(len(documents))]
    asked = {length: [task.ask(evaluated, length, index) for index in range(6)] for length in LENGTHS}
    references = [[example.reference for *_, example in rows] for rows in asked.values()]
    assert references[0] == references[1] and len(set(references[0])) == 6
    for length, rows in asked.items():
        for index, (tokens, depth, example) in enumerate(rows):
            prompt = evaluated.tokenizer.decode(tokens)
            assert length // 3 < len(tokens) <= length - task.new and prompt.endswith("\nAssistant:")
            assert any(example.reference in text for text in held_out) and find(prompt) == example.reference
            assert depth == pytest.approx(
                (index + 0.5) / 6, abs=0.2 if task.name == "document_qa" else 0.5 / (1 if length == 256 else 4)
            )
            place = prompt.index(example.reference) / prompt.rindex("Question: ")
            assert place == pytest.approx(depth, abs=0.45)


def test_answers_are_judged_by_what_follows_the_quoted_words(evaluated, task, monkeypatch):
    answering(monkeypatch, lambda prompt: f" {find(prompt).upper()}")  # SQuAD's normalisation knows no case
    perfect = {(each.metric, each.length): each for each in task.scores(run(task, evaluated))}
    assert all(perfect[name, length].value == 1 for name in ("exact_match", "exact_match_short") for length in LENGTHS)
    assert perfect["exact_match", 256].n == 6 and perfect["exact_match", 256].low == pytest.approx(
        0.61, abs=0.01
    )  # Wilson, 6 of 6
    answering(monkeypatch, find)
    assert {each.value for each in task.scores(run(task, evaluated))} == {1.0}
    answering(monkeypatch, lambda prompt: re.search(r'"(.*?)"', prompt.rpartition("Question: ")[2])[1])
    copied = {each.metric: each.value for each in task.scores(run(task, evaluated))}
    assert copied["exact_match"] == copied["f1"] == copied["rouge_l"] == 0


def test_who_reads_only_the_end_is_found_out(evaluated, store, monkeypatch):
    task = DocumentQA(store, "d", "docs", [512], count=12)

    def near(prompt):
        answer = find(prompt)
        return answer if prompt.index(answer) > 0.6 * len(prompt) else "nothing"

    answering(monkeypatch, near)
    found = {each.metric: each.value for each in task.scores(run(task, evaluated))}
    assert found["exact_match_first_third"] == 0 < found["exact_match"] < 1 == found["exact_match_last_third"]


def test_summaries(evaluated, store, monkeypatch):
    task = ChapterSummary(store, "d", "docs", LENGTHS, count=3)

    def summary(prompt):
        parts = re.split(r"Part \d\n", prompt)[1:]
        return " ".join(re.match(r"[^\n]*?[.!?](?=\s)", part)[0] for part in parts)

    answering(monkeypatch, summary)
    samples = run(task, evaluated)
    assert {each.value for each in task.scores(samples)} == {1.0}
    assert [each["reference"] for each in samples[:3]] == [each["reference"] for each in samples[3:]]
    answering(monkeypatch, lambda prompt: summary(prompt).partition(".")[0])
    part = {each.metric: each.value for each in task.scores(run(task, evaluated))}
    assert 0 < part["rouge_2"] < part["rouge_1"] < 1


@pytest.mark.parametrize("kind", [DocumentQA, MultiDocumentQA, ChapterSummary])
def test_lengths_without_room_are_refused(store, evaluated, kind):
    with pytest.raises(UserError, match=r"leaves no room|no room for two|leaves \d+ for a part"):
        kind(store, "d", "docs", [110], count=1).check(evaluated)
