"""Where a model's attention goes, from one forward pass over held-out texts: how much of it to the first token, the attention sink (Xiao et al. 2024,
2309.17453), and how widely the rest is spread, the entropy of its distribution. OlmPool (Bertsch et al. 2026) compares designs by both.

No T × T tensor is made: the distributions of a block of queries at a time. Shapes: B sequences, H query heads, G key-value heads, T tokens, K components a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_long.batch import Batch
from lit_long.data.held_out import held_out_sequences
from lit_long.data.token_store import Store
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.in_memory_corpus import InMemoryCorpus
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.samples import Key
from lit_long.evaluation.statistics import mean
from lit_long.evaluation.task import Sample, Task, by
from lit_long.model.attention import AttentionMask, observe
from lit_long.model.llama import Llama
from lit_long.model.local import window_mask

BLOCK = 128  # queries whose distributions exist at once
METRICS = ("sink_mass", "entropy")
FULL = "full"  # whether a layer's window, if it has one, hides nothing at that length


@dataclass
class AttentionSpread(Task):
    """Of the first tokens of at most ``sequences`` documents of each domain. A sample holds a number for each layer.

    ``…_full``: the means over layers that see all tokens. In a layer with a window only its first queries see the first token, and its entropy is at
    most the window's logarithm, so the means over all layers tell designs with windows from those without before anything is learned.
    """

    name: ClassVar[str] = "attention"
    prompt: ClassVar[str] = "none/2"

    texts: InMemoryCorpus | Store
    data: str
    domains: list[str]
    lengths: list[int]
    sequences: int = 4

    def settings(self) -> dict[str, Any]:
        return {"data": self.data, "longest": max(self.lengths), "sequences": self.sequences}

    def keys(self) -> list[Key]:
        return [
            Key(domain, length, index)
            for domain in self.domains
            for length in self.lengths
            for index in range(len(self.documents(domain).tokens))
        ]

    def documents(self, domain: str) -> Batch:
        """The same at every length, each as long as the longest."""
        return held_out_sequences(self.texts, domain, max(self.lengths), self.sequences, max(self.lengths))

    def measure(self, evaluated: EvaluatedModel, keys: list[Key]) -> Iterator[Sample]:
        documents, length = self.documents(keys[0].domain), keys[0].length
        for key in keys:
            row = documents.rows(key.index, key.index + 1)
            fields = (each[:, :length] for each in row[:4])
            yield key, spread(evaluated.model, Batch(*fields, mask_documents=row.mask_documents))

    def scores(self, samples: list[dict[str, Any]]) -> list[Measurement]:
        rows = []
        for (domain, length), group in by(samples, "domain", "length"):
            for metric in METRICS:
                layers = list(zip(*(each[metric] for each in group), strict=True))
                whole = [sum(each[metric]) / len(layers) for each in group]
                rows.append(Measurement(metric, domain, length, **mean(whole), unit="documents"))
                if full := [number for number, sees_all in enumerate(group[0][FULL]) if sees_all]:
                    of_full = [sum(each[metric][number] for number in full) / len(full) for each in group]
                    rows.append(Measurement(f"{metric}_full", domain, length, **mean(of_full), unit="documents"))
                for number, values in enumerate(layers):
                    found = mean(values)
                    rows.append(
                        Measurement(f"{metric}_of_layer", domain, length, **found, unit="documents", settings={"layer": number})
                    )
        return rows


@torch.no_grad()
def spread(model: Llama, batch: Batch) -> dict[str, list[Any]]:
    """Of one text, for each layer, means over heads and queries:

    sink_mass   how much of a query's attention goes to the first token, of queries that see it (all but those beyond a window)
    entropy     of a query's distribution, in nats
    full        whether every query sees all tokens before it

    The first query, which sees itself alone, does not count.
    """
    found: dict[str, list[Any]] = {metric: [] for metric in (*METRICS, FULL)}
    vocabulary = model.vocabulary

    def look(q_BHTK: Tensor, k_BGTK: Tensor, mask: AttentionMask) -> None:
        sums = torch.stack(sums_of(q_BHTK, k_BGTK, mask.window))
        if vocabulary is not None:  # ranks share the heads
            sums = vocabulary.total(sums) / vocabulary.ranks
        for metric, value in zip(METRICS, sums.tolist(), strict=True):
            found[metric].append(value)
        found[FULL].append(mask.window is None or mask.window >= q_BHTK.shape[2])

    with observe(look):
        model.hidden_states(batch.to(model.embed_tokens.weight.device))
    return found


def sums_of(q_BHTK: Tensor, k_BGTK: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """Mean mass on the first token, and mean entropy (fp64, []), of rotated queries and keys of texts of one document each."""
    B, H, T, K = q_BHTK.shape
    keys_BHTK = k_BGTK.float().repeat_interleave(H // k_BGTK.shape[1], dim=1)
    sinks = entropies = torch.zeros((), dtype=torch.float64, device=q_BHTK.device)
    for start in range(0, T, BLOCK):
        stop = min(T, start + BLOCK)
        visible_QT = window_mask(stop - start, stop, window or T, q_BHTK.device)
        scores = q_BHTK[:, :, start:stop].float() @ keys_BHTK[:, :, :stop].transpose(2, 3) / math.sqrt(K)
        logs = scores.masked_fill(~visible_QT, -torch.inf).log_softmax(-1)
        shares = logs.exp()
        first = 1 if start == 0 else 0
        sinks = sinks + shares[:, :, first:, 0].double().sum()
        entropies = entropies - (shares * logs.masked_fill(~visible_QT, 0.0))[:, :, first:].double().sum()
    see_the_first = max(1, min(window or T, T) - 1)
    return sinks / (B * H * see_the_first), entropies / (B * H * (T - 1))
