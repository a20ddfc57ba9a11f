"""The tokenizer of a model, the ids that open and close texts, and its chat template.

How they are read from a Hugging Face folder is in huggingface.py, from a GGUF file in gguf.py. Whoever reads a tokenizer.json does it here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lit_long.config import UserError

if TYPE_CHECKING:
    from jinja2 import Template
    from tokenizers import Tokenizer

DOCUMENT_START = "<|endoftext|>"


@dataclass(frozen=True)
class ModelTokenizer:
    """A tokenizer and what belongs to it.

    tokenizer       encodes text; special tokens written out in the text become their ids
    bos             the id that begins a text, if the model has one
    eos             all ids at which generation stops, the tokenizer's own first
    add_bos         whether `encode` puts ``bos`` first, as the model was trained
    separator       the id that opens a document in training data, see `separator_of`
    chat_template   Jinja source; None for a base model
    special         names of special tokens as templates see them: bos_token, eos_token …
    where           file or folder it was read from, for messages
    embeddings      rows of the model's embeddings; added tokens may have ids beyond them. None where that is not known
    """

    tokenizer: Tokenizer
    bos: int | None
    eos: tuple[int, ...]
    add_bos: bool
    separator: int
    chat_template: str | None = None
    special: dict[str, str] = field(default_factory=dict)
    where: str = ""
    embeddings: int | None = None

    def pieces(self, text: str) -> list[int]:
        """Ids of ``text`` and nothing else. Raises UserError where one has no embedding."""
        return self.batch([text])[0]

    def batch(self, texts: list[str]) -> list[list[int]]:
        """`pieces` of several texts, on all cores."""
        found = [row.ids for row in self.tokenizer.encode_batch(texts, add_special_tokens=False)]
        for ids in found:
            check_embedded(self.tokenizer, max(ids, default=0), self.embeddings, self.where)
        return found

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, ``bos`` first when ``add_bos`` says so and the text does not write it out itself (chat templates do).
        Raises UserError where one has no embedding."""
        ids = self.pieces(text)
        return [self.bos, *ids] if self.add_bos and ids[:1] != [self.bos] else ids

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def chat(self, messages: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation, as the model was trained on it.

        Args:
            messages: dicts with role (system, user, assistant) and content.
            add_generation_prompt: whether the text ends where the assistant's next answer begins.

        Raises:
            UserError: the model has no chat template, or the template refuses these messages.
        """
        from jinja2 import TemplateError

        try:
            return self.template.render(messages=messages, add_generation_prompt=add_generation_prompt, **self.special)
        except TemplateError as error:
            raise UserError(f"{self.where}: its chat template refuses these messages: {error}") from None

    @cached_property
    def template(self) -> Template:
        """The compiled chat template. It comes with the weights, from anywhere, so it runs in a sandbox."""
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if self.chat_template is None:
            raise UserError(f"{self.where}: has no chat template: it is a base model; take one that was tuned for chat")

        class Generation(Extension):
            """``{% generation %} … {% endgeneration %}`` marks the assistant's words for transformers; here they are just text."""

            tags: ClassVar[set[str]] = {"generation"}

            def parse(self, parser: Any) -> list[nodes.Node]:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        extensions = [Generation, loopcontrols]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.filters["tojson"] = tojson
        environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
        try:
            return environment.from_string(self.chat_template)
        except TemplateError as error:
            raise UserError(f"{self.where}: its chat template cannot be parsed: {error}") from None


def read_tokenizer_json(file: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, without run-time state. Raises UserError when it cannot be read."""
    from tokenizers import Tokenizer

    try:
        return without_state(Tokenizer.from_file(str(file)))
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"{file}: cannot be read as a tokenizer: {error}") from None


def copy_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Another one of the same content, to which special tokens in a text are special again."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(tokenizer.to_str())


def without_state(tokenizer: Tokenizer) -> Tokenizer:
    """Switch off what a tokenizer.json keeps of the program that saved it: truncation, padding, and the dropout of merges. Each would
    make other tokens of a text than those the model is to read."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for name in ("dropout", "alpha", "nbest_size"):  # of BPE, and of Unigram
        if getattr(tokenizer.model, name, None):  # 0 drops nothing: the content, and with it identities, stay as they are
            setattr(tokenizer.model, name, None)
    return tokenizer


def has_state(file: Path) -> bool:
    """Whether a tokenizer.json keeps what `without_state` switches off."""
    content = json.loads(file.read_text(encoding="utf-8"))
    held = [content.get("truncation"), content.get("padding"), *map(content["model"].get, ("dropout", "alpha", "nbest_size"))]
    return any(held)


def separator_of(tokenizer: Tokenizer, bos: int | None, eos: tuple[int, ...], vocab_size: int, where: str) -> int:
    """The id that opens a document in training data.

    It should be what the model saw between documents in pretraining. That is ``<|endoftext|>`` where the vocabulary has it (an
    instruct model such as SmolLM2's has made another token its bos since), else bos (Llama 2 and 3), else the first eos; the first of
    them that has an embedding.
    """
    ids = [tokenizer.token_to_id(DOCUMENT_START), bos, *eos]
    for number in ids:
        if number is not None and number < vocab_size:
            return number
    raise UserError(
        f"{where}: its tokenizer has neither {DOCUMENT_START} nor a bos nor an eos token, so nothing can open a document"
    )


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """Raise a UserError when the tokenizer has ids for which the model has no embedding. Fewer are fine: models pad. So are added tokens
    beyond them, such as the [PAD] of many tuned models: a text that uses one is refused then (`check_embedded`)."""
    added = tokenizer.get_added_tokens_decoder()
    largest = max((number for number in tokenizer.get_vocab().values() if number not in added), default=-1)
    if largest >= vocab_size:
        raise UserError(
            f"{where}: its tokenizer has {largest + 1:,} ids, but embed_tokens.weight only {vocab_size:,} rows; they do not belong "
            f"together: take the tokenizer that came with the weights"
        )


def check_embedded(tokenizer: Tokenizer, largest: int, embeddings: int | None, where: str) -> None:
    """Raise a UserError when ``largest``, the largest id in a text, has no embedding. ``where``: whose text, or whose tokenizer."""
    if embeddings is not None and largest >= embeddings:
        raise UserError(
            f"{where}: a text uses the token {tokenizer.id_to_token(largest)!r} (id {largest:,}), which was added to the tokenizer but has no "
            f"embedding in the model (embed_tokens.weight has {embeddings:,} rows); take it out of the text or the template"
        )


def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """JSON without HTML escapes, which Jinja's own filter would add."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
