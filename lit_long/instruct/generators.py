"""Who is asked: anything that turns requests into replies, in any order. Here, our own engine with any chat model.

A request is answered from its own seed and, on one machine, in a group of its neighbours that is always the same: what was answered
before a command was killed changes nothing that comes after.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch

from lit_long.generation import Sampler, continue_tokens
from lit_long.generation.decode import Sequences
from lit_long.instruct.chunks import Item
from lit_long.instruct.extract import closing_thoughts
from lit_long.model.llama import Llama
from lit_long.tokenizers.tokenizer import ModelTokenizer


@dataclass(frozen=True)
class Request:
    """One question to a model.

    key         of the journal
    item        that it is about; neighbours are answered together
    prompt      a user's message
    begin       what the reply begins with, put into the model's mouth where that is possible
    stop        at which the reply may end, left out of it
    tokens      of the reply, at most
    seed        of this reply
    checked     the question and the answer that are to be judged, if they are
    """

    key: str
    item: Item
    prompt: str
    begin: str
    stop: tuple[str, ...]
    tokens: int
    seed: int
    checked: tuple[str, str] | None = None


class Generator(Protocol):
    """``name`` stands in the manifest and, with ``identity``, decides what may be continued."""

    name: str
    identity: str

    def ask(self, requests: list[Request]) -> Iterator[dict[str, str]]:
        """Replies by key, as they come."""
        ...

    def fits(self, prompt: str, tokens: int) -> bool:
        """Whether a prompt and a reply of so many tokens fit the model."""
        ...


class Local:
    """Our own engine.

    Args:
        batch: requests that are answered together.
        temperature: 0 takes the likeliest tokens; otherwise they are drawn from those that have ``top_p`` together.
    """

    def __init__(
        self,
        name: str,
        identity: str,
        model: Llama,
        tokenizer: ModelTokenizer,
        context: int,
        batch: int = 4,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ) -> None:
        self.identity = f"{identity} batch={batch} temperature={temperature:g} top_p={top_p:g}"
        self.name, self.model, self.tokenizer, self.context, self.batch = name, model, tokenizer, context, batch
        self.temperature, self.top_p = temperature, top_p

    def encoded(self, request: Request) -> list[int]:
        prompt = self.tokenizer.chat([{"role": "user", "content": request.prompt}])
        return self.tokenizer.encode(prompt + closing_thoughts(prompt) + request.begin)

    def ask(self, requests: list[Request]) -> Iterator[dict[str, str]]:
        for group in self.groups(requests):
            sampler = Sampler(self.temperature, self.top_p)
            sampler.streams = [torch.Generator().manual_seed(request.seed) for request in group]
            prompts = [self.encoded(request) for request in group]
            new, stop = max(request.tokens for request in group), sorted({stop for request in group for stop in request.stop})
            texts = continue_tokens(self.model, self.tokenizer, prompts, new, sampler=sampler, stop=stop)
            yield {request.key: request.begin + text for request, text in zip(group, texts, strict=True)}

    def groups(self, requests: Iterable[Request]) -> list[list[Request]]:
        return [list(group) for _, group in groupby(requests, key=lambda request: request.item.number // self.batch)]

    def fits(self, prompt: str, tokens: int) -> bool:
        whole = self.tokenizer.encode(self.tokenizer.chat([{"role": "user", "content": prompt}]))
        return len(whole) + tokens + 8 <= self.context  # 8: what a reply is made to begin with

    @torch.inference_mode()
    def preference(self, request: Request, choices: tuple[str, str]) -> float:
        """Probability that the reply begins with the first choice rather than with the second."""
        prompt = self.encoded(request)
        logits_V = Sequences(self.model, [prompt], 1).read()[0].float()
        first, second = (self.tokenizer.tokenizer.encode(choice, add_special_tokens=False).ids[0] for choice in choices)
        return float(torch.sigmoid(logits_V[first] - logits_V[second]))
