"""Prompts as functions of (tokenizer, length, seed), and what counts as an answer; a model that answers is planted where one is needed."""

from __future__ import annotations

import re

import pytest

from lit_long.config import EvaluationConfig, UserError
from lit_long.data.synthetic import PASSKEY
from lit_long.evaluation import needle
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.in_memory_corpus import InMemoryCorpus
from lit_long.evaluation.needle import EXPECTED, NEEDLE, Needle, haystack, needle_prompt, overlap
from lit_long.evaluation.retrieval import (
    ANSWER_TOKENS,
    FirstSentence,
    Lines,
    Passkey,
    distance,
    first_integer,
    k_max,
    lines_prompt,
    retrieval,
)
from tests.evaluation.models import evaluated_of


@pytest.fixture(scope="module")
def evaluated(store):
    return evaluated_of(store)


def run(task, evaluated):
    """All samples, made in groups as an evaluation makes them."""
    found = []
    for length in task.lengths:
        keys = [key for key in task.keys() if key.length == length]
        made = list(task.measure(evaluated, keys))
        assert [key for key, _ in made] == keys
        found += [key._asdict() | record for key, record in made]
    return found


def answering(monkeypatch, answers):
    """Let the model write ``answers(prompt text)``."""

    def write(self, prompts, new, stop=()):
        for place, prompt in enumerate(prompts):
            yield place, answers(self.tokenizer.decode(prompt))

    monkeypatch.setattr(EvaluatedModel, "write", write), monkeypatch.setattr(EvaluatedModel, "write_sharing", write)


def test_needles_lie_where_they_should(store, evaluated):
    needle_tokens = evaluated.encode(NEEDLE)
    for length in (256, 700):
        prompts = [needle_prompt(evaluated, store, "docs", length, depth, 0, 0) for depth in (0, 0.25, 0.5, 1)]
        places = []
        for prompt in prompts:
            assert len(prompt) == length
            (place,) = [i for i in range(length) if prompt[i : i + len(needle_tokens)] == needle_tokens]
            places.append(place)
        for prompt, place in zip(prompts[:-1], places):  # the last one ends the book
            assert evaluated.tokenizer.decode(prompt[:place]).endswith((".", "!", "?", "\n", "<book> "))
        first, last = places[0], places[-1]
        room = last - first
        assert places == sorted(places) and room > length / 3
        for place, depth in zip(places, (0, 0.25, 0.5, 1), strict=True):
            assert first + depth * room - 60 <= place <= first + depth * room
        # the same hay at every depth
        hays = {tuple(p[:i] + p[i + len(needle_tokens) :]) for p, i in zip(prompts, places, strict=True)}
        assert len(hays) == 1
    assert needle_prompt(evaluated, store, "docs", 256, 0.5, 0, 0) == needle_prompt(evaluated, store, "docs", 256, 0.5, 0, 0)
    assert needle_prompt(evaluated, store, "docs", 256, 0.5, 1, 0) != needle_prompt(evaluated, store, "docs", 256, 0.5, 0, 0)


def test_haystacks_are_the_texts(store, evaluated):
    documents = store.documents("docs", "validation")
    every = [token for i in range(len(documents)) for token in documents[i][1:].tolist()]
    hay = haystack(store, "docs", 500, 3)
    assert len(hay) == 500 and store.separator not in hay
    assert any(every[i : i + 100] == hay[:100] for i in range(len(every)))
    assert haystack(store, "docs", 500, 3)[:200] == haystack(store, "docs", 200, 3)
    assert len(haystack(store, "docs", len(every) + 10, 3)) == len(every) + 10  # texts that are too short are repeated
    alone = InMemoryCorpus(evaluated.tokenizer, {"text": ["".join(chr(97 + number) for number in range(26))]})
    whole = alone.documents("text", "validation")[0][1:].tolist()
    hays = {tuple(haystack(alone, "text", 2 * len(whole), seed)) for seed in range(40)}
    assert len(hays) > len(whole) / 2  # of a single text, the place is drawn
    assert hays <= {tuple((whole * 3)[start : start + 2 * len(whole)]) for start in range(len(whole))}
    with pytest.raises(UserError, match="leaves no room for a haystack; the least is"):
        needle_prompt(evaluated, store, "docs", 40, 0.5, 0, 0)


@pytest.mark.parametrize(
    ("written", "score"),
    [
        (EXPECTED, 1.0),
        ("EAT A SANDWICH, and sit in dolores park on a sunny day", 1.0),
        ("eat a sandwich", 3 / 11),
        ("", 0),
        ("the", 0),
    ],
)
def test_needle_scores(written, score):
    assert overlap(written, EXPECTED) == pytest.approx(score)


