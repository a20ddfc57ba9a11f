"""The model that is measured, with its tokenizer and the range it may be asked about: what every task gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lit_long.batch import Batch
from lit_long.config import UserError
from lit_long.generation import continue_tokens
from lit_long.model.llama import Llama
from lit_long.tokenizers.tokenizer import ModelTokenizer, check_vocabulary

FEW = 4  # prompts in a batch below which reading a shared beginning once saves more than writing together does


def token_losses(model: Llama, batch: Batch, rows: int, advance: Callable[[int], None]) -> tuple[Tensor, Tensor]:
    """Per-token nats [B, T] and greedy hits [B, T], ``rows`` sequences at a time; ``advance`` hears of tokens done."""
    results = []
    for start in range(0, len(batch.tokens), rows):
        piece = batch.rows(start, start + rows)
        results.append(model(piece, per_token=True))
        advance(piece.tokens.numel())
    nats, hits = zip(*results, strict=True)
    return torch.cat(nats), torch.cat(hits)


@dataclass(frozen=True)
class EvaluatedModel:
    """``context``: tokens it may be given, answer included. ``batch_tokens``: tokens that are read at once, beyond one sequence. ``mesh``: the ranks that
    share the model, if several do: each then asks it the same, in the same order.

    Raises:
        UserError: the tokenizer has ids for which the model has no embedding.
    """

    model: Llama
    tokenizer: ModelTokenizer
    context: int
    batch_tokens: int = 4096
    mesh: DeviceMesh | None = None

    def __post_init__(self) -> None:
        check_vocabulary(self.tokenizer.tokenizer, self.model.config.vocab_size, self.tokenizer.where or "the tokenizer")

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what is found; there may be no other."""
        return self.mesh is None or self.mesh.get_rank() == 0

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of text within a prompt: nothing is put before it."""
        return self.tokenizer.pieces(text)

    def require(self, length: int, task: str) -> None:
        """Raise a UserError when a task of ``length`` tokens is beyond the model's range."""
        if length > self.context:
            raise UserError(
                f"{task}: {length:,} tokens are beyond context={self.context:,}, the model's range; choose shorter lengths=[…], or a "
                f"longer context and an encoder that holds it, such as context=32k position=yarn"
            )

    @torch.no_grad()
    def nats(self, batch: Batch) -> Tensor:
        """Nats per token [B, T], on the CPU; 0 where nothing is predicted."""
        device = self.model.embed_tokens.weight.device
        rows = max(1, self.batch_tokens // batch.tokens.shape[1])
        return token_losses(self.model, batch.to(device), rows, lambda tokens: None)[0].cpu()

    def write(self, prompts: Sequence[list[int]], new: int, stop: Sequence[str] = ()) -> Iterator[tuple[int, str]]:
        """What the model writes after each prompt of tokens, the likeliest tokens, as (number of the prompt, text).

        Prompts are read together up to ``batch_tokens``, in the order given.

        Args:
            new: tokens at most.
            stop: strings at which an answer ends.
        """
        start = 0
        while start < len(prompts):
            stop_at, longest = start, 0
            while stop_at < len(prompts):
                longest = max(longest, len(prompts[stop_at]) + new)
                if stop_at > start and longest * (stop_at + 1 - start) > self.batch_tokens:
                    break
                stop_at += 1
            texts = continue_tokens(self.model, self.tokenizer, prompts[start:stop_at], new, stop=stop)
            yield from zip(range(start, stop_at), texts, strict=True)
            start = stop_at

    def write_sharing(self, prompts: Sequence[list[int]], new: int, stop: Sequence[str] = ()) -> Iterator[tuple[int, str]]:
        """Like `write`, of prompts with a common beginning: where few of them fit into ``batch_tokens``, it is read once."""
        if FEW * (max(map(len, prompts)) + new) <= self.batch_tokens:
            yield from self.write(prompts, new, stop)
        else:
            yield from enumerate(continue_tokens(self.model, self.tokenizer, prompts, new, stop=stop, in_turn=True))
