"""Text as it comes: whole characters, stop strings, ends; and texts on a terminal in order."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lit_long.config import ModelConfig, UserError
from lit_long.generate import InOrder
from lit_long.generation import Continuation, generate, generate_text
from lit_long.tokenizers.tokenizer import ModelTokenizer
from tests.generation.llamas import small

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="module")
def words() -> ModelTokenizer:
    """Every byte is a token, so that all but ASCII comes in pieces; 256 ends a text."""
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(ALPHABET)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return ModelTokenizer(tokenizer, bos=None, eos=(256,), add_bos=False, separator=256)


def spaced() -> ModelTokenizer:
    """A tokenizer like Llama 2's: ▁ for a space, and the decoder drops the very first one."""
    vocabulary = {"▁": 0, "▁a": 1, "a": 2, "▁b": 3, "<s>": 4}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "a")]))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<s>"])
    return ModelTokenizer(tokenizer, bos=4, eos=(), add_bos=True, separator=4)


def pieces(words, text, stop=(), prompt="So: "):
    continuation = Continuation(words, words.encode(prompt), stop)
    found = []
    for token in words.encode(text):
        found.append(continuation.add(token))
        if continuation.stopped:
            break
    found.append(continuation.end())
    assert "".join(found) == continuation.text
    return continuation.text, found


@pytest.mark.parametrize("text", ["plain", "naïve 🦙🦙", "日本\n語", " two  spaces ", "�", "a�b"])
def test_characters_come_whole(words, text):
    found, parts = pieces(words, text)
    assert found == text
    assert all(part == "" or part in text for part in parts)
    assert sum(bool(part) for part in parts) == len(text) or "�" in text


def test_bytes_that_are_no_text(words):
    tokens = words.encode("é")[:1] + words.encode("ok")
    continuation = Continuation(words, [], ())
    parts = [continuation.add(token) for token in tokens]
    assert parts == ["", "�o", "k"] and continuation.end() == ""
    continuation = Continuation(words, [], ())
    assert continuation.add(tokens[0]) == "" and continuation.end() == "�"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("one two", ["twofold"], "one two"),  # a beginning of it at the end is given back
        ("ababac", ["abac"], "ab"),
        ("aaab", ["aab"], "a"),
        ("x\n\ny", ["\n\n"], "x"),
        ("stop", ["stop"], ""),
        ("l'été🦙 ici", ["🦙"], "l'été"),
        ("ab", ["b", "ab"], ""),
    ],
)
def test_stop_strings(words, text, stop, expected):
    found, parts = pieces(words, text, stop)
    assert found == expected
    shown = ""
    for part in parts:  # nothing is shown that must be taken back
        shown += part
        assert expected.startswith(shown)


def test_text_is_shown_as_soon_as_it_is_certain(words):
    continuation = Continuation(words, [], ["END"])
    assert [continuation.add(token) for token in words.encode("aENbE")] == ["a", "", "", "ENb", ""]


def test_a_space_between_prompt_and_text_is_kept():
    words = spaced()
    continuation = Continuation(words, [4, 1], ())
    assert [continuation.add(token) for token in (3, 2, 1)] == [" b", "a", " a"]


def test_a_space_after_a_token_without_text_is_kept():
    words, prompt, tokens = spaced(), [4, 1], [1, 4, 3, 4, 4, 1, 2]
    continuation = Continuation(words, prompt, ())
    assert [continuation.add(token) for token in tokens] == [" a", "", " b", "", "", " a", "a"]
    assert continuation.text == words.decode(prompt + tokens)[len(words.decode(prompt)) :]


def test_generated_text(words):
    """Against the tokens: stop strings and end tokens cut it, `show` gets all of it."""
    model = small(ModelConfig(257, 64, 2, 4, 2, 16, 96))
    prompts = ["Hello", "Good morning, "]
    tokens = generate(model, [words.encode(prompt) for prompt in prompts], 30, eos=words.eos)
    shown = ["", ""]
    ends = [0, 0]

    def show(row, piece, last):
        shown[row] += piece
        ends[row] += last

    plain = generate_text(model, words, prompts, 30, show=show)
    assert plain == shown == [words.decode(row) for row in tokens] and ends == [1, 1]
    stop = next(letter for letter in plain[1][5:] if letter not in plain[0] and letter != "�")
    stopped = generate_text(model, words, prompts, 30, stop=[stop])
    assert stopped == [plain[0], plain[1][: plain[1].index(stop)]]
    end = next(i for i, token in enumerate(tokens[0]) if token not in tokens[0][:i] and i > 0)
    ended = generate_text(model, replace(words, eos=(tokens[0][end],)), prompts[:1], 30)
    assert ended == [words.decode(tokens[0][:end])]  # an end is no text, even if the tokenizer does not call it special
    with pytest.raises(UserError, match="an empty string would end every text"):
        generate_text(model, words, prompts, 30, stop=[""])


class Terminal(io.StringIO):
    flushed = ""

    def isatty(self):
        return True

    def flush(self):
        self.flushed = self.getvalue()


def test_texts_come_in_order():
    stream = Terminal()
    show = InOrder(stream, 3)
    show(0, "a", False)
    show(1, "x", True)
    assert stream.flushed == "a"
    show(2, "u", False)
    show(0, "b", True)
    assert stream.flushed == "ab\n\nx\n\nu"
    show(2, "", True)
    assert stream.flushed == "ab\n\nx\n\nu\n"
