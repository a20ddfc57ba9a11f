"""Perplexity tasks against transformers' own loss on a fixed page, and the sliding window against one forward per token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lit_long.batch import NO_LOSS
from lit_long.config import EvaluationConfig, UserError
from lit_long.data.held_out import held_out_sequences
from lit_long.evaluation.measurement import BY_POSITION
from lit_long.evaluation.pages import Pages
from lit_long.evaluation.perplexity import Perplexity, SlidingPerplexity, edges_of, sliding, text_measurements
from lit_long.evaluation.subject import Subject, token_losses
from tests.evaluation.subjects import bytes_tokenizer, subject_of, words_in
from tests.pretrained.llamas import random_llama, read, save

PAGE = "The quick brown fox jumps over the lazy dog. Sphinx of black quartz, judge my vow! 0123456789 äöü\n" * 3


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """transformers' model, and ours with the same weights and two pages: the second is shorter, a third too short."""
    theirs = random_llama(vocab=257, context=512)
    ours = read(save(theirs, tmp_path_factory.mktemp("llama")))
    from lit_long.tokenizers.tokenizer import ModelTokenizer

    words = ModelTokenizer(bytes_tokenizer(), bos=256, eos=(256,), add_bos=False, separator=256)
    texts = {"page": [PAGE, PAGE[40:320], PAGE[:60]], "other": [PAGE[7:]]}
    return theirs, Subject(ours, words, 512, 256), Pages(words, texts)


def samples_of(task, subject):
    found = []
    for domain in task.domains:
        for length in task.lengths:
            keys = [key for key in task.keys() if (key.domain, key.length) == (domain, length)]
            found += [key._asdict() | record for key, record in task.measure(subject, keys)]
    return found


@torch.no_grad()
def their_nats(theirs, tokens):
    """Summed nats of tokens[1:] by transformers' own loss."""
    row = torch.tensor([tokens])
    return float(theirs(row, labels=row).loss) * (len(tokens) - 1)


def test_the_loss_of_transformers(pair):
    theirs, subject, pages = pair
    task = Perplexity(pages, "digest", ["page", "other"], [64, 128, 256], sequences=4)
    rows = {(row.metric, row.domain, row.length): row for row in task.scores(samples_of(task, subject))}
    for domain, documents in (("page", 2), ("other", 1)):
        tokens = [pages.documents(domain)[i].tolist() for i in range(documents)]
        for length in task.lengths:
            starts = range(0, 256, length)
            nats = sum(their_nats(theirs, row[start : start + length + 1]) for row in tokens for start in starts)
            row = rows["perplexity", domain, length]
            assert row.value == pytest.approx(math.exp(nats / (256 * documents)), rel=1e-4) and row.n == documents
            assert rows["nats", domain, length].value == pytest.approx(nats / (256 * documents), rel=1e-5)


def test_by_position(pair):
    theirs, subject, pages = pair
    task = Perplexity(pages, "digest", ["other"], [128, 256], smooth=100)
    rows = [row for row in task.scores(samples_of(task, subject)) if row.metric == BY_POSITION]
    assert [row.length for row in rows] == [100, 200, 256] == edges_of(256, 100)
    tokens = pages.documents("other")[0].tolist()
    sums = [0.0, *(their_nats(theirs, tokens[: edge + 1]) for edge in (100, 200, 256))]
    assert [row.value for row in rows] == pytest.approx(np.diff(sums) / [100, 100, 56], rel=1e-4)
    assert edges_of(64, 0) == [16, 24, 32, 48, 64]


@pytest.mark.parametrize(("window", "stride"), [(64, 16), (64, 64), (100, 7), (256, 10)])
def test_sliding_window_is_one_forward_a_token(pair, window, stride):
    """The slow way: every token is predicted from the last window that its stride allows."""
    theirs, subject, pages = pair
    task = SlidingPerplexity(pages, "digest", ["other"], [window], tokens=256, stride=stride)
    (sample,) = samples_of(task, subject)
    tokens, expected = pages.documents("other")[0].tolist(), 0.0
    last = 256 - window
    for target in range(1, 257):
        steps = max(0, math.ceil((target - window) / stride))
        start = min(steps * stride, last)
        with torch.no_grad():
            logits = theirs(torch.tensor([tokens[start:target]])).logits[0, -1].double()
        expected -= float(logits.log_softmax(-1)[tokens[target]])
    assert sample["tokens"] == 256 and sample["nats"] == pytest.approx(expected, rel=1e-5)


def test_sliding_windows_predict_each_token_once():
    tokens = np.arange(1001)
    for window, stride in ((1000, 1), (100, 100), (333, 50), (64, 63)):
        batch = sliding(tokens, window, stride)
        scored = batch.targets[batch.targets != NO_LOSS]
        assert scored.tolist() == list(range(1, 1001))
        assert (batch.targets[0] != NO_LOSS).all() and batch.tokens[-1, -1] == 999
    for window, stride, message in ((64, 65, "would be left out"), (64, 0, "at least 1"), (1001, 10, "does not fit")):
        with pytest.raises(UserError, match=message):
            sliding(tokens, window, stride)


def test_a_store_of_ours_is_read_alike(store):
    """Documents of a prepared store, and the same texts in memory, have the same perplexity."""
    subject = subject_of(store)
    texts = {"docs": [store.tokenizer.decode(row[1:].tolist()) for row in long_documents(store)]}
    pages = Pages(words_in(store), texts)
    found = [Perplexity(each, "digest", ["docs"], [128], sequences=1000) for each in (store, pages)]
    rows = [task.scores(samples_of(task, subject))[0] for task in found]
    assert rows[0].value == pytest.approx(rows[1].value, rel=1e-6) and rows[0].n == rows[1].n > 2
    assert len(pages.digest) == 64 and pages.digest != Pages(words_in(store), {"code": texts["docs"]}).digest


def long_documents(store):
    documents = store.documents("docs", "validation")
    return [documents[i] for i in range(len(documents))]


def test_the_stage_and_the_command_measure_the_same(store):
    """The same texts, values, errors and intervals. A stage sums all at once: its value is pinned to the last bit."""
    subject, lengths = subject_of(store), [64, 128, 256]
    settings = EvaluationConfig(domains=["code", "docs"], lengths=lengths, sequences=3, batch_tokens=512)
    with torch.no_grad():
        staged = text_measurements(subject.model, store, settings, torch.device("cpu"), lambda tokens: None)
    task = Perplexity(store, "digest", ["code", "docs"], lengths, sequences=3)
    asked = {(each.metric, each.domain, each.length): each for each in task.scores(samples_of(task, subject))}
    assert {(each.metric, each.domain, each.length) for each in staged} == {key for key in asked if key[0] != "nats"}
    for each in staged:
        other = asked[each.metric, each.domain, each.length]
        assert (each.n, each.unit, each.tokens) == (other.n, other.unit, other.tokens) and each.n == 3
        for name in ("value", "stderr", "low", "high"):
            assert getattr(each, name) == pytest.approx(getattr(other, name), rel=1e-5)
    batch = held_out_sequences(store, "code", 128, 3, 256)
    with torch.no_grad():
        nats, _ = token_losses(subject.model, batch, 512 // 128, lambda tokens: None)
    found = next(each for each in staged if (each.metric, each.domain, each.length) == ("perplexity", "code", 128))
    assert found.value == math.exp(float(nats.double().sum()) / (3 * 256))
