"""Perplexity tasks against transformers' own loss on a fixed page, and the sliding window against one forward per token."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lit_long.batch import NO_LOSS, Batch
from lit_long.config import CorpusConfig, EvaluationConfig, InstructConfig, SourceConfig, UserError
from lit_long.data.held_out import held_out_sequences
from lit_long.data.prepare import prepare
from lit_long.data.token_store import open_store
from lit_long.evaluation.evaluated_model import EvaluatedModel, token_losses
from lit_long.evaluation.in_memory_corpus import InMemoryCorpus
from lit_long.evaluation.measurement import BY_POSITION
from lit_long.evaluation.perplexity import Perplexity, SlidingPerplexity, edges_of, sliding, text_measurements
from lit_long.evaluation.suites import domains_for
from tests.evaluation.models import bytes_tokenizer, evaluated_of, words_in
from tests.pretrained.llamas import random_llama, read, save

SPOKEN = "the river runs past seven old mills and nobody counts them since the war ended in spring"
PAGE = "The quick brown fox jumps over the lazy dog. Sphinx of black quartz, judge my vow! 0123456789 äöü\n" * 3


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """transformers' model, and ours with the same weights and two pages: the second is shorter, a third too short."""
    theirs = random_llama(vocab=257, context=512)
    ours = read(save(theirs, tmp_path_factory.mktemp("llama")))
    from lit_long.tokenizers.tokenizer import ModelTokenizer

    words = ModelTokenizer(bytes_tokenizer(), bos=256, eos=(256,), add_bos=False, separator=256)
    texts = {"page": [PAGE, PAGE[40:320], PAGE[:60]], "other": [PAGE[7:]]}
    return theirs, EvaluatedModel(ours, words, 512, 256), InMemoryCorpus(words, texts)


def samples_of(task, evaluated):
    found = []
    for domain in task.domains:
        for length in task.lengths:
            keys = [key for key in task.keys() if (key.domain, key.length) == (domain, length)]
            found += [key._asdict() | record for key, record in task.measure(evaluated, keys)]
    return found


@torch.no_grad()
def their_nats(theirs, tokens):
    """Summed nats of tokens[1:] by transformers' own loss."""
    row = torch.tensor([tokens])
    return float(theirs(row, labels=row).loss) * (len(tokens) - 1)


def test_the_loss_of_transformers(pair):
    theirs, evaluated, pages = pair
    task = Perplexity(pages, "digest", ["page", "other"], [64, 128, 256], sequences=4)
    rows = {(row.metric, row.domain, row.length): row for row in task.scores(samples_of(task, evaluated))}
    for domain, documents in (("page", 2), ("other", 1)):
        tokens = [pages.documents(domain)[i].tolist() for i in range(documents)]
        for length in task.lengths:
            starts = range(0, 256, length)
            nats = sum(their_nats(theirs, row[start : start + length + 1]) for row in tokens for start in starts)
            row = rows["perplexity", domain, length]
            assert row.value == pytest.approx(math.exp(nats / (256 * documents)), rel=1e-4) and row.n == documents
            assert rows["nats", domain, length].value == pytest.approx(nats / (256 * documents), rel=1e-5)


def test_by_position(pair):
    theirs, evaluated, pages = pair
    task = Perplexity(pages, "digest", ["other"], [128, 256], smooth=100)
    rows = [row for row in task.scores(samples_of(task, evaluated)) if row.metric == BY_POSITION]
    assert [row.length for row in rows] == [100, 200, 256] == edges_of(256, 100)
    tokens = pages.documents("other")[0].tolist()
    sums = [0.0, *(their_nats(theirs, tokens[: edge + 1]) for edge in (100, 200, 256))]
    assert [row.value for row in rows] == pytest.approx(np.diff(sums) / [100, 100, 56], rel=1e-4)
    assert edges_of(64, 0) == [16, 24, 32, 48, 64]


