"""FIRST-SENTENCE-RETRIEVAL (Xiong et al. 2023, §4.1): the model is asked, after the text, for the text's first sentence.

Scored teacher-forced: each answer token is predicted with the true ones before it. The figures are therefore called token
accuracy and nats; the paper's ROUGE-L is of generated text.
"""

from __future__ import annotations

from typing import Any

import torch

from lit_long.config import EvaluationConfig
from lit_long.data.retrieval import RetrievalExample, retrieval_examples
from lit_long.data.store import Store
from lit_long.evaluation.perplexity import token_losses
from lit_long.model.batch import NO_LOSS, Batch
from lit_long.model.llama import Llama


def answer_batch(examples: list[RetrievalExample]) -> Batch:
    """Examples of one length as a batch whose only targets are the answers' tokens."""
    tokens = torch.stack([torch.as_tensor(example.tokens, dtype=torch.int64) for example in examples])
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    for row, example in enumerate(examples):
        targets[row, : example.answer_start - 1] = NO_LOSS
        targets[row, example.answer_stop - 1 :] = NO_LOSS
    positions = torch.arange(inputs.shape[1]).expand_as(inputs)
    return Batch(inputs, targets, torch.zeros_like(inputs), positions)


def retrieval(
    model: Llama, store: Store, evaluation: EvaluationConfig, device: torch.device, advance: Any
) -> list[dict[str, Any]]:
    """Token accuracy and mean nats at every length; the same texts at each."""
    rows: list[dict[str, Any]] = []
    longest = max(evaluation.retrieval_lengths)
    for length in evaluation.retrieval_lengths:
        examples = retrieval_examples(store, length, evaluation.retrieval_examples, max_length=longest)
        batch = answer_batch(examples).to(device)
        nats, hits = token_losses(model, batch, max(1, evaluation.batch_tokens // length), advance)
        scored = batch.targets != NO_LOSS
        common = {"domain": "docs", "length": length, "tokens": int(scored.sum()), "examples": len(examples)}
        rows.append({"metric": "retrieval_accuracy", "value": float(hits[scored].double().mean()), **common})
        rows.append({"metric": "retrieval_nats", "value": float(nats[scored].double().mean()), **common})
    return rows
