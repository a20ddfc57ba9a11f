"""Tokenizers in GGUF files: SmolLM2's, and small ones of every kind that survive being written."""

from __future__ import annotations

import json

import pytest
from gguf import GGUFWriter
from tokenizers import AddedToken, Tokenizer, models
from transformers import AutoTokenizer

from lit_long.config import UserError
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.gguf import Header
from lit_long.tokenizers import gguf
from tests.pretrained.gguf_files import write
from tests.pretrained.llamas import random_llama
from tests.tokenizers.texts import CHAT, CUTS, SENTENCEPIECE, TEXTS, spm_pieces, trained


@pytest.fixture(scope="module")
def words(smollm2):
    return smollm2.tokenizer()


@pytest.fixture(scope="module")
def theirs(smollm2):
    return AutoTokenizer.from_pretrained(smollm2.path.parent, gguf_file=smollm2.path.name)


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_ids_equal_transformers(words, theirs, text):
    assert words.encode(text) == theirs(text)["input_ids"]
    assert words.decode(words.encode(text)) == text


@pytest.mark.parametrize("text", [*TEXTS, "  42", "Ⅻ ½ ²³ ٣", "\n1\n\n 2   3"])
def test_smollm2_ids_equal_its_own_tokenizer(smollm2, words, text):
    """The published tokenizer.json takes digits, of any script, apart one by one, then GPT-2's words. transformers' reading of the
    GGUF file does not know that, and takes the first byte of ½ for a part of the word with the space before it."""
    header = smollm2.source.header
    vocabulary = {token: number for number, token in enumerate(header.array("tokenizer.ggml.tokens"))}
    published = Tokenizer(models.BPE(vocabulary, [tuple(pair.split(" ")) for pair in header.array("tokenizer.ggml.merges")]))
    published.pre_tokenizer = CUTS["smollm"]
    assert words.encode(text) == published.encode(text).ids
    assert words.decode(words.encode(text)) == text


def test_smollm2_special_tokens(words):
    assert (words.bos, words.eos, words.add_bos, words.separator) == (1, (2,), False, 0)
    assert words.special["bos_token"] == "<|im_start|>" and words.special["eos_token"] == "<|im_end|>"
    assert words.encode("<|im_start|>user\n")[0] == 1
    assert words.decode([1, *words.encode("hello"), 2]) == "hello"


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_smollm2_chat_equals_transformers(words, theirs, prompt, system):
    expected = theirs.apply_chat_template(system + CHAT, tokenize=False, add_generation_prompt=prompt)
    assert words.chat(system + CHAT, add_generation_prompt=prompt) == expected


def byte_level_gguf(tokenizer, pre, **settings):
    """A function that writes a byte-level tokenizer as llama.cpp's converter does."""

    def write_words(writer: GGUFWriter):
        content = json.loads(tokenizer.to_str())
        special = {token["id"]: 3 if token["special"] else 4 for token in content["added_tokens"]}
        tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
        writer.add_tokenizer_model("gpt2")
        if pre:
            writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([special.get(number, 1) for number in range(len(tokens))])
        writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
        for name, value in settings.items():
            getattr(writer, f"add_{name}")(value)

    return write_words


def from_gguf(tmp_path, write_words, vocab=600):
    return open_pretrained(str(write(random_llama(vocab=vocab), tmp_path / "x.gguf", words=write_words))).tokenizer()


@pytest.mark.parametrize("pre", CUTS)
def test_byte_level_survives_gguf(tmp_path, pre):
    """The ids of the tokenizer that was written, on every text."""
    tokenizer = trained(pre)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    found = from_gguf(tmp_path, byte_level_gguf(tokenizer, pre))
    for text in [*TEXTS, "<|endoftext|>a<think> b", "there 1999"]:
        assert found.encode(text) == tokenizer.encode(text).ids, text
    assert found.decode(found.encode("<|endoftext|>a<think> b")) == "a<think> b"
    assert (found.bos, found.eos, found.separator, found.add_bos) == (None, (), 0, False)


def test_llama3_takes_words_that_are_tokens_whole(tmp_path):
    """Though no merges lead there."""
    content = json.loads(trained("llama-bpe").to_str())
    content["model"]["vocab"]["Ġzebra"] = len(content["model"]["vocab"])
    tokenizer = Tokenizer.from_str(json.dumps(content))
    found = from_gguf(tmp_path, byte_level_gguf(tokenizer, "llama-bpe"))
    assert found.encode("the zebra") == tokenizer.encode("the zebra").ids
    assert found.encode("the zebra")[-1] == tokenizer.get_vocab_size() - 1


