"""Documents that are masked do not see one another, however they are packed: one is changed, and no other may feel it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_long.batch import NO_LOSS, PADDING, Batch
from lit_long.data.packing import PackedDocuments
from tests.data.memory import MemoryStore
from tests.model.test_llama import SMALL, small

NAMES = ("tokens", "targets", "document_ids", "positions")
CONTEXT = 32


@pytest.fixture(scope="module")
def model():
    """Attention of an untrained model is nearly flat; this one's is not."""
    made = small()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5.0)
    return made


def documents_of(lengths, seed):
    random = np.random.default_rng(seed)
    return [np.concatenate([[0], random.integers(1, SMALL.vocab_size, length - 1)]) for length in lengths]


def losses(model, documents, packing, mask_documents):
    """(batch, nats [B, T], document [B, T]) of an epoch; the document is -1 in padding."""
    source = PackedDocuments(MemoryStore(d=documents), "d", CONTEXT, 1, mask_documents, packing)
    epoch = source.sampler.epoch(0)
    count = source.packing.count(epoch)
    batch = Batch(*(torch.from_numpy(np.stack([source[i][name] for i in range(count)])) for name in NAMES), mask_documents)
    owner = torch.full_like(batch.tokens, -1)
    for i in range(count):
        at = 0
        for piece in source.packing.pieces(epoch, i):
            owner[i, at : at + piece.stop - piece.start] = piece.document
            at += piece.stop - piece.start
    nats, _ = model(batch, per_token=True)
    return batch, nats, owner


def changed(documents, number):
    """The same documents, the tokens of one of them others."""
    other = list(documents)
    other[number] = np.concatenate([[0], 1 + (documents[number][1:] + 11) % (SMALL.vocab_size - 1)])
    return other


@pytest.mark.parametrize("packing", ["concat", "best_fit", "single"])
@settings(max_examples=2, deadline=None)
@given(lengths=st.lists(st.integers(2, 75), min_size=4, max_size=6), seed=st.integers(0, 99))
def test_a_masked_document_feels_no_other(model, packing, lengths, seed):
    """Documents that are split, padded, and both; of a split one, each part is a document to attention."""
    documents = documents_of(lengths, seed)
    if packing == "concat" and sum(lengths) <= CONTEXT:
        return
    _, before, owner = losses(model, documents, packing, True)
    for number in range(3):
        batch, after, _ = losses(model, changed(documents, number), packing, True)
        others = (owner != number) & (owner != -1)
        torch.testing.assert_close(after[others], before[others], rtol=0, atol=1e-5)
        assert (after[batch.targets == NO_LOSS] == 0).all()
        if (owner == number).any() and lengths[number] > 2:
            assert not torch.allclose(after[owner == number], before[owner == number])


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_a_document_that_is_not_masked_feels_those_before_it(model, packing):
    documents = documents_of([20, 9, 50, 14, 30, 8], 0)
    _, before, owner = losses(model, documents, packing, False)
    felt = []
    for number in range(len(documents)):
        _, after, _ = losses(model, changed(documents, number), packing, False)
        others = (owner != number) & (owner != -1)
        felt.append(float((after[others] - before[others]).abs().max()))
    assert sum(change > 1e-2 for change in felt) >= 2, felt  # those that are not the last of their sequence


@pytest.mark.parametrize("mask_documents", [True, False])
@pytest.mark.parametrize("packing", ["best_fit", "single"])
def test_what_stands_in_padding_is_felt_by_nobody(model, packing, mask_documents):
    documents = documents_of([20, 9, 50, 14, 33, 8], 0)
    batch, before, owner = losses(model, documents, packing, mask_documents)
    padding = batch.document_ids == PADDING
    assert padding.any() and torch.equal(padding, owner == -1) and torch.equal(padding, batch.targets == NO_LOSS)
    filled = batch._replace(tokens=torch.where(padding, 77, batch.tokens))
    after, _ = model(filled, per_token=True)
    assert torch.equal(after[~padding], before[~padding]) and (after[padding] == 0).all()


@pytest.mark.parametrize("mask_documents", [True, False])
def test_a_document_alone_is_as_good_as_packed(model, mask_documents):
    """Masked, the losses of a document that lies whole in a sequence are those of the document with nothing around it."""
    documents = documents_of([20, 9, 50, 14, 33, 8], 3)
    _, nats, owner = losses(model, documents, "best_fit", mask_documents)
    same = []
    for number in (0, 1, 3, 5):
        tokens = torch.from_numpy(documents[number])[None]
        targets = torch.cat([tokens[:, 1:], torch.zeros(1, 1, dtype=torch.int64)], dim=1)
        alone, _ = model(Batch(tokens, targets, torch.zeros_like(tokens), torch.arange(tokens.shape[1])[None]), per_token=True)
        same.append(torch.allclose(nats[owner == number], alone[0], atol=1e-4))
    assert all(same) if mask_documents else not all(same)
