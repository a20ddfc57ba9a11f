"""Perplexity: over the same tokens cut to several context lengths, by position in the longest, and under a sliding window.

Nats and tokens are summed, and divided once; windows are never averaged. A sample is one document. An evaluate stage reads whole batches
(`text_measurements`), `python -m lit_long.evaluate` a document at a time, which it can resume; both score with the same functions.

* `Perplexity`: the first ``max(lengths)`` tokens of each document, cut into sequences of each length (LLaMA 2 Long, Table 5 and Figure 1).
  A token early in a sequence has little context, so the value at length c is a mean over contexts of 0 to c - 1 tokens.
* `SlidingPerplexity`: a window of ``length`` tokens moves on by ``stride``, and only what no window before it has predicted counts; every
  token but the first ``length`` is predicted from at least length - stride ones (Press et al. 2022; PI's tables, with a stride of 256).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_long.batch import NO_LOSS, Batch
from lit_long.config import EvaluationConfig, UserError
from lit_long.data.held_out import held_out_sequences, rows_of_document
from lit_long.data.token_store import Store
from lit_long.evaluation.evaluated_model import EvaluatedModel, token_losses
from lit_long.evaluation.in_memory_corpus import InMemoryCorpus
from lit_long.evaluation.measurement import BY_POSITION, PERPLEXITY, Measurement
from lit_long.evaluation.samples import Key
from lit_long.evaluation.statistics import exponential, ratio
from lit_long.evaluation.task import Sample, Task, by
from lit_long.model.llama import Llama


def text_measurements(
    model: Llama, store: Store, evaluation: EvaluationConfig, device: torch.device, advance: Callable[[int], None]
) -> list[Measurement]:
    """Of an evaluate stage: perplexity for every domain and length, and the loss by position at the longest length."""
    found: list[Measurement] = []
    longest = max(evaluation.lengths, default=0)
    for domain in evaluation.domains:
        for length in evaluation.lengths:
            batch = held_out_sequences(store, domain, length, evaluation.sequences, longest, evaluation.skip).to(device)
            nats_BT, _ = token_losses(model, batch, max(1, evaluation.batch_tokens // length), advance)
            found.append(perplexity(nats_BT, batch, domain, rows_of_document(store, domain, length, longest)))
            if length == longest:
                found += loss_by_position(nats_BT, batch, domain)
    return found


def perplexity(nats_BT: Tensor, batch: Batch, domain: str, rows: int = 1) -> Measurement:
    """exp(mean nats per token) over the whole batch, of which each ``rows`` sequences are a document."""
    nats_D, tokens_D = by_document(nats_BT, rows), by_document(batch.targets != NO_LOSS, rows)
    mean = mean_nats(nats_D, tokens_D, float(nats_BT.double().sum()))
    each = [
        nats / tokens for nats, tokens in zip(nats_D, tokens_D, strict=True) if tokens
    ]  # so that two models can be compared text by text
    about = {"unit": "documents", "tokens": int(sum(tokens_D)), "settings": {"nats": mean["value"], "document_nats": each}}
    return Measurement(PERPLEXITY, domain, batch.tokens.shape[1], **exponential(mean), **about)


def loss_by_position(nats_BT: Tensor, batch: Batch, domain: str) -> list[Measurement]:
    """Mean nats per token in each position bin; ``length`` is the bin's upper edge. A sequence is a document."""
    found, start = [], 0
    for edge in position_edges(batch.tokens.shape[1]):
        nats_BK, tokens_B = nats_BT[:, start:edge], by_document(batch.targets[:, start:edge] != NO_LOSS)
        if sum(tokens_B):  # of instruction data only answers are predicted
            mean = mean_nats(by_document(nats_BK), tokens_B, float(nats_BK.double().sum()))
            found.append(Measurement(BY_POSITION, domain, edge, **mean, unit="documents", tokens=int(sum(tokens_B))))
        start = edge
    return found