def test_needle_grid(store, evaluated, monkeypatch):
    """A model that sees the first half of its prompt only."""
    answering(monkeypatch, lambda text: EXPECTED if "Dolores Park" in text[: len(text) // 2] else "I do not know")
    task = Needle(store, "digest", "docs", [256, 512], depths=3, trials=2)
    rows = task.scores(run(task, evaluated))
    cells = {(row.length, row.settings["depth"]): (row.value, row.n) for row in rows if row.metric == "score_at_depth"}
    assert cells == {(length, depth): (float(depth < 60), 2) for length in (256, 512) for depth in (0.0, 50.0, 100.0)} | {
        key: cells[key] for key in ((256, 50.0), (512, 50.0))
    }
    for length in (256, 512):
        (row,) = [row for row in rows if row.metric == "score" and row.length == length]
        assert row.n == 6 and row.value == pytest.approx(sum(cells[length, d][0] for d in (0.0, 50.0, 100.0)) / 3)


def test_lines(evaluated, monkeypatch):
    for length in (300, 1000):
        prompt, value = lines_prompt(evaluated, length, 0, 1)
        text = evaluated.tokenizer.decode(prompt)
        assert length - 40 <= len(prompt) <= length
        name = re.search(r"REGISTER_CONTENT in line ([a-z]+-[a-z]+) is <$", text)[1]
        records = re.findall(r"^line ([a-z]+-[a-z]+): REGISTER_CONTENT is <(\d{5})>$", text, re.MULTILINE)
        assert dict(records)[name] == str(value) and len({name for name, _ in records}) == len(records)
        assert (prompt, value) == lines_prompt(evaluated, length, 0, 1)
        assert value != lines_prompt(evaluated, length, 0, 2)[1] != lines_prompt(evaluated, length, 1, 1)[1]
    chosen = [lines_prompt(evaluated, 1000, 0, index) for index in range(30)]
    asked = [evaluated.tokenizer.decode(p).split("\nline ") for p, _ in chosen]
    places = [next(i for i, row in enumerate(rows) if f"<{value}>" in row) / len(rows) for rows, (_, value) in zip(asked, chosen)]
    assert min(places) < 0.25 and max(places) > 0.75  # anywhere among them
    for length, message in ((60, "holds no record of two lines"), (10**6, "more lines than have names")):
        with pytest.raises(UserError, match=message):
            lines_prompt(evaluated, length, 0, 0)

    def last_line(text):
        return re.findall(r"<(\d{5})>", text)[-1] + "> indeed, 77"

    answering(monkeypatch, last_line)
    task = Lines([600], count=20)
    (row,) = task.scores(run(task, evaluated))
    right = [
        last_line(evaluated.tokenizer.decode(p))[:5] == str(value)
        for p, value in (lines_prompt(evaluated, 600 - ANSWER_TOKENS, 0, i) for i in range(20))
    ]
    assert 0 < sum(right) < 20 and row.value == sum(right) / 20


@pytest.mark.parametrize(
    ("text", "number"), [("<40213>", 40213), ("it is 12,345 or 6", 12345), ("line 7: 40213", 7), ("none", None), ("", None)]
)
def test_first_integer(text, number):
    assert first_integer(text) == number


def test_the_tasks_are_the_retrieval_of_a_sweep(store, evaluated):
    """Same examples, same answers, same numbers as an evaluate stage's."""
    lengths = [160, 256]
    settings = EvaluationConfig(retrieval_lengths=lengths, passkey_lengths=lengths, retrieval_examples=5)
    swept = {(row.metric, row.length): row for row in retrieval(evaluated.model, store, settings, lambda tokens: None)}
    sentences, keys = FirstSentence(store, "d", "docs", lengths, 5), Passkey(store, "d", "docs", lengths, 5)
    rows = {(row.metric, row.length): row for row in sentences.scores(run(sentences, evaluated))}
    samples = run(sentences, evaluated)
    found = {(row.metric, row.length): row for row in keys.scores(run(keys, evaluated))}
    for length in lengths:
        assert rows["rouge_l", length].value == pytest.approx(swept["retrieval_rouge_l", length].value, abs=1e-6)
        mine = [each for each in samples if each["length"] == length]
        nats = sum(each["nats"] for each in mine) / sum(each["tokens"] for each in mine)
        assert nats == pytest.approx(swept["retrieval_nats", length].value, rel=1e-5)
        assert found["accuracy", length].value == swept["passkey_accuracy", length].value
        assert rows["rouge_l", length].n == found["accuracy", length].n == 5


def test_distances_and_trials_of_passkeys(store, evaluated):
    task = Passkey(store, "d", "docs", [256], 4, trials=2)
    samples, examples = run(task, evaluated), task.examples(256)
    assert len(samples) == 8 and [each["place"] for each in samples] == [0, 1, 2, 3] * 2
    for sample, example in zip(samples, examples, strict=True):
        tail = evaluated.tokenizer.decode(
            example.tokens[example.answer_start - sample["distance"] : example.answer_start].tolist()
        )
        assert tail.startswith(PASSKEY.format(key=example.text))
        assert sample["distance"] == distance(example, evaluated.encode(PASSKEY.format(key=example.text)))
    for trial in (samples[:4], samples[4:]):
        far = [each["distance"] for each in trial]
        assert far == sorted(far, reverse=True) and far[0] > 150 and far[-1] < 100
    for sample in samples:  # beyond 150 tokens the model finds none, and within it half
        sample["found"] = sample["distance"] < 150 and sample["index"] < 4
    row = next(row for row in task.scores(samples) if row.metric == "k_max")
    assert row.value == round((samples[2]["distance"] + samples[6]["distance"]) / 2) and row.n == 8


def test_k_max_is_a_fifth_of_the_trials():
    """Chen et al. 2023, §3.3: "the maximum k such that, for all k′ ≤ k, the model has a success rate of at least 20% on k′"."""
    ten = {hits: [True] * hits + [False] * (10 - hits) for hits in range(11)}
    assert k_max([(256, ten[10]), (512, ten[0]), (768, ten[0]), (1024, ten[2])]) == 256
    assert k_max([(1024, ten[1]), (768, ten[2]), (256, ten[10]), (512, ten[3])]) == 768  # in any order
    assert k_max([(256, ten[1]), (512, ten[0])]) == 0 == k_max([])


def test_beyond_the_models_range(store):
    short = evaluated_of(store, context=200)
    for task in (Needle(store, "d", "docs", [128, 256]), Lines([256]), FirstSentence(store, "d", "docs", [256])):
        with pytest.raises(UserError, match=rf"{task.name}: 256 tokens are beyond context=200.*position=yarn"):
            task.check(short)
    assert needle.NEW + 1 < 200
