"""Synthetic domains of a mixture: sequences made from training documents, without end, to learn to look back over a long text.

FIRST-SENTENCE-RETRIEVAL: a text, and the request to repeat its first sentence (LLaMA 2 Long, section 4.1).

    <|endoftext|>TEXT\\n\\nThe first sentence of the text above is: SENTENCE\\n

The text is a window of a document (of ``docs``, unless another domain is named) that starts with a sentence; it is trimmed from its END until the whole
has exactly the wanted number of tokens, so a model must look back across all of it. The paper does not give its
prompt; this one is ours. Base models meet the task in training (`RetrievalDocuments`, from training documents), and
it is measured on held-out documents (`retrieval_examples`).

COPYING: spans of training documents one after another, then the same spans again in another order.

    <|endoftext|>SPAN SPAN SPAN … SPAN SPAN SPAN …

Whoever has seen a span's first tokens can predict its others by looking back for them, at a distance that nothing else gives away. That is
what induction heads do (Olsson et al. 2022, "In-context Learning and Induction Heads"), and a small model grows them on half of such a sequence's
tokens instead of the few in a hundred that text repeats: what it takes to train, in minutes, a base model that retrieves. The spans of a
sequence are of 6 to 40 tokens, anywhere in the documents of ``docs``. No paper has this task; it is ours, for base models only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lit_long.config import Unfit, UserError
from lit_long.config.schema import SHORTEST_RETRIEVAL
from lit_long.data.packing import ENDLESS, Sequence, join_documents
from lit_long.data.sampling import Places, permutation, random_words
from lit_long.data.token_store import Store, describe_longest

RETRIEVAL, COPYING = SYNTHETIC = ("retrieval", "copying")  # in a mixture's weights
QUESTION = "\n\nThe first sentence of the text above is:"
PASSKEY = "\n\nThe pass key is {key}. Keep it in mind: {key} is the pass key.\n\n"
PASSKEY_QUESTION = "\n\nWhat is the pass key? The pass key is"
SCORED_TOKENS = 24  # of the answer, at most; so that long sentences do not outweigh short ones
DOMAIN = "docs"  # whose documents the sequences are made of
_MIN_WORDS = 4
_SENTENCE_TOKENS = range(6, 33)
_SEARCHED_TOKENS = 512  # how far from a random place a sentence is looked for
_TRIES = 64

# From a capital letter to the first full stop on the same line that ends no abbreviation.
_SENTENCE = re.compile(r"[A-Z][^\n]*?(?<!e\.g)(?<!i\.e)(?<!cf)(?<!vs)(?<!etc)[.!?](?=\s)")
_PARAGRAPH = re.compile(r"\n\s*\n[ \t]*")
SPAN = range(6, 41)  # tokens


class RetrievalExample(NamedTuple):
    """``tokens`` int64 [length], the answer included; ``tokens[answer_start:answer_stop]`` are scored; ``text`` is
    the sentence."""

    tokens: np.ndarray
    answer_start: int
    answer_stop: int
    text: str


@dataclass(frozen=True)
class _Instance:
    """A text with its first sentence, before the text is trimmed. Both are token ids."""

    window: list[int]
    answer: list[int]
    sentence: str


def first_sentence(text: str) -> str | None:
    """The sentence that ``text`` starts with, if it has at least four words and ends on its first line."""
    match = _SENTENCE.match(text)
    return match[0] if match and len(match[0].split()) >= _MIN_WORDS else None


class RetrievalDocuments:
    """Training sequences of the task, as a random-access source: ``source[i]`` as in `PackedDocuments`, a loss on
    every token.

    A sequence holds one example of 128 tokens up to the whole context, each length as likely, and in what is left of it more of them, or
    where there is no room the rest of another text. Were all of one length, a model would learn where to look, and not for what.

    Args:
        max_tokens: of an example; 0 = the whole context. A model can so be asked to look back over short texts only, in sequences of any length.

    Raises Unfit if the context or ``max_tokens`` is too short for the task or longer than every training document.
    """

    def __init__(self, store: Store, context: int, seed: int, mask_documents: bool = True, max_tokens: int = 0) -> None:
        self._length = context + 1
        self._longest = min(max_tokens or self._length, self._length)
        self._windows = _Windows(store, DOMAIN, "train", self._longest)
        self._seed, self._mask_documents = seed, mask_documents
        self.first = 0  # the number of the sequence to begin with

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Sequence:
        documents, room, number = [], self._length, int(index) + self.first
        while room:
            part = len(documents)
            instance = self._instance(number, part)
            if room < SHORTEST_RETRIEVAL:
                documents.append(np.array([self._windows.separator, *instance.window], dtype=np.int64)[:room])
            else:
                sizes = min(room, self._longest) - SHORTEST_RETRIEVAL + 1
                size = SHORTEST_RETRIEVAL + int(
                    random_words(1, "retrieval length", self._seed, number, part)[0] % np.uint64(sizes)
                )
                documents.append(self._windows.assemble(instance, size))
            room -= len(documents[-1])
        return join_documents(documents, self._mask_documents)

    def _instance(self, number: int, part: int) -> _Instance:
        """The example of part ``part`` of sequence ``number``; the first part's is the one that sequences of a single example had."""
        for attempt in range(_TRIES):
            instance = self._windows.draw(self._seed, number, *([part] if part else []), attempt)
            if instance is not None:
                return instance
        raise UserError(
            f"{_TRIES} windows of {self._longest} tokens from the training documents had no sentence to retrieve. "
            f"Take 'retrieval' out of data.weights, or lower the context."
        )


