"""RULER-6 against RULER itself: ruler_documents.json holds what NVIDIA/RULER's own scripts wrote (commit c3f5e3b, Apache-2.0, seed 42, 1,000 whitespace-separated words)."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from lit_long.config import UserError
from lit_long.evaluation.ruler6 import KINDS, Ruler6, coded_words, common_words, largest, listed, recalled
from lit_long.evaluation.samples import Key
from tests.evaluation.models import evaluated_of

THEIRS = json.loads((Path(__file__).parent / "ruler_documents.json").read_text(encoding="utf-8"))
WORDS = SimpleNamespace(encode=re.compile(r"\S+\s*").findall, chat_template=None)  # a tokenizer of words that forgets nothing
LLAMA3 = (  # RULER's template.py, meta-llama3
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{task_template}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
BEGUN = {  # RULER's answer prefixes
    "niah_single_1": r" The special magic number for [\w-]+ mentioned in the provided text is",
    "niah_multikey_2": r" The special magic number for [\w-]+ mentioned in the provided text is",
    "niah_multikey_3": r" The special magic uuid for [\w-]+ mentioned in the provided text is",
    "vt": r" Answer: According to the chain\(s\) of variable assignment in the text above, 5 variables are assigned the value \d{5}, they are: ",
    "cwe": r" Answer: The top 10 words that appear most often in the list are:",
    "fwe": r" Answer: According to the coded text above, the three most frequently appeared words are:",
}
READER = SimpleNamespace(tokenizer=WORDS, context=1 << 20)
RANDOM = {  # what is drawn, and what the shape of a text has in its place
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}": "UUID",
    r"(?<=for )[^\n]+?(?= is:| mentioned)": "KEY",
    r"\b\d{7}\b": "NUMBER",
    r"\b\d{5}\b": "VALUE",
    r"\b(?!VAR\b)([A-Z]{3}|[A-Z]{5})\b": "NAME",
    r"\b1\. .*": "LIST",
    r"(?<=coded words\. ).*(?=\n)": "CODED",
}


def shape(text: str) -> list[str]:
    for pattern, name in RANDOM.items():
        text = re.sub(pattern, name, text)
    return text.split("\n")


def made(kind: str, length: int = 1000, index: int = 0) -> tuple[str, list[str], int]:
    tokens, answers = Ruler6([length], 2).text(READER, Key(kind, length, index))
    return "".join(tokens), answers, len(tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_have_rulers_shape(kind):
    text, answers, _ = made(kind)
    ours, theirs = shape(text), shape(THEIRS[kind]["text"])
    assert (ours[0], ours[-1]) == (theirs[0], theirs[-1])  # instruction, question and the answer's beginning
    hay = theirs[len(theirs) // 2] if kind in ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt") else None
    counts = [Counter(line for line in lines if line != hay) for lines in (ours, theirs)]
    assert counts[0] == counts[1]
    assert (
        abs(ours.count(hay) - theirs.count(hay)) <= 3 * (kind == "vt") + 1
    )  # as many lines of hay; vt's example is shorter below 4,096
    assert len(answers) == len(THEIRS[kind]["outputs"])


def words_of(text: str) -> list[Counter]:
    """Of each list in a text of cwe, how many words stand in it how often."""
    lists = [line for line in text.split("\n") if line.startswith("1. ")]
    return [Counter(Counter(re.findall(r"\d+\. ([^\d]+?)(?= \d+\.|$)", line)).values()) for line in lists]


def test_words_appear_as_often_as_in_ruler():
    example, text = words_of(THEIRS["cwe"]["text"])
    assert example == {3: 10, 1: 10} and text[6] == 10
    units = text[6] + text[1]
    assert words_of(common_words(Random(0), units, 1000, WORDS.encode)[0]) == [example, text]
    assert words_of(listed(Random(0), 60, 30, 3)[0]) == [{30: 10, 3: 50}]
    assert words_of(common_words(Random(0), 60, 4096, WORDS.encode)[0]) == [
        {10: 10, 3: 30},
        {30: 10, 3: 50},
    ]  # RULER's from 4,096 on


def test_coded_words_appear_as_often_as_in_ruler():
    def counts(text: str) -> list[int]:
        return sorted(Counter(re.search(r"coded words\. (.*)\n", text)[1].split()).values(), reverse=True)

    theirs = counts(THEIRS["fwe"]["text"])
    same = [units for units in range(900, 1700) if counts(coded_words(Random(1), units, 1000, WORDS.encode)[0]) == theirs]
    assert same  # for some number of words, which RULER chooses in steps
    text, answers, _ = made("fwe")
    body = Counter(re.search(r"coded words\. (.*)\n", text)[1].split())
    assert [word for word, _ in body.most_common(4)] == ["...", *answers]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_fills_its_length_and_depends_on_its_key_alone(kind):
    for length in (600, 5000):
        text, answers, tokens = made(kind, length)
        assert 0.85 * (length - KINDS[kind].new) < tokens <= length - KINDS[kind].new
        assert all(answer in text for answer in answers)
    assert made(kind, 600)[0] == made(kind, 600)[0] != made(kind, 600, 1)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_model_is_asked_through_its_template(kind):
    def chat(messages):
        assert [message["role"] for message in messages] == ["user"]
        return LLAMA3.format(task_template=messages[0]["content"])

    chatting = SimpleNamespace(tokenizer=SimpleNamespace(encode=WORDS.encode, chat_template=LLAMA3, chat=chat), context=1 << 20)
    tokens, answers = Ruler6([1000], 2).text(chatting, Key(kind, 1000, 0))
    text = "".join(tokens)
    user, begun = text.split("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
    assert text.startswith("<|begin_of_text|><|start_header_id|>user") and re.fullmatch(BEGUN[kind], begun)
    assert (
        user.endswith(("?", "in the text above."))
        and all(answer in user for answer in answers)
        and len(tokens) <= 1000 - KINDS[kind].new
    )
    assert re.search(f"{BEGUN[kind]}$", made(kind)[0])  # without a template it follows the question


def test_largest():
    for limit in (3, 4, 7, 100, 1023):
        assert largest(lambda number, limit=limit: number <= limit, 3, 1000) == min(limit, 1000)


def test_scores_are_rulers():
    assert recalled("they are ab, CD", ["AB", "cd", "ef", "gh"]) == 0.5
    samples = [{"domain": kind, "length": 600, "score": float(kind == "vt")} for kind in KINDS for _ in range(2)]
    found = {row.domain: row.value for row in Ruler6([600], 2).scores(samples)}
    assert found.pop("vt") == 1.0 and found.pop("all") == pytest.approx(1 / 6) and set(found.values()) == {0.0}


def test_a_model_is_asked(store):
    evaluated = evaluated_of(store)
    task = Ruler6([1500], 1)
    task.check(evaluated)
    keys = task.keys()
    assert len(keys) == 6
    for key in keys:
        ((same, record),) = task.measure(evaluated, [key])
        assert same == key and record["prompt_tokens"] <= 1500 - KINDS[key.domain].new and 0 <= record["score"] <= 1
    with pytest.raises(UserError, match=r"ruler6: \w+ needs lengths of [\d,]+ tokens or more"):
        Ruler6([128], 1).check(evaluated)
