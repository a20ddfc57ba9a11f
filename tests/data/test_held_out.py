from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_long.config import UserError
from lit_long.data.datamodule import LongContextDataModule
from lit_long.data.held_out import held_out_sequences


@pytest.mark.parametrize("domain", ["code", "docs"])
def test_every_length_sees_the_same_tokens(store, domain):
    batches = {length: held_out_sequences(store, domain, length, 5, 1024) for length in (128, 512, 1024)}
    for length, batch in batches.items():
        assert batch.tokens.shape == (5 * 1024 // length, length)
        for name in ("tokens", "targets"):
            assert torch.equal(getattr(batch, name).reshape(5, 1024), getattr(batches[1024], name))
        assert batch.loss_tokens() == 5 * 1024
        assert (batch.positions == torch.arange(length)).all() and (batch.document_ids == 0).all()


def test_sequences_are_the_starts_of_different_validation_documents(store):
    batch = held_out_sequences(store, "code", 1024, 5, 1024)
    documents = store.documents("code", "validation")
    starts = {tuple(documents[i][:1025].tolist()) for i in range(len(documents))}
    windows = {(*tokens.tolist(), int(targets[-1])) for tokens, targets in zip(batch.tokens, batch.targets)}
    assert len(windows) == 5 and windows <= starts
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])


def test_skipped_documents(store):
    every, rest = held_out_sequences(store, "code", 512, 5, 1024), held_out_sequences(store, "code", 512, 2, 1024, skip=3)
    assert torch.equal(rest.tokens, every.tokens[6:])
    count = int((store.documents("code", "validation").lengths > 1024).sum())
    assert len(held_out_sequences(store, "code", 1024, 5, 1024, skip=count - 1).tokens) == 1
    with pytest.raises(
        UserError, match=rf"Of the {count} held-out documents of domain 'code' that fit, skip={count} leaves none"
    ):
        held_out_sequences(store, "code", 1024, 5, 1024, skip=count)


def test_fewer_documents_than_asked_for(store):
    lengths = store.documents("docs", "validation").lengths
    length = int(sorted(lengths)[len(lengths) // 2])  # a document of exactly this length lacks the last target
    assert len(held_out_sequences(store, "docs", length, 10_000, length).tokens) == (lengths > length).sum()


def test_errors(store):
    with pytest.raises(UserError, match=r"length of 300 does not divide .* 1024"):
        held_out_sequences(store, "docs", 300, 4, 1024)
    with pytest.raises(UserError, match=r"No held-out document of domain 'docs' has 1048577 tokens"):
        held_out_sequences(store, "docs", 1024, 4, 2**20)
    training = LongContextDataModule(store, weights={"docs": 1.0}, context=2**20, tokens_per_update=2**20, updates=1)
    with pytest.raises(UserError, match=r"1048577 tokens.* Change the context.*data\.corpus\.validation.*validation\.times=0"):
        training.check_validation()


def test_evaluation_need_not_import_lightning():
    script = "import sys, lit_long.data.held_out, lit_long.data.synthetic; assert 'torch' in sys.modules and 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