@pytest.mark.parametrize(("window", "stride"), [(64, 16), (64, 64), (100, 7), (256, 10)])
def test_sliding_window_is_one_forward_a_token(pair, window, stride):
    """The slow way: every token is predicted from the last window that its stride allows."""
    theirs, evaluated, pages = pair
    task = SlidingPerplexity(pages, "digest", ["other"], [window], tokens=256, stride=stride)
    (sample,) = samples_of(task, evaluated)
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
    tokens = torch.arange(1001)
    for window, stride in ((1000, 1), (100, 100), (333, 50), (64, 63)):
        batch = sliding(tokens[:-1], tokens[1:], window, stride)
        scored = batch.targets[batch.targets != NO_LOSS]
        assert scored.tolist() == list(range(1, 1001))
        assert (batch.targets[0] != NO_LOSS).all() and batch.tokens[-1, -1] == 999
    for window, stride, message in ((64, 65, "would be left out"), (64, 0, "at least 1"), (1001, 10, "does not fit")):
        with pytest.raises(UserError, match=message):
            sliding(tokens[:-1], tokens[1:], window, stride)


def test_a_store_of_ours_is_read_alike(store):
    """Documents of a prepared store, and the same texts in memory, have the same perplexity."""
    evaluated = evaluated_of(store)
    texts = {"docs": [store.tokenizer.decode(row[1:].tolist()) for row in long_documents(store)]}
    pages = InMemoryCorpus(words_in(store), texts)
    found = [Perplexity(each, "digest", ["docs"], [128], sequences=1000) for each in (store, pages)]
    rows = [task.scores(samples_of(task, evaluated))[0] for task in found]
    assert rows[0].value == pytest.approx(rows[1].value, rel=1e-6) and rows[0].n == rows[1].n > 2
    assert len(pages.digest) == 64 and pages.digest != InMemoryCorpus(words_in(store), {"code": texts["docs"]}).digest


def test_a_stage_skips_the_first_documents(store):
    evaluated = evaluated_of(store)

    def nats(**asked):
        settings = EvaluationConfig(domains=["code"], lengths=[64, 128], batch_tokens=512, **asked)
        with torch.no_grad():
            rows = text_measurements(evaluated.model, store, settings, torch.device("cpu"), lambda tokens: None)
        return {row.length: row.settings["document_nats"] for row in rows if row.metric == "perplexity"}

    whole, behind = nats(sequences=4), nats(sequences=2, skip=2)
    assert all(behind[length] == pytest.approx(whole[length][2:]) and len(behind[length]) == 2 for length in (64, 128))
    assert whole[128][:2] != pytest.approx(whole[128][2:])


def long_documents(store):
    documents = store.documents("docs", "validation")
    return [documents[i] for i in range(len(documents))]


