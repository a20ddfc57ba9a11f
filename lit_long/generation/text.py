"""From new tokens to text, as they come: whole characters only, and nothing of a stop string or behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lit_long.config import UserError
from lit_long.generation.decode import PREFILL_CHUNK, generate, generate_in_turn
from lit_long.generation.sampling import Sampler
from lit_long.model.llama import Llama
from lit_long.tokenizers.tokenizer import ModelTokenizer

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of a character whose last bytes are yet to come
BEFORE = 8  # tokens of the prompt that new ones are decoded after: some decoders drop a space at the very beginning

Show = Callable[[int, str, bool], None]  # gets row, a piece of its text (may be empty), and whether it is the last


class Continuation:
    """The text of one row, token by token.

    Args:
        prompt: its tokens.
        stop: strings at which the text ends; they are not part of it.
    """

    def __init__(self, tokenizer: ModelTokenizer, prompt: list[int], stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.tokens = prompt[-BEFORE:]
        self.start, self.decoded = 0, len(self.tokens)  # tokens from start to decoded are those whose text has been taken
        self.text = ""
        self.shown = 0  # characters of it
        self.stopped = False

    def add(self, token: int) -> str:
        """What of the text is certain now, and was not before: ``token`` may only begin a character, or a stop string."""
        self.tokens.append(token)
        piece = self.beyond()
        if piece.endswith(UNFINISHED):
            return ""
        if piece:  # else the next would be decoded after nothing that has text, as if it were the very first
            self.start = self.decoded
        self.decoded = len(self.tokens)
        return self.take(piece)

    def end(self) -> str:
        """What was held back, when no more tokens come."""
        rest = "" if self.stopped else self.take(self.beyond(), last=True)
        self.decoded = len(self.tokens)
        return rest

    def beyond(self) -> str:
        """Text of the tokens whose text has not been taken. They are decoded after those before, whose text may depend on it."""
        before = self.tokenizer.decode(self.tokens[self.start : self.decoded])
        return self.tokenizer.decode(self.tokens[self.start :])[len(before) :]

    def take(self, piece: str, last: bool = False) -> str:
        self.text += piece
        found = [place for string in self.stop if (place := self.text.find(string, self.shown)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
        certain = len(self.text)
        if not found and not last:
            certain -= max((overlap(self.text[self.shown :], string) for string in self.stop), default=0)
        new, self.shown = self.text[self.shown : certain], certain
        return new


def overlap(text: str, string: str) -> int:
    """Characters at the end of ``text`` that ``string`` begins with."""
    return next((size for size in range(min(len(text), len(string)), 0, -1) if text.endswith(string[:size])), 0)


def generate_text(
    model: Llama,
    tokenizer: ModelTokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    sampler: Sampler | None = None,
    stop: Sequence[str] = (),
    show: Show | None = None,
    chunk: int = PREFILL_CHUNK,
) -> list[str]:
    """The text that follows each prompt, up to an end token, a stop string (neither is part of it) or ``max_new_tokens``.

    Args:
        prompts: raw text; for a chat, what `ModelTokenizer.chat` returns.
        sampler: chooses tokens; the likeliest ones if not given.
        show: is called after every token with (row, what of its text has become certain, whether it is complete).
        chunk: tokens whose widest activations may exist at once when prompts are read.

    Raises:
        UserError: an empty prompt or stop string, or more tokens than the model's encoder can hold.
    """
    tokens = [tokenizer.encode(prompt) for prompt in prompts]
    return continue_tokens(model, tokenizer, tokens, max_new_tokens, sampler=sampler, stop=stop, show=show, chunk=chunk)


def continue_tokens(
    model: Llama,
    tokenizer: ModelTokenizer,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    *,
    sampler: Sampler | None = None,
    stop: Sequence[str] = (),
    show: Show | None = None,
    chunk: int = PREFILL_CHUNK,
    in_turn: bool = False,
) -> list[str]:
    """Like `generate_text`, after prompts of tokens: of an exact length, or cut. ``in_turn``: see `generate_in_turn`, without a sampler."""
    if not all(stop):
        raise UserError("stop: an empty string would end every text before it begins; leave it out")
    texts = [Continuation(tokenizer, row, stop) for row in prompts]
    new = [0] * len(prompts)

    def heard(row: int, token: int) -> bool:
        text = texts[row]
        new[row] += 1
        piece = "" if token in tokenizer.eos else text.add(token)
        ended = text.stopped or token in tokenizer.eos or new[row] == max_new_tokens
        piece += text.end() if ended else ""
        if show is not None:
            show(row, piece, ended)
        return ended

    if in_turn:
        generate_in_turn(model, list(prompts), max_new_tokens, tokenizer.eos, heard)
    else:
        generate(model, list(prompts), max_new_tokens, sampler, tokenizer.eos, heard, chunk)
    return [text.text for text in texts]
