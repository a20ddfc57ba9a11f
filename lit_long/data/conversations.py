"""Rows of instruction data as conversations, whatever form they come in, and a conversation as tokens of which it is known who wrote them.

    messages    {"messages": [{"role": "user", "content": …}, {"role": "assistant", …}]}
    sharegpt    {"conversations": [{"from": "human", "value": …}, {"from": "gpt", …}]}
    prompt      two templates over the row's fields, ``prompt`` and ``answer``, as in data/readers.py
    qa          a document, and a question about a chunk of it, with its answer: what lit_long.instruct writes

Turns of an assistant are answers, all else is prompt. What stands before the first prompt or after the last answer teaches nothing
and is left out, and so are rows without an answer.

A ``qa`` document of more than ``max_tokens`` tokens, with all that belongs to it, is cut on both sides. Its chunk stays inside, as deep as
the row's ``depth`` says (0 first, 1 last) as far as the document reaches.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lit_long.config import SourceConfig, UserError, nearest
from lit_long.data.fields import fields_of, fill, value_of
from lit_long.tokenizers.tokenizer import ModelTokenizer, copy_tokenizer

SCHEMAS = ("messages", "sharegpt", "prompt", "qa")
TEMPLATES = ("auto", "chat", "plain")
READ = {
    "normal": 'Read the long text between the triple quotes and answer the question about it.\n\n"""\n{}\n"""\n\nQuestion: {}',
    "short": "Read the long text between the triple quotes and answer the question about it in as few words as you can: a phrase or one "
    'sentence, without explanation.\n\n"""\n{}\n"""\n\nQuestion: {}',
}
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
_ROLES |= {"assistant": "assistant", "model": "assistant", "system": "system"}
_FIELDS = {
    "messages": ["messages"],
    "sharegpt": ["conversations"],
    "qa": ["document", "question", "answer", "kind", "depth", "chunk_start", "chunk_end"],
}
_PLAIN = {"system": "System: {}\n", "user": "User: {}\nAssistant:", "assistant": " {}\n"}

Messages = list[dict[str, str]]


def check_instruct(key: str, source: SourceConfig) -> None:
    """Raise a UserError for settings of instruction data that make no sense."""
    wanted = source.instruct
    for name, known in (
        ("schema", SCHEMAS),
        ("template", TEMPLATES),
        ("packing", ("whole", "single")),
        ("divisor", ("weights", "answers")),
    ):
        if (value := getattr(wanted, name)) not in known:
            raise UserError(f"{key}.instruct.{name}: unknown {value!r}{nearest(value, known)}")
    if wanted.schema == "prompt" and not (wanted.prompt and wanted.answer):
        raise UserError(
            f"{key}.instruct: schema prompt needs two templates, prompt and answer, such as '{{question}}' and '{{answer}}'"
        )
    if wanted.answer_weight == wanted.prompt_weight == 0:
        raise UserError(f"{key}.instruct: one of prompt_weight and answer_weight must be above 0")
    if wanted.divisor == "answers" and wanted.answer_weight == 0:
        raise UserError(f"{key}.instruct.divisor=answers needs an answer_weight above 0, or there is nothing to divide by")


def list_instruct_columns(key: str, source: SourceConfig) -> list[str]:
    """Fields that the rows of a source of instruction data must have."""
    wanted = source.instruct
    if wanted.schema == "prompt":
        return [*fields_of(f"{key}.instruct.prompt", wanted.prompt), *fields_of(f"{key}.instruct.answer", wanted.answer)]
    return _FIELDS[wanted.schema]


def to_canonical(key: str, source: SourceConfig, row: dict[str, Any], kind: str) -> str | None:
    """The row as JSON of one form: a list of messages, or a ``qa`` object. None where there is no answer to learn.

    Raises:
        UserError: a missing field, or another thing than was expected in it.
    """
    wanted = source.instruct
    if wanted.schema == "qa":
        found = {name: value_of(f"{key}.instruct.schema", name, row, kind) for name in _FIELDS["qa"]}
        texts, places = (found[name] for name in ("document", "question", "answer")), (found["chunk_start"], found["chunk_end"])
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(place, int) for place in places):
            raise UserError(
                "document, question and answer must be texts, chunk_start and chunk_end whole numbers (of characters)"
            )
        if not 0 <= places[0] < places[1] <= len(found["document"]) or found["kind"] not in READ or not 0 <= found["depth"] <= 1:
            raise UserError(
                f"chunk_start and chunk_end must name a part of the document, depth be from 0 to 1, and kind {' or '.join(READ)}"
            )
        return json.dumps(found, ensure_ascii=False) if found["answer"].strip() else None
    if wanted.schema == "prompt":
        parts = {"user": wanted.prompt, "assistant": wanted.answer}
        messages = [
            {"role": role, "content": fill(f"{key}.instruct", template, row, kind).strip()} for role, template in parts.items()
        ]
    else:
        field, role, content = (
            ("messages", "role", "content") if wanted.schema == "messages" else ("conversations", "from", "value")
        )
        turns = value_of(f"{key}.instruct.schema", field, row, kind)
        messages = [_message(turn, role, content) for turn in (turns if turns is not None else ())]
    messages = _answered([message for message in messages if message["content"]])
    return json.dumps(messages, ensure_ascii=False) if messages else None


def _message(turn: Any, role: str, content: str) -> dict[str, str]:
    if not isinstance(turn, dict) or not isinstance(turn.get(role), str) or not isinstance(turn.get(content), str):
        raise UserError(f"a turn must hold texts named '{role}' and '{content}', not {str(turn)[:80]!r}")
    if turn[role] not in _ROLES:
        raise UserError(f"a turn is from {turn[role]!r}; known are {', '.join(_ROLES)}")
    return {"role": _ROLES[turn[role]], "content": turn[content].strip()}


def _answered(messages: Messages) -> Messages:
    """From the first prompt to the last answer; system messages stay in front. Turns of one writer in a row become one."""
    system = [message for message in messages if message["role"] == "system"][:1]
    turns: Messages = []
    for message in messages:
        if message["role"] == "system" or (not turns and message["role"] == "assistant"):
            continue
        if turns and turns[-1]["role"] == message["role"]:
            turns[-1] = message | {"content": f"{turns[-1]['content']}\n\n{message['content']}"}
        else:
            turns.append(message)
    if turns and turns[-1]["role"] == "user":
        turns.pop()
    return [*system, *turns] if turns else []


def message_text(text: str) -> str:
    """What a canonical row says, for a tokenizer to be trained on."""
    row = json.loads(text)
    return row["document"] if isinstance(row, dict) else "\n".join(message["content"] for message in row)


def asked_document(text: str) -> str:
    """The document that a canonical ``qa`` row asks about."""
    return json.loads(text)["document"]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template of pretrained weights, without the tokenizer that it belongs to."""

    source: str
    special: dict[str, str]
    where: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([self.source, self.special], sort_keys=True).encode()).hexdigest()