def retrieval_examples(
    store: Store, length: int, count: int, *, max_length: int | None = None, seed: int = 0, domain: str = DOMAIN, skip: int = 0
) -> list[RetrievalExample]:
    """At most ``count`` examples, behind the first ``skip`` ones, of exactly ``length`` tokens from held-out documents, no sentence twice.

    With the same ``seed``, ``count`` and ``max_length`` (by default ``length``), example i is about the same text and
    sentence at every length. Raises Unfit if ``length`` is too short, above ``max_length``, or no document is
    long enough.
    """
    max_length = max_length or length
    if length > max_length:
        raise Unfit(f"A retrieval length of {length} exceeds the longest one, {max_length}.")
    _check_length(length)
    windows = _Windows(store, domain, "validation", max_length)
    examples = []
    for instance in windows.held_out(count, seed, skip):
        start = length - len(instance.answer)
        tokens = windows.assemble(instance, length)
        examples.append(RetrievalExample(tokens, start, min(start + SCORED_TOKENS, length), instance.sentence))
    return examples


def passkey_examples(
    store: Store, length: int, count: int, *, max_length: int | None = None, seed: int = 0, domain: str = DOMAIN, skip: int = 0
) -> list[RetrievalExample]:
    """PASSKEY (Mohtashami and Jaggi 2023): five digits to be found again in a text, here real text, and at every depth.

    Like `retrieval_examples`, about the same texts; example i hides its key at depth (i + ½) / count of the text. LLaMA 2 Long (footnote
    4) calls the task overly simple: every variant but plain RoPE solves it.
    """
    max_length = max_length or length
    _check_length(length)
    windows = _Windows(store, domain, "validation", max_length)
    texts = windows.held_out(count, seed, skip)
    examples = []
    for number, instance in enumerate(texts):
        key = 10_000 + int(random_words(1, "passkey", seed, number)[0] % np.uint64(90_000))
        needle, question, answer = map(windows.encode, (PASSKEY.format(key=key), PASSKEY_QUESTION, f" {key}"))
        room = length - 1 - len(needle) - len(question) - len(answer)
        cut = round((number + 0.5) / len(texts) * room)
        before, after = instance.window[:cut], instance.window[cut:room]
        tokens = np.array([store.separator, *before, *needle, *after, *question, *answer], dtype=np.int64)
        examples.append(RetrievalExample(tokens, length - len(answer), length, str(key)))
    return examples