def test_ids_of_a_gguf(tmp_path):
    """Ends of turns and messages end a generation too; Llama 3's texts begin with bos, as its vocabulary's name implies."""
    tokenizer = trained("llama-bpe", ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"))
    ids = {"bos_token_id": 0, "eos_token_id": 1, "eot_token_id": 2, "eom_token_id": 3}
    found = from_gguf(tmp_path, byte_level_gguf(tokenizer, "llama-bpe", **ids))
    assert (found.bos, found.eos, found.add_bos, found.separator) == (0, (1, 2, 3), True, 0)
    assert found.encode("a") == [0, *tokenizer.encode("a").ids]
    assert found.encode("<|begin_of_text|>a") == found.encode("a")  # a chat template that writes it does not double it
    assert not from_gguf(tmp_path, byte_level_gguf(tokenizer, "llama-bpe", **ids, add_bos_token=False)).add_bos


def test_default_words(tmp_path):
    """A file that does not name its words is of the oldest kind: punctuation apart, digits by three."""
    found = from_gguf(tmp_path, byte_level_gguf(trained("gpt-2"), None))
    pieces = [piece.replace("Ġ", " ") for piece, _ in found.tokenizer.pre_tokenizer.pre_tokenize_str("It's 12345 (a+b)  c")]
    assert pieces == ["It", "'", "s", " ", "123", "45", " ", "(", "a", "+", "b", ")", " ", " c"]


def spm_gguf(ids=True, **settings):
    def write_words(writer: GGUFWriter):
        texts, scores, kinds = zip(*spm_pieces())
        writer.add_tokenizer_model("llama")
        writer.add_token_list(list(texts))
        writer.add_token_scores(list(scores))
        writer.add_token_types(list(kinds))
        if ids:
            writer.add_bos_token_id(1)
            writer.add_eos_token_id(2)
        for name, value in settings.items():
            getattr(writer, f"add_{name}")(value)

    return write_words


def test_sentencepiece_in_gguf(tmp_path):
    found = from_gguf(tmp_path, spm_gguf())
    for text, ids in SENTENCEPIECE.items():
        assert found.encode(text) == [1, *ids], text
        assert found.decode([1, *ids]) == text
    assert (found.bos, found.eos, found.add_bos, found.separator) == (1, (2,), True, 1)
    bare = from_gguf(tmp_path, spm_gguf(add_space_prefix=False, add_bos_token=False))
    assert bare.encode(" the") == SENTENCEPIECE["    the"][-1:]
    assert bare.encode("the<|chat|>")[-1] == len(spm_pieces()) - 1


def test_sentencepiece_without_ids(tmp_path):
    """llama.cpp takes 1 and 2 there."""
    found = from_gguf(tmp_path, spm_gguf(ids=False))
    assert (found.bos, found.eos, found.add_bos, found.separator) == (1, (2,), True, 1)


def test_sentencepiece_in_gguf_equals_transformers(tmp_path):
    file = write(random_llama(vocab=600), tmp_path / "x.gguf", words=spm_gguf())
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    found = open_pretrained(str(file)).tokenizer()
    for text in ("the there", "here", "Zürich, 你", "\tt\nhe", "therethere ther"):  # it takes spaces at the start as the prefix
        assert found.encode(text)[1:] == theirs(text, add_special_tokens=False)["input_ids"], text


@pytest.mark.parametrize(
    ("write_words", "words"),
    [
        (None, "tokenizer.ggml.tokens is missing"),
        (byte_level_gguf(trained("gpt-2"), "qwen9"), "tokenizer.ggml.pre=qwen9"),
        (byte_level_gguf(trained("gpt-2"), "gpt-2", bos_token_id=9999), "bos_token_id=9999 is beyond its"),
        (lambda writer: (writer.add_tokenizer_model("bert"), writer.add_token_list(["a"])), "tokenizer.ggml.model=bert"),
        (lambda writer: (writer.add_tokenizer_model("gpt2"), writer.add_token_list(["a"])), "tokenizer.ggml.merges is missing"),
        (lambda writer: (writer.add_tokenizer_model("llama"), writer.add_token_list(["a"])), "tokenizer.ggml.scores is missing"),
        (byte_level_gguf(trained("gpt-2"), "gpt-2", token_merges=["q zz"]), "do not fit"),
    ],
)
def test_gguf_tokenizers_that_cannot_be_read(tmp_path, write_words, words):
    file = write(random_llama(vocab=600), tmp_path / "x.gguf", words=write_words)
    with pytest.raises(UserError) as caught:
        gguf.read_tokenizer(Header(file), 600)
    assert words in str(caught.value) and str(file) in str(caught.value)