def template_of(key: str, source: SourceConfig, found: ChatTemplate | None) -> ChatTemplate | None:
    """The chat template that the source's conversations are written with, None for our plain form. Raises UserError if it must be there."""
    if source.instruct.template == "chat" and found is None:
        raise UserError(
            f"{key}.instruct.template=chat: the tokenizer has no chat template. Set data.corpus.tokenizer or model.init to a chat model's "
            f"weights, or template=plain."
        )
    return None if source.instruct.template == "plain" else found


@dataclass(frozen=True)
class Encoded:
    """``tokens`` int64 [tokens], the separator first; ``answers`` int64 [answers, 2]: where each begins and ends, end token included.
    ``depth`` of a ``qa`` chunk among what is left of its document, and whether that was cut."""

    tokens: np.ndarray
    answers: np.ndarray
    depth: float | None = None
    cut: bool = False


@dataclass(frozen=True)
class Encoder:
    """Turns canonical rows into tokens.

    Args:
        plain: a tokenizer to which special tokens' names are ordinary text.
        templated: the same, reading special tokens, with a chat template; None writes conversations plainly.
    """

    plain: Tokenizer
    separator: int
    templated: ModelTokenizer | None = None
    max_tokens: int = 0

    @classmethod
    def make(cls, plain: Tokenizer, separator: int, template: ChatTemplate | None, max_tokens: int) -> Encoder:
        if template is None:
            return cls(plain, separator, None, max_tokens)
        reading = copy_tokenizer(plain)  # special tokens are read, unlike with ``plain``
        templated = ModelTokenizer(reading, None, (), False, separator, template.source, template.special, template.where)
        return cls(plain, separator, templated, max_tokens)

    def __call__(self, text: str) -> Encoded | None:
        """None where a special token's name stands in a message, or where the chunk alone exceeds ``max_tokens``."""
        row = json.loads(text)
        if isinstance(row, list):
            return None if self.unsafe(row) else self.encode(row)
        messages = _qa(row, row["document"])
        if self.unsafe(messages):
            return None
        encoded = self.encode(messages)
        if self.max_tokens and len(encoded.tokens) > self.max_tokens:
            return self.within(row, len(encoded.tokens) - self.max_tokens)
        return replace(encoded, depth=_depth(row, 0, len(row["document"])))

    def within(self, row: dict[str, Any], excess: int) -> Encoded | None:
        """The example cut to ``max_tokens``, of which the whole has ``excess`` more."""
        offsets = np.array(self.plain.encode(row["document"], add_special_tokens=False).offsets)
        first = int(np.searchsorted(offsets[:, 1], row["chunk_start"], side="right"))
        last = int(np.searchsorted(offsets[:, 0], row["chunk_end"], side="left"))
        keep = len(offsets) - excess
        while keep >= last - first:
            start = first - round(row["depth"] * (keep - (last - first)))
            start = max(0, min(start, len(offsets) - keep))
            begin = min(int(offsets[start, 0]), row["chunk_start"])
            end = max(int(offsets[start + keep - 1, 1]), row["chunk_end"])
            encoded = self.encode(_qa(row, row["document"][begin:end]))
            if (over := len(encoded.tokens) - self.max_tokens) <= 0:
                return replace(encoded, depth=_depth(row, begin, end), cut=True)
            keep -= over  # words at the edges were cut into more tokens
        return None

    def encode(self, messages: Messages) -> Encoded:
        pieces = self.pieces(messages)
        tokenizer = self.templated.tokenizer if self.templated else self.plain
        found = tokenizer.encode("".join(text for text, _ in pieces), add_special_tokens=False)
        starts, ends = np.array(found.offsets, dtype=np.int64).reshape(-1, 2).T
        opened = found.ids[:1] == [self.separator]  # the template writes it, too
        answers, at = [], 0
        for text, is_answer in pieces:
            if is_answer:
                first = np.searchsorted(ends, at, side="right")
                stop = np.searchsorted(starts, at + len(text), side="left")
                answers.append((first, stop))
            at += len(text)
        tokens = np.array(found.ids if opened else [self.separator, *found.ids], dtype=np.int64)
        return Encoded(tokens, np.array(answers, dtype=np.int64).reshape(-1, 2) + (0 if opened else 1))

    def pieces(self, messages: Messages) -> list[tuple[str, bool]]:
        """Text as the model will read and write it, in pieces: (text, whether an assistant wrote it)."""
        if self.templated is None:
            return [(_PLAIN[m["role"]].format(m["content"]), m["role"] == "assistant") for m in messages]
        pieces, before = [], ""
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.templated.chat(messages[:place], add_generation_prompt=True)
            whole = self.templated.chat(messages[: place + 1], add_generation_prompt=False)
            if not (prompt.startswith(before) and whole.startswith(prompt)):
                raise UserError(
                    f"{self.templated.where}: its chat template writes earlier turns anew with every turn, so it cannot be told which tokens are "
                    f"answers. Set instruct.template=plain, or take conversations of one turn."
                )
            pieces += [(prompt[len(before) :], False), (whole[len(prompt) :], True)]
            before = whole
        return pieces

    def unsafe(self, messages: Messages) -> bool:
        """Whether a message spells a special token, which the template's text would then hold, too."""
        if self.templated is None:
            return False
        names = [token.content for token in self.templated.tokenizer.get_added_tokens_decoder().values() if token.special]
        return any(name in message["content"] for message in messages for name in names)


def _qa(row: dict[str, Any], document: str) -> Messages:
    asked = READ[row["kind"]].format(document, row["question"])
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": row["answer"].strip()}]


def _depth(row: dict[str, Any], begin: int, end: int) -> float:
    """Where the chunk lies in the document's part, 0 first, 1 last."""
    room = end - begin - (row["chunk_end"] - row["chunk_start"])
    return (row["chunk_start"] - begin) / room if room else 0.0