class _Windows:
    """Windows of up to ``length`` tokens that start with a sentence, from all documents that are long enough."""

    def __init__(self, store: Store, domain: str, split: str, length: int) -> None:
        _check_length(length)
        self._documents = store.documents(domain, split)
        self._tokenizer = store.tokenizer
        self._length = length
        self.separator = store.separator
        self._question = self.encode(QUESTION)
        self._places = Places(self._documents, length + 1)
        if not self._places:
            raise Unfit(
                f"No {split} document of domain '{domain}' has more than {length} tokens, as FIRST-SENTENCE-RETRIEVAL needs "
                f"({describe_longest(self._documents)})."
            )

    def draw(self, *key: int | str) -> _Instance | None:
        """The window at the random place that ``key`` stands for, or None if no paragraph with a proper sentence
        starts near."""
        index, start = self._places.draw(random_words(1, "retrieval", *key)[0])
        document = self._documents[index]
        # The window starts up to _SEARCHED_TOKENS further right; what the document lacks then is a reason to try
        # elsewhere.
        text = self._tokenizer.decode(document[start : start + _SEARCHED_TOKENS + self._length].tolist())
        for paragraph in _PARAGRAPH.finditer(text):
            window_text = text[paragraph.end() :]
            sentence = first_sentence(window_text)
            if sentence is not None:
                return self._instance(window_text, sentence)
        return None

    def held_out(self, count: int, seed: int, skip: int) -> list[_Instance]:
        """At most ``count`` windows, behind the first ``skip``, no sentence twice. Raises Unfit if there is none."""
        found: dict[str, _Instance] = {}
        for attempt in range(_TRIES * (skip + count)):
            if len(found) == skip + count:
                break
            instance = self.draw(seed, "evaluation", attempt)
            if instance is not None:
                found.setdefault(instance.sentence, instance)
        if not found:
            raise Unfit(f"No held-out document of {self._length} tokens starts a paragraph with a sentence to retrieve.")
        if len(found) <= skip:
            raise Unfit(
                f"The held-out documents of {self._length} tokens have {len(found)} sentences to retrieve; skip={skip} leaves none."
            )
        return list(found.values())[skip:]

    def _instance(self, window_text: str, sentence: str) -> _Instance | None:
        answer = self.encode(f" {sentence}\n")
        if len(answer) - 1 not in _SENTENCE_TOKENS:
            return None
        window, room = self.encode(window_text)[: self._length], self._room(answer, self._length)
        # A second copy nearer to the question would make the task one of short range.
        whole = len(window) == self._length and self._tokenizer.decode(window[:room]).count(sentence) == 1
        return _Instance(window, answer, sentence) if whole else None

    def assemble(self, instance: _Instance, length: int) -> np.ndarray:
        """int64 [length]: separator, trimmed text, question, answer."""
        window = instance.window[: self._room(instance.answer, length)]
        return np.array([self.separator, *window, *self._question, *instance.answer], dtype=np.int64)

    def _room(self, answer: list[int], length: int) -> int:
        """Tokens that are left for the text."""
        return length - 1 - len(self._question) - len(answer)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def _check_length(length: int) -> None:
    if length < SHORTEST_RETRIEVAL:
        raise Unfit(f"FIRST-SENTENCE-RETRIEVAL and PASSKEY need at least {SHORTEST_RETRIEVAL} tokens, not {length}.")


class CopyDocuments:
    """Training sequences of the task, as a random-access source: ``source[i]`` as in `PackedDocuments`, a loss on every token.

    Sequence i draws its spans by (seed, i), whatever the context. A phase of another context goes on by tokens, so with longer sequences from a
    smaller i on: it draws what an earlier phase drew, and its sequences begin with the same spans. The shipped bases were trained so.

    Raises UserError if no training document is long enough for a span.
    """

    def __init__(self, store: Store, context: int, seed: int) -> None:
        self._documents = store.documents(DOMAIN, "train")
        self._separator, self._length, self._seed = store.separator, context + 1, seed
        self.first = 0  # the number of the sequence to begin with
        self._places = Places(self._documents, max(SPAN))
        if not self._places:
            raise UserError(
                f"No training document of domain '{DOMAIN}' has {max(SPAN)} tokens, as copying needs ({describe_longest(self._documents)}). "
                f"Take 'copying' out of data.weights."
            )

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Sequence:
        key = ("copying", self._seed, int(index) + self.first)
        half, spans, tokens = self._length // 2, [], 0
        words = iter(random_words(2 * (half // min(SPAN) + 1), *key))
        while tokens < half:
            (document, start), size = self._places.draw(next(words)), SPAN[int(next(words) % np.uint64(len(SPAN)))]
            spans.append(np.asarray(self._documents[document][start : start + size]))
            tokens += size
        again = [spans[i] for i in permutation(len(spans), *key, "again")]
        return join_documents([np.concatenate([[self._separator], *spans, *again])[: self._length]])
