from __future__ import annotations

import numpy as np
import pytest

from lit_long.config import UserError
from lit_long.data.packing import PackedDocuments
from lit_long.data.shuffle import permutation

CONTEXT = 1000
NAMES = ("tokens", "targets", "document_ids", "positions")


@pytest.fixture(scope="module")
def source(store):
    return PackedDocuments(store, "docs", CONTEXT, seed=3, mask_documents=True)


def epoch_row(source, epoch):
    """All tokens that an epoch reads, in order."""
    count = source.sequences_per_epoch
    sequences = [source[epoch * count + i] for i in range(count)]
    return np.concatenate([*(sequence["tokens"] for sequence in sequences), sequences[-1]["targets"][-1:]])


def document_numbers(store, row):
    """Which documents a row of tokens is made of; the last one may be cut short, and is left out."""
    documents = store.documents("docs", "train")
    known = {documents[i].astype(np.int64).tobytes(): i for i in range(len(documents))}
    starts = np.flatnonzero(row == store.separator)
    assert starts[0] == 0
    return [known[piece.tobytes()] for piece in np.split(row, starts[1:])[:-1]]


def test_an_epoch_is_every_document_once_in_order(store, source):
    documents = store.documents("docs", "train")
    row = epoch_row(source, 0)
    numbers = document_numbers(store, row)
    assert len(set(numbers)) == len(numbers)
    missing = len(documents.tokens) - len(row)
    assert 0 <= missing < CONTEXT
    assert (
        len(row) - sum(documents.lengths[numbers]) + missing
        == documents.lengths[list(set(range(len(documents))) - set(numbers))].sum()
    )


def test_epochs_and_seeds_shuffle_anew(store, source):
    first, second = (document_numbers(store, epoch_row(source, epoch)) for epoch in (0, 1))
    other = document_numbers(store, epoch_row(PackedDocuments(store, "docs", CONTEXT, 4, True), 0))
    assert first[:10] != sorted(first[:10])
    assert first[:10] != second[:10] and first[:10] != other[:10]


def test_targets_are_the_next_tokens_without_a_gap(source):
    for i in range(source.sequences_per_epoch - 1):
        np.testing.assert_array_equal(source[i]["targets"][:-1], source[i]["tokens"][1:])
        assert source[i]["targets"][-1] == source[i + 1]["tokens"][0]


@pytest.mark.parametrize("mask_documents", [True, False])
def test_document_ids_and_positions(store, mask_documents):
    source = PackedDocuments(store, "docs", CONTEXT, 3, mask_documents)
    separator = store.separator
    for i in range(0, source.sequences_per_epoch, 5):
        sequence = source[i]
        opens = sequence["tokens"] == separator
        opens[0] = False  # a document that goes on from the sequence before
        np.testing.assert_array_equal(sequence["document_ids"], np.cumsum(opens))
        expected = np.arange(CONTEXT)
        if mask_documents:
            expected = expected - np.maximum.accumulate(np.where(opens, expected, 0))
        np.testing.assert_array_equal(sequence["positions"], expected)
        assert all(sequence[name].dtype == np.int64 and sequence[name].shape == (CONTEXT,) for name in NAMES)


def test_a_sequence_that_starts_with_a_document(store):
    source = PackedDocuments(store, "docs", 16, 3, mask_documents=True)
    sequences = [source[i] for i in range(source.sequences_per_epoch)]
    starts = [sequence for sequence in sequences if sequence["tokens"][0] == store.separator]
    assert len(starts) > 5
    assert all(sequence["document_ids"][0] == 0 and sequence["positions"][1] == 1 for sequence in starts)


def test_masking_changes_no_token_and_no_target(store, source):
    unmasked = PackedDocuments(store, "docs", CONTEXT, 3, mask_documents=False)
    for name in ("tokens", "targets"):
        np.testing.assert_array_equal(source[17][name], unmasked[17][name])


def test_a_sequence_does_not_depend_on_those_read_before(store, source):
    far = 7 * source.sequences_per_epoch + 5
    expected = source[far]["tokens"]
    fresh = PackedDocuments(store, "docs", CONTEXT, 3, True)
    np.testing.assert_array_equal(fresh[far]["tokens"], expected)


def test_the_order_is_the_same_forever():
    """Guards the stream against a change of numpy or of ours, which would change results without changing any
    identity."""
    assert permutation(8, 0, "code", 0).tolist() == [4, 2, 6, 7, 0, 1, 5, 3]


def test_a_context_longer_than_the_domain_is_an_error(store):
    with pytest.raises(UserError, match="context is 1000000000.*'docs'.*data.corpus.packages"):
        PackedDocuments(store, "docs", 10**9, 0, True)
