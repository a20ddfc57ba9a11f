from __future__ import annotations

import re

import numpy as np
import pytest

from lit_long.config import UserError
from lit_long.data.curriculum import Phase
from lit_long.data.mixture import Recipe, make_mixtures
from lit_long.data.synthetic import (
    PASSKEY,
    PASSKEY_QUESTION,
    QUESTION,
    SCORED_TOKENS,
    SPAN,
    CopyDocuments,
    RetrievalDocuments,
    first_sentence,
    passkey_examples,
    retrieval_examples,
)
from lit_long.data.tokenizer import SEPARATOR
from tests.data.own import store_of


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


def test_short_examples_in_long_sequences(store):
    source, lengths = RetrievalDocuments(store, 1024, seed=1, max_tokens=200), []
    for i in range(20):
        found = documents(source[i], store.separator)
        assert len(source[i]["tokens"]) == 1024 and len(found) >= 5
        for tokens in found[:-1]:
            check(store, tokens)
            lengths.append(len(tokens))
    assert min(lengths) < 140 and 190 < max(lengths) <= 200
    whole_context = RetrievalDocuments(store, 255, 1, max_tokens=4096)[0]["tokens"]  # never longer than the context
    np.testing.assert_array_equal(whole_context, RetrievalDocuments(store, 255, 1)[0]["tokens"])


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


@pytest.mark.parametrize("make", [retrieval_examples, passkey_examples])
def test_skipped_examples(store, make):
    every, rest = make(store, 256, 12), make(store, 256, 8, skip=4)
    place = (
        (lambda one: one.text) if make is retrieval_examples else (lambda one: store.tokenizer.decode(one.tokens[1:20].tolist()))
    )
    assert [place(one)[:20] for one in rest] == [place(one)[:20] for one in every[4:]]


def test_no_examples_behind_those_skipped(tmp_path):
    for name in ("a", "b"):  # one of them is held out
        words = " ".join(f"word{i}" for i in range(400))
        (tmp_path / f"{name}.txt").write_text(f"{words}\n\nThe only sentence of text {name}.\n{words}\n", encoding="utf-8")
    store = store_of(tmp_path / "store", tmp_path, validation_share=0.5)
    assert len(retrieval_examples(store, 128, 4, domain="mine")) == 1
    with pytest.raises(UserError, match="have 1 sentences to retrieve; skip=1 leaves none"):
        retrieval_examples(store, 128, 4, domain="mine", skip=1)


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


def whole(sequence):
    """The tokens [T + 1] of a sequence."""
    np.testing.assert_array_equal(sequence["tokens"][1:], sequence["targets"][:-1])
    return np.append(sequence["tokens"], sequence["targets"][-1])


def spans_of(tokens):
    """(start, size, start of the copy) of the spans that the first half is cut into: the longest ones that come again, from the left."""
    half = len(tokens) // 2
    found, at = [], 1
    later = tokens[half:].tolist()
    while at < half:
        for size in reversed(SPAN):
            span = tokens[at : at + size].tolist()
            starts = [i for i in range(len(later) - size + 1) if later[i : i + size] == span]
            if starts:
                found.append((at, size, half + starts[0]))
                break
        else:
            return found
        at += found[-1][1]
    return found


@pytest.mark.parametrize("context", [64, 255, 1024])
def test_spans_come_again_in_another_order(store, context):
    source = CopyDocuments(store, context, seed=1)
    training = store.documents("docs", "train").tokens.tolist()
    text = " ".join(map(str, training)) + " "
    distances, of_one = set(), []
    for i in range(20):
        tokens = whole(source[i])
        assert len(tokens) == context + 1 and tokens[0] == store.separator
        assert source[i]["account"].tolist() == [context, 1, 0, 0] and (source[i]["targets"] >= 0).all()
        first = tokens[1 : 1 + min(SPAN)]
        assert " ".join(map(str, first.tolist())) + " " in text
        of_one.append({again - at for at, _, again in spans_of(tokens)})
        distances |= of_one[-1]
    assert len(distances) > 10  # a head that looks a fixed distance back does not solve it
    assert context < 1024 or np.mean([len(each) for each in of_one]) > 6  # not even within a sequence


def test_most_of_the_second_half_is_in_the_first(store):
    copied = []
    for i in range(20):
        tokens = whole(CopyDocuments(store, 512, seed=3)[i])
        half = len(tokens) // 2
        pairs = set(zip(tokens[:half].tolist(), tokens[1 : half + 1].tolist(), strict=True))
        copied.append(
            np.mean([pair in pairs for pair in zip(tokens[half + 20 : -1].tolist(), tokens[half + 21 :].tolist(), strict=True)])
        )
    assert np.mean(copied) > 0.85  # where a span ends, another follows


def test_sequences_are_functions_of_seed_and_index(store):
    source = CopyDocuments(store, 128, seed=1)
    np.testing.assert_array_equal(source[7]["tokens"], CopyDocuments(store, 128, seed=1)[7]["tokens"])
    assert not np.array_equal(source[7]["tokens"], source[8]["tokens"])
    assert not np.array_equal(source[7]["tokens"], CopyDocuments(store, 128, seed=2)[7]["tokens"])
    source.first = 5
    np.testing.assert_array_equal(source[2]["tokens"], CopyDocuments(store, 128, seed=1)[7]["tokens"])


def test_it_is_a_domain_of_the_mixture(store):
    (mixture,) = make_mixtures(store, Recipe({"docs": 0.5, "copying": 0.5}), [Phase(0, 4, 128)], 1024)
    assert isinstance(mixture.sources["copying"], CopyDocuments)
    with pytest.raises(UserError, match=r"data\.repeats\.copying: there is no pass over"):
        mixture.tokens_per_epoch("copying")
