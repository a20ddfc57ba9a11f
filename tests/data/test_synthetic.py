from __future__ import annotations

import re

import numpy as np
import pytest

from lit_long.config import UserError
from lit_long.data.synthetic import (
    PASSKEY,
    PASSKEY_QUESTION,
    QUESTION,
    SCORED_TOKENS,
    RetrievalDocuments,
    first_sentence,
    passkey_examples,
    retrieval_examples,
)
from lit_long.data.tokenizer import SEPARATOR


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("Return the sum of x. Then stop.\n", "Return the sum of x."),
        ("Use a mapping, e.g. a dict, for it. More", "Use a mapping, e.g. a dict, for it."),
        ("Version 3.11 of it is fine! Yes\n", "Version 3.11 of it is fine!"),
        ("Far too short. But this one is longer.\n", None),
        ("no capital letter at the start.\n", None),
        ("A sentence that goes on\nin the next line.\n", None),
    ],
)
def test_first_sentence(text, sentence):
    assert first_sentence(text) == sentence


def parts(store, tokens):
    """(text, answer) of a decoded instance."""
    decoded = store.tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
    assert decoded.startswith(SEPARATOR)
    text, answer = decoded.removeprefix(SEPARATOR).split(QUESTION)
    return text, answer


def check(store, tokens):
    text, answer = parts(store, tokens)
    assert answer[0] == " " and answer[-1] == "\n"
    sentence = answer[1:-1]
    assert text.startswith(sentence) and text.count(sentence) == 1
    assert len(sentence.split()) >= 4
    return text, sentence


def documents(sequence, separator):
    """The documents of a sequence, the target of its last token included, unless that opens the next document."""
    last = sequence["targets"][-1]
    tokens = sequence["tokens"] if last == separator else np.append(sequence["tokens"], last)
    starts = np.flatnonzero(np.diff(sequence["document_ids"], prepend=-1))
    return np.split(tokens, starts[1:])


@pytest.mark.parametrize("context", [127, 255, 1024])
def test_training_sequences(store, context):
    source = RetrievalDocuments(store, context, seed=1)
    training = store.tokenizer.decode(store.documents("docs", "train").tokens.tolist())
    sentences, lengths = set(), []
    for i in range(100):
        sequence = source[i]
        np.testing.assert_array_equal(sequence["tokens"][1:], sequence["targets"][:-1])
        assert sequence["tokens"].shape == (context,) and (sequence["targets"] >= 0).all()
        found = documents(sequence, store.separator)
        assert sequence["account"].tolist() == [context, len(found), 0, 0]
        counted = np.concatenate([np.arange(len(each)) for each in found])
        np.testing.assert_array_equal(sequence["positions"], counted[:context])
        lengths.append(len(found[0]))
        for tokens in found:
            if len(tokens) < 128:  # no room for the question: the rest is another text
                assert tokens is found[-1] and tokens[0] == store.separator
                assert store.tokenizer.decode(tokens[1:].tolist()).rstrip("\ufffd") in training
                continue
            text, sentence = check(store, tokens)
            assert text.rstrip("\ufffd") in training  # trimming may cut a character
            sentences.add(sentence)
    assert len(sentences) > 50
    assert set(lengths) <= set(range(128, context + 2))
    assert np.mean(lengths) == pytest.approx((128 + context + 1) / 2, rel=0.15)  # any length is as likely


def test_without_masks_positions_run_on(store):
    sequence = RetrievalDocuments(store, 511, seed=1, mask_documents=False)[3]
    assert len(documents(sequence, store.separator)) > 1 and (sequence["positions"] == np.arange(511)).all()


def test_training_sequences_are_functions_of_seed_and_index(store):
    first, second = RetrievalDocuments(store, 255, 1), RetrievalDocuments(store, 255, 1)
    expected = [first[i]["tokens"] for i in range(5)]
    for i in (4, 0, 3):
        np.testing.assert_array_equal(second[i]["tokens"], expected[i])
    assert (RetrievalDocuments(store, 255, 2)[0]["tokens"] != expected[0]).any()


def test_examples_ask_the_same_at_every_length(store):
    by_length = {length: retrieval_examples(store, length, 12, max_length=1024) for length in (128, 256, 1024)}
    held_out = store.tokenizer.decode(store.documents("docs", "validation").tokens.tolist())
    for length, examples in by_length.items():
        assert [example.text for example in examples] == [example.text for example in by_length[1024]]
        for example, longest in zip(examples, by_length[1024]):
            assert example.tokens.shape == (length,)
            text, sentence = check(store, example.tokens)
            assert sentence == example.text
            assert text.rstrip("\ufffd") in held_out
            assert parts(store, longest.tokens)[0].startswith(text.rstrip("\ufffd"))
    assert len({example.text for example in by_length[1024]}) == 12


def test_the_scored_region_is_the_start_of_the_answer(store):
    for example in retrieval_examples(store, 256, 12):
        before = store.tokenizer.decode(example.tokens[: example.answer_start].tolist())
        scored = store.tokenizer.decode(example.tokens[example.answer_start : example.answer_stop].tolist())
        assert before.endswith(QUESTION)
        assert f" {example.text}\n".startswith(scored.rstrip("\ufffd"))
        assert example.answer_stop - example.answer_start == min(SCORED_TOKENS, 256 - example.answer_start)


def test_passkeys_lie_at_every_depth_of_the_same_texts(store):
    for length in (128, 256, 1024):
        keys, sentences = (
            passkey_examples(store, length, 8, max_length=1024),
            retrieval_examples(store, length, 8, max_length=1024),
        )
        depths = []
        for key, sentence in zip(keys, sentences, strict=True):
            assert key.tokens.shape == (length,)
            decoded = store.tokenizer.decode(key.tokens.tolist())
            assert (
                re.fullmatch("[1-9][0-9]{4}", key.text) and decoded.count(key.text) == 3
            )  # twice in the text, once as the answer
            assert decoded.endswith(f"{PASSKEY_QUESTION} {key.text}")
            assert store.tokenizer.decode(key.tokens[key.answer_start : key.answer_stop].tolist()) == f" {key.text}"
            before, hidden, after = decoded.partition(PASSKEY.format(key=key.text))
            assert hidden and sentence.text[:20].startswith(before[:20])
            depths.append(len(before) / (len(before) + len(after)))
        assert len({key.text for key in keys}) == 8
        assert depths[0] < 0.2 and depths[-1] > 0.6 and depths == sorted(depths)


def test_errors(store):
    with pytest.raises(UserError, match="at least 128 tokens, not 64"):
        retrieval_examples(store, 64, 4)
    with pytest.raises(UserError, match="length of 512 exceeds the longest one, 256"):
        retrieval_examples(store, 512, 4, max_length=256)
    with pytest.raises(UserError, match="No validation document .* more than 1000000 tokens"):
        retrieval_examples(store, 1_000_000, 4)
    with pytest.raises(UserError, match="No train document"):
        RetrievalDocuments(store, 1_000_000, 0)
