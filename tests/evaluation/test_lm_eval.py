"""Our adapter for lm-eval against lm-eval's own HFLM on the same folder: likelihoods, greedy flags, rolling windows and texts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lit_long.config import UserError
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.positions import build
from lit_long.positions.layers import as_pattern
from lit_long.pretrained import open_pretrained
from tests.evaluation.models import bytes_folder
from tests.generation.llamas import count_plans, count_tokens
from tests.pretrained.llamas import read

PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " London"),
    ("A or B? Answer:", " A"),
    ("A or B? Answer:", " B"),
    ("A or B? Answer: ", "C"),  # lm-eval moves the space
    ("", "Nothing stands before it"),
    ("long " * 60, "ago"),  # 300 tokens, of 128
    ("x" * 500, "y" * 20),
]
CONTEXT = 128
SHOTS = "Q: Is it one? A: one\nQ: Is it two? A: two\n"
QUESTIONS = {
    "Q: What do the hens of the old farm lay? A:": (" brown eggs", " white stones", " nothing at all", " bricks"),
    "Q: Which of the letters is the first? A:": (" A", " B", " C", " D"),
}
OPTIONS = [(SHOTS + question, option) for question, options in QUESTIONS.items() for option in options]


def instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    from lm_eval.models.huggingface import HFLM

    from lit_long.evaluation.lm_eval import Harness

    folder = bytes_folder(tmp_path_factory.mktemp("llama") / "model", CONTEXT)
    pretrained = open_pretrained(str(folder))
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)
    return theirs, Harness(EvaluatedModel(read(pretrained), pretrained.tokenizer(), CONTEXT, 512))


def test_likelihoods(pair):
    ours = pair[1]
    before = ours.truncated, ours.asked
    expected, found = (lm.loglikelihood(instances("loglikelihood", PAIRS)) for lm in pair)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert (ours.truncated - before[0], ours.asked - before[1]) == (2, len(PAIRS))
    for continuation, message in (
        ("b" * 129, "of 129 tokens at once, beyond the model's range of 128"),
        ("", "likelihood of nothing"),
    ):
        with pytest.raises(UserError, match=message):
            ours.loglikelihood(instances("loglikelihood", [("a", continuation)]))


def test_logits_of_a_long_text_never_exist_at_once(pair, monkeypatch):
    """Whole texts are scored to the same numbers, a few tokens' logits at a time."""
    model, seen = pair[1].evaluated.model, []
    texts = [("a b c " * 15,), ("word " * 50,)]
    expected = pair[1].loglikelihood_rolling(instances("loglikelihood_rolling", texts))
    likelihoods = pair[1].loglikelihood(instances("loglikelihood", PAIRS))
    head = model.head
    monkeypatch.setattr(model, "head", lambda hidden: seen.append(len(hidden)) or head(hidden))
    monkeypatch.setattr(model, "loss_chunk", 16)
    assert pair[1].loglikelihood_rolling(instances("loglikelihood_rolling", texts)) == pytest.approx(expected, rel=1e-6)
    found = pair[1].loglikelihood(instances("loglikelihood", PAIRS))
    assert [greedy for _, greedy in found] == [greedy for _, greedy in likelihoods]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in likelihoods], rel=1e-6)
    assert max(seen) == 16 and sum(seen) > 256