def by_document(values_BT: Tensor, rows: int = 1) -> list[float]:
    """Sums over each ``rows`` sequences."""
    return values_BT.double().sum(1).reshape(-1, rows).sum(1).tolist()


def mean_nats(nats_D: Sequence[float], tokens_D: Sequence[float], total: float | None = None) -> dict[str, Any]:
    """Σ nats / Σ tokens over documents, with its interval. ``total``: Σ nats where it was summed at once, which rounds otherwise."""
    found = ratio(nats_D, tokens_D)
    return found if total is None else found | {"value": total / sum(tokens_D)}


@dataclass
class Perplexity(Task):
    """``sequences``: documents of each domain, at most. ``smooth``: positions to a bin of the loss by position; 0 = bins that grow."""

    name: ClassVar[str] = "perplexity"
    prompt: ClassVar[str] = "none"

    texts: InMemoryCorpus | Store
    data: str
    domains: list[str]
    lengths: list[int]
    sequences: int = 4
    smooth: int = 0

    def settings(self) -> dict[str, Any]:
        settings = {"data": self.data, "longest": max(self.lengths), "sequences": self.sequences, "smooth": self.smooth}
        return settings | targets_of(self.texts, self.domains)

    def keys(self) -> list[Key]:
        return [
            Key(domain, length, index)
            for domain in self.domains
            for length in self.lengths
            for index in range(len(self.batch(domain, length).tokens) // self.rows(domain, length))
        ]

    def cost(self, key: Key) -> int:
        return key.length * self.rows(key.domain, key.length)

    def rows(self, domain: str, length: int) -> int:
        """Sequences of a document."""
        return rows_of_document(self.texts, domain, length, max(self.lengths))

    def batch(self, domain: str, length: int) -> Batch:
        """All sequences of that length."""
        return held_out_sequences(self.texts, domain, length, self.sequences, max(self.lengths))

    def measure(self, evaluated: EvaluatedModel, keys: list[Key]) -> Iterator[Sample]:
        longest, length = max(self.lengths), keys[0].length
        batch, rows = self.batch(keys[0].domain, length), self.rows(keys[0].domain, length)
        edges = edges_of(longest, self.smooth)
        for key in keys:
            piece = batch.rows(key.index * rows, (key.index + 1) * rows)
            nats = evaluated.nats(piece).double()
            record: dict[str, Any] = {"nats": float(nats.sum()), "tokens": int(piece.loss_tokens())}
            if length == longest:
                bins = [slice(low, high) for low, high in itertools.pairwise([0, *edges])]
                record[BY_POSITION] = [float(nats[:, each].sum()) for each in bins]
                if int(piece.loss_tokens()) < longest:  # of conversations only answers are predicted
                    record["targets"] = [int((piece.targets[:, each] != NO_LOSS).sum()) for each in bins]
            yield key, record

    def scores(self, samples: list[dict[str, Any]]) -> list[Measurement]:
        rows = []
        for (domain, length), group in by(samples, "domain", "length"):
            nats = mean_nats([each["nats"] for each in group], [each["tokens"] for each in group])
            about = {"unit": "documents", "tokens": sum(each["tokens"] for each in group)}
            rows.append(Measurement(PERPLEXITY, domain, length, **exponential(nats), **about))
            rows.append(Measurement("nats", domain, length, **nats, **about))
        edges = edges_of(max(self.lengths), self.smooth)
        for (domain,), group in by([each for each in samples if BY_POSITION in each], "domain"):
            for place, (low, high) in enumerate(itertools.pairwise([0, *edges])):
                tokens = [each["targets"][place] if "targets" in each else high - low for each in group]
                if sum(tokens):
                    value = mean_nats([each[BY_POSITION][place] for each in group], tokens)
                    rows.append(Measurement(BY_POSITION, domain, high, **value, unit="documents", tokens=sum(tokens)))
        return rows


def targets_of(texts: InMemoryCorpus | Store, domains: list[str]) -> dict[str, Any]:
    """What of instruction data is predicted, as a setting of the samples: those of 0.1 joined conversations below the longest length."""
    return {"targets": "answers"} if set(domains) & set(texts.conversations) else {}


def position_edges(length: int) -> list[int]:
    """Upper edges of the position bins: 16, 24, 32, 48, 64, 96, … up to ``length``."""
    edges = sorted({factor * 2**power // 2 for power in range(4, 31) for factor in (2, 3)})
    return [edge for edge in edges if edge < length] + [length]


def edges_of(length: int, smooth: int) -> list[int]:
    """Upper edges of the position bins: every ``smooth`` positions (LLaMA 2 Long, Appendix C: 500), or growing ones."""
    return position_edges(length) if smooth == 0 else [*range(smooth, length, smooth), length]


@dataclass
class SlidingPerplexity(Task):
    """``tokens`` of each document are predicted, each once."""

    name: ClassVar[str] = "sliding_perplexity"
    prompt: ClassVar[str] = "none"

    texts: InMemoryCorpus | Store
    data: str
    domains: list[str]
    lengths: list[int]
    tokens: int
    stride: int = 256
    sequences: int = 4

    def settings(self) -> dict[str, Any]:
        settings = {"data": self.data, "tokens": self.tokens, "stride": self.stride, "sequences": self.sequences}
        return settings | targets_of(self.texts, self.domains)

    def keys(self) -> list[Key]:
        return [
            Key(domain, length, index)
            for domain in self.domains
            for length in self.lengths
            for index in range(len(held_out_sequences(self.texts, domain, self.tokens, self.sequences, self.tokens).tokens))
        ]

    def cost(self, key: Key) -> int:
        return key.length * (2 + (self.tokens - key.length - 1) // self.stride)

    def check(self, evaluated: EvaluatedModel) -> None:
        super().check(evaluated)
        for length in self.lengths:
            sliding(*torch.zeros(2, self.tokens, dtype=torch.int64), length, self.stride)

    def measure(self, evaluated: EvaluatedModel, keys: list[Key]) -> Iterator[Sample]:
        texts = held_out_sequences(self.texts, keys[0].domain, self.tokens, self.sequences, self.tokens)
        for key in keys:
            windows = sliding(texts.tokens[key.index], texts.targets[key.index], key.length, self.stride)
            yield key, {"nats": float(evaluated.nats(windows).double().sum()), "tokens": int(windows.loss_tokens())}

    def scores(self, samples: list[dict[str, Any]]) -> list[Measurement]:
        rows = []
        for (domain, length), group in by(samples, "domain", "length"):
            nats = mean_nats([each["nats"] for each in group], [each["tokens"] for each in group])
            about = {"unit": "documents", "tokens": sum(each["tokens"] for each in group)}
            settings = {"stride": self.stride}
            rows.append(Measurement("sliding_perplexity", domain, length, **exponential(nats), **about, settings=settings))
        return rows


def sliding(tokens_T: Tensor, targets_T: Tensor, window: int, stride: int) -> Batch:
    """Windows [N, window] over a text, such that each of its targets is predicted once, as late in a window as it can be.

    Raises:
        UserError: a stride above the window, which would leave tokens out, or a text shorter than the window.
    """
    count = len(tokens_T)
    if not 0 < stride <= window:
        raise UserError(
            f"stride={stride} must be at least 1 and at most the window of {window} tokens, or tokens would be left out"
        )
    if window > count:
        raise UserError(
            f"sliding_perplexity: a window of {window} tokens does not fit into texts of {count}; choose shorter lengths"
        )
    inputs, targets, predicted = [], [], 0
    for start in [*range(0, count - window, stride), count - window]:
        own = targets_T[start : start + window].clone()
        own[: predicted - start] = NO_LOSS
        inputs.append(tokens_T[start : start + window])
        targets.append(own)
        predicted = start + window
    inputs_NT = torch.stack(inputs)
    positions = torch.arange(window).expand_as(inputs_NT)
    return Batch(inputs_NT, torch.stack(targets), torch.zeros_like(inputs_NT), positions, mask_documents=False)
