"""A borrowed tokenizer that is no longer the one that wrote the tokens, and what it means for the data and for who reads them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lit_long.config import CorpusConfig, DataConfig, SourceConfig, StageConfig, UserError
from lit_long.data.prepare import prepare
from lit_long.data.token_store import model_tokenizer, open_store
from lit_long.data.tokenizer import borrow_tokenizer, borrowed_digest, train_tokenizer
from lit_long.stages.identity import identity_settings
from tests.data.own import TEXTS, all_texts, write_jsonl
from tests.pretrained.llamas import random_llama, save


def forget():
    """What the next command would find: a process sees one version of a tokenizer."""
    borrow_tokenizer.cache_clear()
    borrowed_digest.cache_clear()


def put_tokenizer(folder, vocab_size):
    train_tokenizer(TEXTS, vocab_size).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}')
    forget()


@pytest.fixture
def lender(tmp_path):
    folder = save(random_llama(vocab=320), tmp_path / "lender")
    put_tokenizer(folder, 300)
    yield folder
    forget()


@pytest.fixture
def corpus(lender):
    return CorpusConfig(tokenizer=str(lender))


@pytest.fixture
def sources(tmp_path):
    return {"mine": SourceConfig(path=str(write_jsonl(tmp_path / "in.jsonl")))}


def test_a_changed_one_is_refused_and_the_next_store_has_it(lender, corpus, sources, tmp_path):
    prepare(corpus, tmp_path / "store", sources=sources, builtin=False, processes=1)
    store = open_store(tmp_path / "store")
    words = model_tokenizer(store, corpus)
    assert words.decode(words.encode(TEXTS[3])) == TEXTS[3]
    data = DataConfig(corpus=corpus, sources=sources, weights={"mine": 1.0})
    before = identity_settings(StageConfig(kind="data", data=data))
    original = (lender / "tokenizer.json").read_bytes()

    put_tokenizer(lender, 310)
    with pytest.raises(UserError) as refused:
        model_tokenizer(store, corpus)
    for said in (f"data.corpus.tokenizer={lender}", str(store.folder), "Put it back, or prepare the data again"):
        assert said in str(refused.value)
    assert identity_settings(StageConfig(kind="data", data=data)) != before  # so that the same command makes a store of its own
    assert open_store(store.folder).tokenizer.get_vocab_size() == 300  # the old one can still be read

    (lender / "tokenizer.json").write_bytes(original)
    forget()
    assert model_tokenizer(store, corpus).encode(TEXTS[3]) == words.encode(TEXTS[3])


def test_preparing_again_writes_every_shard_with_the_new_one(lender, corpus, sources, tmp_path):
    prepare(corpus, tmp_path / "store", sources=sources, builtin=False, processes=1)
    put_tokenizer(lender, 310)
    prepare(corpus, tmp_path / "store", sources=sources, builtin=False, processes=1)
    store = open_store(tmp_path / "store")
    assert store.tokenizer.get_vocab_size() == 310 and all_texts(store) == sorted(TEXTS)
    assert model_tokenizer(store, replace(corpus)).tokenizer.get_vocab_size() == 310