def test_greedy_is_what_would_be_written(pair):
    theirs, ours = pair
    contexts = [f"{i} is a number, and" for i in range(40)]
    written = theirs.generate_until(instances("generate_until", [(text, {"max_gen_toks": 1}) for text in contexts]))
    asked = [pair for pair in zip(contexts, written, strict=True) if pair[1].isascii() and pair[1].strip()]
    asked += [(context, "!?") for context, _ in asked]
    flags = [[greedy for _, greedy in lm.loglikelihood(instances("loglikelihood", asked))] for lm in (theirs, ours)]
    assert flags[0] == flags[1] and len(asked) >= 4
    assert flags[1] == [True] * (len(asked) // 2) + [False] * (len(asked) // 2)


def test_a_gpu_plans_no_kernel_for_every_length_of_a_text(pair, monkeypatch):
    from lit_long.evaluation import lm_eval
    from lit_long.generation import decode, prefix

    plans = count_plans(monkeypatch, lm_eval, decode, prefix)
    model = pair[1].evaluated.model
    pair[1].loglikelihood(instances("loglikelihood", OPTIONS))
    shared = len(plans[False])
    assert shared >= 4
    encoder = build({"scheme": "dynamic_ntk", "original": 16}, model.config.head_dim)  # for which lengths are read apart
    monkeypatch.setattr(model, "pattern", as_pattern(encoder))
    pair[1].loglikelihood(instances("loglikelihood", PAIRS))
    pair[1].generate_until(instances("generate_until", [("a", {"max_gen_toks": 3})]))
    assert len(plans[False]) >= shared + 8 and not plans[True]


def test_what_requests_share_is_read_once(pair, monkeypatch):
    """Two questions after the same shots, each with options of several tokens and of one: as HFLM's, from fewer tokens."""
    theirs, ours = pair
    expected = theirs.loglikelihood(instances("loglikelihood", [*OPTIONS, *PAIRS]))
    alone = [ours.loglikelihood(instances("loglikelihood", [each]))[0] for each in OPTIONS]
    read = count_tokens(monkeypatch)
    found = ours.loglikelihood(instances("loglikelihood", [*OPTIONS, *PAIRS]))
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [score for score, _ in found[: len(OPTIONS)]] == pytest.approx([score for score, _ in alone], abs=1e-4)
    together = sum(read)
    read.clear()
    ours.loglikelihood(instances("loglikelihood", PAIRS))
    options = [answers for answers in QUESTIONS.values() if len(answers[0]) > 1]
    apart = sum(len(question) - 1 for question in QUESTIONS) + sum(len(answer) for answers in options for answer in answers)
    assert together - sum(read) <= len(SHOTS) + apart + 40  # padding, and the letters' question
    assert sum(len(context + option) for context, option in OPTIONS) > 3 * (together - sum(read))


def test_rolling(pair):
    texts = [("short",), ("z" * 300,), ("The quick brown fox. " * 20,)]
    expected, found = (lm.loglikelihood_rolling(instances("loglikelihood_rolling", texts)) for lm in pair)
    assert found == pytest.approx(expected, abs=1e-3)
    with pytest.raises(UserError, match="text 0, which is empty"):
        pair[1].loglikelihood_rolling(instances("loglikelihood_rolling", [("",)]))


def test_texts(pair):
    ours = pair[1]
    options = {"until": ["e", "Q"], "do_sample": False, "max_gen_toks": 24}
    asked = [(f"Question {i}: what is {i} times {i}?\nAnswer:", options) for i in range(6)] + [
        ("w" * 400, options | {"until": []})
    ]
    before = ours.truncated
    expected, found = (lm.generate_until(instances("generate_until", asked)) for lm in pair)
    assert found == expected and any(found) and len(set(found)) > 3
    assert ours.truncated - before == 1
    with pytest.raises(UserError, match="128 new tokens, which leaves nothing of the model's range of 128"):
        ours.generate_until(instances("generate_until", [("x", {"max_gen_toks": 128})]))
    with pytest.raises(UserError, match="sets num_beams for generation"):
        ours.generate_until(instances("generate_until", [("x", {"num_beams": 4})]))


def test_drawn_texts_do_not_depend_on_what_else_is_asked(pair):
    ours = pair[1]
    warm = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 20}
    together = ours.generate_until(instances("generate_until", [("one", warm), ("two", warm), ("three", {"max_gen_toks": 20})]))
    alone = [ours.generate_until(instances("generate_until", [(text, warm)]))[0] for text in ("one", "two")]
    assert (
        together[:2] == alone and alone[0] != ours.generate_until(instances("generate_until", [("one", {"max_gen_toks": 20})]))[0]
    )


def test_a_prompt_that_is_cut_keeps_bos(pair):
    """As its model was trained; the same as asking for the shorter prompt with bos in front, token by token."""
    from lit_long.evaluation.lm_eval import Harness

    class Recording(EvaluatedModel):
        def write(self, prompts, *options):
            seen.extend(prompts)
            return super().write(prompts, *options)

    plain, bos, seen = pair[1].evaluated, 65, []
    evaluated = Recording(plain.model, replace(plain.tokenizer, bos=bos, add_bos=True), CONTEXT, plain.batch_tokens)
    ours = Harness(evaluated)
    long, answer = ("word " * 60).strip(), " ago"
    asked, tail = ours.tok_encode(long), evaluated.encode(long + answer)
    assert asked[0] == bos and len(asked) > CONTEXT
    cases = [(long, answer), (long, "y" * CONTEXT)]
    found = ours.loglikelihood(instances("loglikelihood", cases))
    rows = [[bos, *tail[-CONTEXT : -len(answer)]], [bos]]
    expected = Harness(evaluated)._loglikelihood_tokens(
        [(None, row, evaluated.encode(each)) for row, (_, each) in zip(rows, cases, strict=True)]
    )
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert found != pair[1].loglikelihood(instances("loglikelihood", cases)) and ours.truncated == 2
    written = ours.generate_until(instances("generate_until", [(long, {"max_gen_toks": 20})]))
    prompt = [bos, *evaluated.encode(long)[-(CONTEXT - 20 - 1) :]]
    assert written == [text for _, text in evaluated.write([prompt], 20)]
    assert seen[0] == prompt and len(prompt) + 20 == CONTEXT
    half = Harness(evaluated, 64)
    half.generate_until(instances("generate_until", [(long, {"max_gen_toks": 20})]))
    assert half.cut(asked, 64) == [bos, *asked[-63:]] and half.cut(asked, 1) == asked[-1:] and half.truncated == 1


def test_an_encoder_that_looks_at_the_length(tmp_path):
    """Rows of unequal length get their own tables, and not those of the longest row beside them."""
    from lit_long.evaluation.lm_eval import Harness

    pretrained = open_pretrained(str(bytes_folder(tmp_path / "model", CONTEXT)))
    model = read(pretrained)
    model.pattern = as_pattern(build({"scheme": "dynamic_ntk", "base": 10_000.0, "factor": 4.0, "original": 32}, 16))
    words = pretrained.tokenizer()
    pairs = [("short " * 6, "one"), ("longer " * 12, "two"), ("x", "yz")]
    together = Harness(EvaluatedModel(model, words, CONTEXT, 10_000)).loglikelihood(instances("loglikelihood", pairs))
    alone = [
        Harness(EvaluatedModel(model, words, CONTEXT, 1)).loglikelihood(instances("loglikelihood", [each]))[0] for each in pairs
    ]
    assert [score for score, _ in together] == pytest.approx([score for score, _ in alone], abs=1e-4)
    plain = read(pretrained)
    expected = Harness(EvaluatedModel(plain, words, CONTEXT, 10_000)).loglikelihood(instances("loglikelihood", pairs))
    assert abs(expected[1][0] - together[1][0]) > 1e-2 and torch.isfinite(torch.tensor(together[0][0]))
