"""The constant of a trained model's query scales, fitted to held-out text: SWAN's base and DroPE's coefficient, which their papers fit by perplexity at
the length that is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from lit_long.config import EvaluationConfig
from lit_long.data.held_out import held_out_sequences
from lit_long.data.token_store import Store
from lit_long.evaluation.evaluated_model import token_losses
from lit_long.evaluation.measurement import Measurement
from lit_long.model.llama import Llama


def fit_query_scales(
    model: Llama, store: Store, evaluation: EvaluationConfig, device: torch.device, advance: Callable[[int], None]
) -> list[Measurement]:
    """Give the model's query scales the one of ``evaluation.query_scales`` with which the texts of all domains have the lowest perplexity at the longest
    length; the first of several. The texts are those that ``evaluation.skip`` leaves out of what is measured; without it, those that are measured.

    Returns:
        It, as ``query_scale.fitted``; its setting ``perplexity`` has that with each.
    """
    longest, given = max(evaluation.lengths), model.pattern
    count = evaluation.skip or evaluation.sequences
    batches = [held_out_sequences(store, domain, longest, count, longest) for domain in evaluation.domains]
    tokens = sum(int(batch.loss_tokens()) for batch in batches)
    means = []
    for value in evaluation.query_scales:
        model.pattern = given.with_constant(value)
        rows = max(1, evaluation.batch_tokens // longest)
        nats = [token_losses(model, batch.to(device), rows, advance)[0].double().sum() for batch in batches]
        mean = float(sum(nats)) / tokens
        means.append(math.inf if math.isnan(mean) else mean)
    value = evaluation.query_scales[means.index(min(means))]
    model.pattern = given.with_constant(value)
    tried = {f"{value:g}": math.exp(mean) for value, mean in zip(evaluation.query_scales, means, strict=True)}
    return [Measurement("query_scale.fitted", "all", longest, value, tokens=tokens, settings={"perplexity": tried})]
