"""Questions made by rule: one right answer each, and passages that start with a sentence."""

from __future__ import annotations

import pytest

from lit_long.config import Unfit
from lit_long.data.questions import Passages, ask, make_chapter, question_about, sentences
from lit_long.data.synthetic import first_sentence

ONE = "The mill by the river was built in 1801."
TEXT = f'Go on. {ONE} It has "two" wheels and a roof of slate.\nThe mill by\nThe old miller sells flour and bread on Fridays.'


def test_a_sentence_is_asked_about_only_where_its_words_stand_once():
    found = [TEXT[slice(*span)] for span in sentences(TEXT)]
    assert found == [ONE, "The old miller sells flour and bread on Fridays."]  # the others are too short, or hold quotation marks
    assert question_about(TEXT, sentences(TEXT)[0], "normal") is None  # "The mill by" stands twice
    question = question_about(TEXT, sentences(TEXT)[1], "short")
    assert question.quoted in question.asked and question.answer == "The old miller sells" and TEXT[question.start :] == found[1]
    assert [each.answer for each in ask(TEXT, "normal", 0)] == found[1:]


def test_a_summary_is_the_first_sentence_of_each_part():
    chapter, summary = make_chapter([f"{ONE} More.", "She sold it in 1850. No."])
    assert chapter == f"Part 1\n{ONE} More.\n\nPart 2\nShe sold it in 1850. No." and summary == f"{ONE} She sold it in 1850."
    assert make_chapter([f"{ONE} More.", "no sentence"]) is None
    assert make_chapter([f"{ONE} More.", f"So. {ONE} And that is all."]) is None


def test_passages_are_as_long_as_asked_and_of_their_split(store):
    for split in ("train", "validation"):
        documents = store.documents("docs", split)
        texts = [store.tokenizer.decode(documents[index].tolist()) for index in range(len(documents))]
        passages = [Passages(store, "docs", split, 128).draw(size, "test", size) for size in (32, 100, 128)]
        for size, passage in zip((32, 100, 128), passages, strict=True):
            assert first_sentence(passage + " ") and any(passage in text for text in texts)
            assert len(store.tokenizer.encode(passage, add_special_tokens=False).ids) == pytest.approx(size, abs=1)
        assert passages[0] == Passages(store, "docs", split, 128).draw(32, "test", 32)
    with pytest.raises(Unfit, match=r"No validation document of domain 'docs' has more than 1000000 tokens"):
        Passages(store, "docs", "validation", 10**6)
