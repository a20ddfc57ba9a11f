"""Retrieval as evaluated, against one full forward per token, and ROUGE-L against the package of its authors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from lit_long.batch import Batch
from lit_long.config import EvaluationConfig, ModelConfig
from lit_long.data.synthetic import RetrievalExample, passkey_examples, retrieval_examples
from lit_long.evaluation.retrieval import answer, control_examples, retrieval, rouge_l
from lit_long.model.llama import Llama
from lit_long.positions import build

SHAPE = ModelConfig(1024, 64, 2, 4, 2, 16, 96, 1e-5, True, 128, 1000.0)
POSITIONS = [
    {"scheme": "yarn", "base": 1000.0, "factor": 4.0, "original": 64},
    # its factors switch in the midst of the answers: at 200 tokens
    {"scheme": "longrope", "base": 1000.0, "factor": 2.0, "original": 200, "short_factors": [1.0] * 8, "long_factors": [4.0] * 8},
]


def model_with(position, shape=SHAPE):
    model = Llama(shape, build(position, 16)).eval()
    model.init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0 if parameter.ndim > 1 else 1.0)  # so that attention matters
    return model


@torch.no_grad()
def next_logits(model, tokens):
    row = torch.tensor(tokens)[None]
    return model.logits(Batch(row, row, torch.zeros_like(row), torch.arange(row.shape[1])[None], False))[0, -1]


@pytest.mark.parametrize("position", POSITIONS, ids=lambda position: position["scheme"])
@pytest.mark.parametrize("batch_tokens", [1, 10_000], ids=["one by one", "together"])
def test_answers_are_those_of_full_forwards(store, position, batch_tokens):
    model, examples = model_with(position), retrieval_examples(store, 208, 3)
    assert {example.answer_start for example in examples} != {examples[0].answer_start}  # prompts of unequal length
    answers = answer(model, examples, batch_tokens, lambda tokens: None)
    for example, found in zip(examples, answers, strict=True):
        tokens = example.tokens.tolist()
        for index, place in enumerate(range(example.answer_start, example.answer_stop)):
            logits = next_logits(model, tokens[:place])
            assert found.nats[index].item() == pytest.approx(-logits.log_softmax(-1)[tokens[place]].item(), abs=1e-4)
            assert found.hits[index].item() == (logits.argmax().item() == tokens[place])
        written = tokens[: example.answer_start]
        while len(written) < len(tokens):
            written.append(next_logits(model, written).argmax().item())
        assert found.written == written[example.answer_start :]


def test_the_control_asks_for_the_same_answers_after_other_texts(store):
    examples = retrieval_examples(store, 208, 4)
    for number, (example, control) in enumerate(zip(examples, control_examples(examples), strict=True)):
        other = examples[(number + 1) % 4]
        assert control.tokens[: control.answer_start].tolist() == other.tokens[: other.answer_start].tolist()
        scored = control.tokens[control.answer_start : control.answer_stop].tolist()
        assert scored == example.tokens[example.answer_start : example.answer_stop].tolist() and control.text == example.text
        assert example.text not in store.tokenizer.decode(control.tokens[: control.answer_start].tolist())


def test_the_control_is_measured_at_the_shortest_length_when_asked_for(store):
    model = model_with(POSITIONS[0])
    asked = EvaluationConfig(retrieval_lengths=[208, 160], retrieval_examples=3, retrieval_control=True)
    rows = {(row.metric, row.length): row.value for row in retrieval(model, store, asked, lambda tokens: None)}
    assert {length for metric, length in rows if "control" in metric} == {160}
    found = answer(model, control_examples(retrieval_examples(store, 160, 3, max_length=208)), 4096, lambda tokens: None)
    hits = torch.cat([each.hits for each in found]).double().mean().item()
    assert rows["retrieval_control", 160] == pytest.approx(hits)
    without = retrieval(model, store, replace(asked, retrieval_control=False), lambda tokens: None)
    assert not any("control" in row.metric for row in without)


@pytest.mark.parametrize("metric", ["retrieval", "passkey"])
def test_a_stage_skips_the_first_examples(store, monkeypatch, metric):
    from lit_long.evaluation import retrieval as module

    asked, real = [], module.answer
    monkeypatch.setattr(
        module, "answer", lambda model, examples, *rest, **how: asked.append(examples) or real(model, examples, *rest, **how)
    )
    model = model_with(POSITIONS[0])
    for skip, count in ((0, 4), (2, 2)):
        evaluation = EvaluationConfig(**{f"{metric}_lengths": [160]}, retrieval_examples=count, skip=skip)
        retrieval(model, store, evaluation, lambda tokens: None)
    # by how their texts begin: a key stands deeper, by how many there are
    whole, behind = ([example.tokens[:12].tolist() for example in examples] for examples in asked)
    assert behind == whole[2:] and len({*map(tuple, whole)}) == 4


def test_passkeys_are_found_only_whole(store):
    """A model cannot know the digits; one whose answers were planted does, and all but the last do not count."""
    model, examples = model_with(POSITIONS[0]), passkey_examples(store, 208, 2)
    evaluation = EvaluationConfig(passkey_lengths=[208], retrieval_examples=2)
    (row,) = retrieval(model, store, evaluation, lambda tokens: None)
    assert (row.metric, row.value, row.n) == ("passkey_accuracy", 0.0, 2)
    example = examples[0]
    written = example.tokens[: example.answer_start].tolist()
    for _ in range(4):
        written.append(next_logits(model, written).argmax().item())

    for last, whole in ((written[-1], True), ((written[-1] + 1) % 1024, False)):
        planted = RetrievalExample(np.array([*written[:-1], last]), example.answer_start, len(written), "")
        (found,) = answer(model, [planted], 1, lambda tokens: None, write=False)
        assert bool(found.hits.all()) is whole and found.hits[:3].all() and found.written == []


def test_rouge_l_is_the_authors():
    pairs = [
        ("the quick brown fox", "The quick fox jumps."),
        (" Return a new array of given shape.\nMore that is not scored", "Return a new array of given shape and type."),
        ("", "Something."),
        ("nothing alike", "Words apart entirely."),
    ]
    scorer = RougeScorer(["rougeL"])
    expected = [scorer.score(sentence, written.strip().partition("\n")[0])["rougeL"].fmeasure for written, sentence in pairs]
    assert rouge_l(*map(list, zip(*pairs, strict=True))) == pytest.approx(sum(expected) / len(pairs), abs=1e-6)
    assert 0.2 < sum(expected) / len(pairs) < 0.8
