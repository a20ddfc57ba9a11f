from __future__ import annotations

from collections import Counter
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lit_long.batch import NO_LOSS, PADDING
from lit_long.config import UserError
from lit_long.data import sampling as sampling_file
from lit_long.data.packing import PackedDocuments
from lit_long.data.sampling import permutation
from tests.data.memory import SEPARATOR, MemoryStore, numbered, origins

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


# ------------------------------------------------------------- documents in memory, and slow recounts of all of it


def epoch_of(source, number=0):
    """All sequences of an epoch. Where it begins is counted from the epochs before it."""
    counts = [source.packing.count(source.sampler.epoch(i)) for i in range(number + 1)]
    return [source[i] for i in range(sum(counts[:-1]), sum(counts))]


def recount(sequence, documents, context, mask_documents, packing):
    """(document, place) of each token of a sequence, everything else in it compared with what a look at the tokens says."""
    known, found = origins(documents), []
    held = int((sequence["document_ids"] != PADDING).sum())
    number, start = -1, 0
    for at in range(held):
        document, place = known[int(sequence["tokens"][at])]
        if not found or found[-1] != (document, place - 1):
            number, start = number + 1, at
        found.append((document, place))
        last = place == len(documents[document]) - 1
        assert sequence["targets"][at] == (SEPARATOR if last else documents[document][place + 1])
        assert sequence["document_ids"][at] == number
        assert sequence["positions"][at] == (at - start if mask_documents else at)
    for name, filling in (("targets", NO_LOSS), ("document_ids", PADDING), ("tokens", SEPARATOR)):
        assert sequence[name].shape == (context,) and (sequence[name][held:] == filling).all()
    begin = {document for document, place in found if place == 0}
    here = Counter(document for document, _ in found)
    missing = {document: len(documents[document]) - here[document] for document in begin}
    cropped = sum(missing.values()) if packing == "single" else 0
    assert sequence["account"].tolist() == [held, len(begin), sum(count > 0 for count in missing.values()), cropped]
    return found


LENGTHS = st.lists(st.one_of(st.integers(1, 12), st.integers(1, 70)), min_size=1, max_size=40)


@settings(max_examples=80, deadline=None)
@given(
    lengths=LENGTHS,
    packing=st.sampled_from(["concat", "best_fit", "single"]),
    context=st.integers(1, 24),
    seed=st.integers(0, 999),
    mask_documents=st.booleans(),
    block=st.sampled_from([1, 3, 7, 4096]),
    number=st.integers(0, 2),
)
def test_every_token_once_and_everything_about_it(lengths, packing, context, seed, mask_documents, block, number):
    assume(packing != "concat" or sum(lengths) > context)
    documents = numbered(lengths)
    with patch.object(sampling_file, "BLOCK", block):
        source = PackedDocuments(MemoryStore(d=documents), "d", context, seed, mask_documents, packing)
        sequences = epoch_of(source, number)
        told = source.packing.utilisation(source.sampler.epoch(number)), source.packing.tokens(source.sampler.epoch(number))
    found = [recount(sequence, documents, context, mask_documents, packing) for sequence in sequences]
    read = Counter(place for places in found for place in places)
    assert set(read.values()) == {1}
    whole = {(i, place) for i, length in enumerate(lengths) for place in range(length)}
    missing = whole - set(read)
    if packing == "concat":
        assert 1 <= len(missing) <= context  # what the epoch's end leaves
    elif packing == "best_fit":
        assert not missing
        assert len(sequences) * context - len(read) < context * -(-len(lengths) // block)
    else:
        assert missing == {(i, place) for i, place in whole if place >= context}
        assert sum(sequence["account"][3] for sequence in sequences) == len(missing)
        assert len(sequences) == len(lengths)
    assert told == (len(read) / (len(sequences) * context), len(read))


def slow_best_fit(lengths, context):
    """Number of pieces, and the room that each sequence is left with, of one block."""
    count = -(-sum(lengths) // context)
    rooms = [0] * sum(length // context for length in lengths)
    pieces, late = len(rooms), []
    for size in sorted((length % context for length in lengths if length % context), reverse=True):
        fitting = [room for room in rooms if room >= size]
        if not fitting and len(rooms) == count:
            late.append(size)
            continue
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else context) - size)
        pieces += 1
    for size in late:
        while size:
            room = max(rooms)
            rooms.remove(room)
            rooms.append(max(0, room - size))
            size, pieces = size - min(room, size), pieces + 1
    return pieces, sorted(rooms)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, context=st.integers(1, 24), seed=st.integers(0, 99))
def test_best_fit_is_the_slow_one(lengths, context, seed):
    source = PackedDocuments(MemoryStore(d=numbered(lengths)), "d", context, seed, True, "best_fit")
    sequences = epoch_of(source)
    pieces = sum(len(set(sequence["document_ids"].tolist()) - {PADDING}) for sequence in sequences)
    assert (pieces, sorted(context - int(s["account"][0]) for s in sequences)) == slow_best_fit(lengths, context)


def cut_needlessly(source, lengths, context):
    """Documents that would fit into a sequence and lie in two."""
    known, inside = origins(numbered(lengths)), Counter()
    for sequence in epoch_of(source):
        held = sequence["tokens"][: sequence["account"][0]]
        inside.update({known[token][0] for token in held.tolist()})
    return sum(count > 1 and lengths[document] <= context for document, count in inside.items())


def test_best_fit_cuts_few_of_the_documents_that_fit():
    context = 128
    lengths = np.random.default_rng(0).lognormal(3.7, 0.9, 600).astype(int) + 1
    packed = {
        packing: PackedDocuments(MemoryStore(d=numbered(lengths)), "d", context, 1, True, packing)
        for packing in ("concat", "best_fit")
    }
    cut = {packing: cut_needlessly(source, lengths, context) for packing, source in packed.items()}
    assert cut["best_fit"] <= 6 and cut["concat"] > 150, cut


def test_best_fit_does_not_hand_out_the_longest_first():
    """Sequences of a block come in a random order, or the curriculum would go from long documents to short ones."""
    lengths = [10] * 400 + [640] * 10
    sequences = epoch_of(PackedDocuments(MemoryStore(d=numbered(lengths)), "d", 64, 1, True, "best_fit"))
    long = [i for i, sequence in enumerate(sequences) if (sequence["tokens"] > 4000).all()]
    assert len(long) == 100 and 0.4 < np.mean(long) / len(sequences) < 0.6
    again = epoch_of(PackedDocuments(MemoryStore(d=numbered(lengths)), "d", 64, 1, True, "best_fit"), 1)
    assert [s["tokens"].tolist() for s in sequences] != [s["tokens"].tolist() for s in again]


def test_real_documents_single(store):
    """A real store, where each document begins with the separator."""
    source = PackedDocuments(store, "docs", 100, 3, True, "single")
    documents = store.documents("docs", "train")
    sequences = epoch_of(source)
    assert len(sequences) == len(documents)
    assert sorted(s["tokens"][: s["account"][0]].tolist() for s in sequences) == sorted(
        documents[i][:100].tolist() for i in range(len(documents))
    )
