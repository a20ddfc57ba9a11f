"""A tokenizer.json keeps truncation, padding and dropout of the program that saved it, and tokens added after the embeddings."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import lit_long
from lit_long.config import CorpusConfig, InstructConfig, SourceConfig, UserError
from lit_long.data.prepare import prepare
from lit_long.data.token_store import model_tokenizer, open_store
from lit_long.data.tokenizer import borrowed_digest
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.in_memory_corpus import InMemoryCorpus
from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.export import write_tokenizer
from tests.data.own import write_jsonl

BASE = Path(lit_long.__file__).parents[1] / "experiments" / "bases" / "mini-s0"
# As in the public report's case: 20 documents of 521 to 2,000 tokens.
DOCUMENTS = [
    " ".join(f"Line {i} number {j} of a made up text about river {i * j % 17}." for j in range(20 + 5 * i)) for i in range(20)
]
TOKENS = 21_292  # what the same file without state makes of them, separators included
STATES = {
    "truncation": lambda tokenizer: tokenizer.enable_truncation(128),
    "padding": lambda tokenizer: tokenizer.enable_padding(pad_id=0, pad_token="<|endoftext|>"),
    "both": lambda tokenizer: (tokenizer.enable_truncation(128, stride=4), tokenizer.enable_padding(length=128)),
    "dropout": lambda tokenizer: setattr(tokenizer.model, "dropout", 0.5),
}


@pytest.fixture
def folder(tmp_path):
    """A copy of a shipped base, for its tokenizer to be changed."""
    shutil.copytree(BASE, tmp_path / "model", copy_function=shutil.copy)
    (tmp_path / "model" / "tokenizer.json").chmod(0o644)
    return tmp_path / "model"


def change(folder, how):
    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    how(tokenizer)
    tokenizer.save(str(file))


@pytest.mark.parametrize("state", STATES)
def test_a_saved_state_is_switched_off_wherever_the_tokenizer_is_used(folder, tmp_path, state):
    plain = open_pretrained(str(BASE)).tokenizer()
    (tmp_path / "out").mkdir()
    change(folder, STATES[state])
    sources = {"mine": SourceConfig(path=str(write_jsonl(tmp_path / "in.jsonl", DOCUMENTS)), validation_share=0)}
    corpus = CorpusConfig(tokenizer=str(folder))
    manifest = prepare(corpus, tmp_path / "store", sources=sources, builtin=False, processes=1)
    assert manifest["domains"]["mine"]["train"]["tokens"] == TOKENS
    store = open_store(tmp_path / "store")
    for words in (open_pretrained(str(folder)).tokenizer(), model_tokenizer(store, corpus)):
        assert [words.encode(text) for text in DOCUMENTS] == [plain.encode(text) for text in DOCUMENTS]
        assert words.batch(DOCUMENTS) == [plain.pieces(text) for text in DOCUMENTS]
        pages = InMemoryCorpus(words, {"text": DOCUMENTS}).documents("text")
        assert sum(pages.lengths) == TOKENS
        write_tokenizer(tmp_path / "out", words, 256)
        for file in (tmp_path / "out" / "tokenizer.json", store.folder / "tokenizer.json"):
            kept = Tokenizer.from_file(str(file))  # as it is read by others
            assert [row.ids for row in kept.encode_batch(DOCUMENTS, add_special_tokens=False)] == plain.batch(DOCUMENTS)


def test_conversations_are_whole_too(folder, tmp_path):
    change(folder, STATES["both"])
    rows = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]} for text in DOCUMENTS]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    instruct = InstructConfig(schema="messages")
    for name, lender in (("changed", folder), ("plain", BASE)):
        sources = {"mine": SourceConfig(path=str(tmp_path / "in.jsonl"), validation_share=0, instruct=instruct)}
        prepare(CorpusConfig(tokenizer=str(lender)), tmp_path / name, sources=sources, builtin=False, processes=1)
    changed, plain = (open_store(tmp_path / name).documents("mine", "train") for name in ("changed", "plain"))
    for place in range(len(DOCUMENTS)):
        assert np.array_equal(changed[place], plain[place]) and np.array_equal(changed.answers(place), plain.answers(place))


def test_identities_of_tokenizers_without_state_stay(folder):
    """The shipped base's, from before; a dropout of 0 drops nothing and is part of the content."""
    assert borrowed_digest(str(BASE)) == DIGEST
    change(folder, lambda tokenizer: setattr(tokenizer.model, "dropout", 0.0))
    assert borrowed_digest(str(folder)) != DIGEST
    (folder / "again").mkdir()
    write_tokenizer(folder / "again", open_pretrained(str(folder)).tokenizer(), 256)
    assert (folder / "again" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


DIGEST = "e9cb7fa177f625ee454fa3452a1df82474e9a89933acc51c87c7386012a01d0c"


def test_one_place_reads_them():
    for file in Path(lit_long.__file__).parent.rglob("*.py"):
        if file.parent.name != "tokenizers" or file.name != "tokenizer.py":
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"\bTokenizer\.from_", text), file


PAD = "the token '\\[PAD\\]' \\(id 4,096\\), which was added to the tokenizer but has no embedding .*4,096 rows"


@pytest.mark.parametrize("special", [True, False])
def test_an_added_token_beyond_the_embeddings(folder, tmp_path, special):
    """It is taken; a text that uses it is refused, in every way that a text takes to a model."""
    change(folder, lambda tokenizer: (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(["[PAD]"]))
    pretrained = open_pretrained(str(folder))
    words, corpus = pretrained.tokenizer(), CorpusConfig(tokenizer=str(folder))
    plain = open_pretrained(str(BASE)).tokenizer()
    assert words.encode(DOCUMENTS[0]) == plain.encode(DOCUMENTS[0]) and words.separator == plain.separator
    evaluated = EvaluatedModel(Llama(pretrained.shape, build({"scheme": "rope"}, pretrained.shape.head_dim)), words, 256)
    for use in (
        words.encode,
        words.pieces,
        evaluated.encode,
        lambda text: InMemoryCorpus(words, {"text": [text]}).documents("text"),
    ):
        with pytest.raises(UserError, match=PAD) as refused:
            use("now [PAD] comes")
        assert str(folder) in str(refused.value)
    texts = [*DOCUMENTS, "now [PAD] comes"]
    sources = {"mine": SourceConfig(path=str(write_jsonl(tmp_path / "in.jsonl", texts)), validation_share=0)}
    if special:  # in a document the name of a special token is ordinary text
        prepare(corpus, tmp_path / "store", sources=sources, builtin=False, processes=1)
        store = open_store(tmp_path / "store").documents("mine", "train")
        assert max(int(store[place].max()) for place in range(len(texts))) < 4096
    else:
        with pytest.raises(UserError, match=PAD) as refused:
            prepare(corpus, tmp_path / "store", sources=sources, builtin=False, processes=1)
        assert "data.sources.mine (in.jsonl)" in str(refused.value)
