"""The words of a pretrained model: its tokenizer, the ids that open and close texts, and its chat template.

How they are read from a Hugging Face folder is in huggingface.py, from a GGUF file in gguf.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
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
    """

    tokenizer: Tokenizer
    bos: int | None
    eos: tuple[int, ...]
    add_bos: bool
    separator: int
    chat_template: str | None = None
    special: dict[str, str] = field(default_factory=dict)
    where: str = ""

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, ``bos`` first when ``add_bos`` says so and the text does not write it out itself (chat templates do)."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
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


def separator_of(tokenizer: Tokenizer, bos: int | None, eos: tuple[int, ...], where: str) -> int:
    """The id that opens a document in training data.

    It should be what the model saw between documents in pretraining. That is ``<|endoftext|>`` where the vocabulary has it (an
    instruct model such as SmolLM2's has made another token its bos since), else bos (Llama 2 and 3), else the first eos.
    """
    ids = [tokenizer.token_to_id(DOCUMENT_START), bos, *eos]
    for number in ids:
        if number is not None:
            return number
    raise UserError(
        f"{where}: its tokenizer has neither {DOCUMENT_START} nor a bos nor an eos token, so nothing can open a document"
    )


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """Raise a UserError when the tokenizer has ids for which the model has no embedding. Fewer are fine: models pad."""
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocab_size:
        raise UserError(
            f"{where}: its tokenizer has {largest + 1:,} ids, but embed_tokens.weight only {vocab_size:,} rows; they do not belong "
            f"together: take the tokenizer that came with the weights"
        )


def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """JSON without HTML escapes, which Jinja's own filter would add."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