def test_the_stage_and_the_command_measure_the_same(store):
    """The same texts, values, errors and intervals. A stage sums all at once: its value is pinned to the last bit."""
    evaluated, lengths = evaluated_of(store), [64, 128, 256]
    settings = EvaluationConfig(domains=["code", "docs"], lengths=lengths, sequences=3, batch_tokens=512)
    with torch.no_grad():
        staged = text_measurements(evaluated.model, store, settings, torch.device("cpu"), lambda tokens: None)
    task = Perplexity(store, "digest", ["code", "docs"], lengths, sequences=3)
    asked = {(each.metric, each.domain, each.length): each for each in task.scores(samples_of(task, evaluated))}
    assert {(each.metric, each.domain, each.length) for each in staged} == {key for key in asked if key[0] != "nats"}
    for each in staged:
        other = asked[each.metric, each.domain, each.length]
        assert (each.n, each.unit, each.tokens) == (other.n, other.unit, other.tokens) and each.n == 3
        for name in ("value", "stderr", "low", "high"):
            assert getattr(each, name) == pytest.approx(getattr(other, name), rel=1e-5)
    batch = held_out_sequences(store, "code", 128, 3, 256)
    with torch.no_grad():
        nats, _ = token_losses(evaluated.model, batch, 512 // 128, lambda tokens: None)
    found = next(each for each in staged if (each.metric, each.domain, each.length) == ("perplexity", "code", 128))
    assert found.value == math.exp(float(nats.double().sum()) / (3 * 256))


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """A prepared store of conversations of one, two and three answers, beside texts; all conversations are short."""
    folder = tmp_path_factory.mktemp("chats")
    words = SPOKEN.split(" ")
    said = [" ".join(words[(n * 7 + place * 3) % len(words)] for place in range(4 + n % 9)) for n in range(200)]
    rows = [
        {
            "messages": [
                {"role": role, "content": said[n * 3 + turn]} for turn in range(1 + n % 3) for role in ("user", "assistant")
            ]
        }
        for n in range(50)
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": " ".join(said[n:] * 2)}) + "\n" for n in range(20)))
    sources = {
        "chat": SourceConfig(str(folder / "chat.jsonl"), validation_share=0.2, instruct=InstructConfig("messages")),
        "text": SourceConfig(str(folder / "text.jsonl"), validation_share=0.2),
    }
    prepare(CorpusConfig(vocab_size=300), folder / "store", sources=sources, builtin=False, processes=1)
    return open_store(folder / "store")


def answers_of(store, length, count):
    """(tokens read, which of them are answers' or the end, the ids predicted) of held-out conversations, by the store's own spans."""
    documents, found = store.documents("chat", "validation"), []
    for index in range(len(documents)):
        ids = [*documents[index].tolist(), store.separator]
        spans = [range(first, end) for first, end in documents.answers(index)]
        spans.append(range(len(ids) - 1, len(ids)))  # the end, of what an answer ends
        start = max(0, len(ids) - 1 - length)
        found.append((ids[start:], [place - start for span in spans for place in span if place > start]))
    return found


@torch.no_grad()
def test_conversations_at_every_length(chats):
    """torch's own cross entropy on the tokens of the answers; a conversation is a document, also below the longest length."""
    evaluated, lengths = evaluated_of(chats), [32, 64, 256]
    count = len(chats.documents("chat", "validation"))
    assert count > 4 and count % 8
    assert domains_for(["perplexity"], chats, 256) == ["chat", "text"]
    task = Perplexity(chats, "digest", ["chat"], lengths, sequences=count)
    rows = {(row.metric, row.length): row for row in task.scores(samples_of(task, evaluated))}
    sliding_task = SlidingPerplexity(chats, "digest", ["chat"], [256], tokens=256, stride=64, sequences=count)
    (slid,) = sliding_task.scores(samples_of(sliding_task, evaluated))
    for length in lengths:
        nats, tokens, bins = 0.0, 0, {}
        for ids, answers in answers_of(chats, length, count):
            positions = torch.arange(len(ids) - 1)[None]
            row = Batch(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]]), torch.zeros_like(positions), positions, False)
            logits = evaluated.model.head(evaluated.model.hidden_states(row))[0].float()
            for place in answers:
                each = float(F.cross_entropy(logits[place - 1], torch.tensor(ids[place])))
                nats, tokens = nats + each, tokens + 1
                edge = next(edge for edge in edges_of(length, 0) if place <= edge)
                bins[edge] = [sum(pair) for pair in zip(bins.get(edge, [0.0, 0]), (each, 1), strict=True)]
        found = rows["perplexity", length]
        assert (found.n, found.tokens) == (count, tokens) and found.value == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    by_bin = {edge: row for (metric, edge), row in rows.items() if metric == BY_POSITION}
    assert by_bin.keys() == bins.keys()
    for edge, (nats_in, tokens_in) in bins.items():
        assert by_bin[edge].tokens == tokens_in and by_bin[edge].value == pytest.approx(nats_in / tokens_in, rel=1e-4)
        assert by_bin[edge].low is not None and math.isfinite(by_bin[edge].low)
    assert slid.tokens == tokens and slid.value == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    settings = EvaluationConfig(domains=["chat"], lengths=lengths, sequences=count, batch_tokens=512)
    staged = text_measurements(evaluated.model, chats, settings, torch.device("cpu"), lambda tokens: None)
    for each in staged:
        assert each.n == count and each.value == pytest.approx(rows[each.metric, each.length].value, rel=1e-5)
