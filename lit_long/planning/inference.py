"""Memory of one GPU that measures: the bytes of all tensors where an evaluation can have the most. Nothing is kept for a backward pass, so that is one
layer's activations at their widest, or a chunk of logits; beside them the weights, the KV cache and the texts.

Ranks that share the model (generation/sharded.py) have their part of each matrix, of heads, hidden units and words, and of the cache; the stream
and the norms are whole on each. Counted is eager mode as the model is written (model/llama.py). Not counted: what is in no tensor (hardware.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lit_long.config import EvaluationConfig, ModelConfig, StageConfig
from lit_long.config.mesh import evaluation_ranks
from lit_long.planning.flops import block_vectors, parameters
from lit_long.planning.memory import BATCH, BYTES_A_LOGIT, FEWEST

PREFILL_CHUNK = 2048  # tokens of prompts whose widest activations generation lets exist at once (generation/decode.py)
WIDTHS = {"32-true": 4, "bf16-true": 2}


@dataclass(frozen=True)
class Reading:
    """Texts that go through the model together.

    rows     of them
    length   tokens of each, the answer included
    cached   whether keys and values are kept, for an answer; else losses by token are computed
    """

    rows: int
    length: int
    cached: bool


@dataclass(frozen=True)
class Need:
    """Bytes of each kind at the moment of the most memory."""

    weights: float
    cache: float
    activations: float
    texts: float

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.activations + self.texts


def readings(evaluation: EvaluationConfig, context: int) -> Iterator[Reading]:
    """All that an evaluate stage reads together. Of its tasks it is not known how long their texts are: no longer than allowed."""

    def at_once(length: int) -> int:
        return max(1, evaluation.batch_tokens // length)

    if evaluation.domains:
        yield from (Reading(at_once(length), length, False) for length in evaluation.lengths)
    yield from (Reading(at_once(length), length, True) for length in evaluation.asked_lengths)
    if evaluation.tasks:
        longest = max(evaluation.task_lengths, default=context)
        yield from (Reading(at_once(longest), longest, cached) for cached in (False, True))


def need(config: StageConfig, ranks: int | None = None, precision: str | None = None) -> Need:
    """What a GPU of an evaluate stage needs.

    Args:
        ranks: that share the model; those that the stage's trainer has if not given.
        precision: instead of the evaluation's.
    """
    model, evaluation = config.model, config.evaluation
    ranks, width = ranks or evaluation_ranks(config), WIDTHS[precision or evaluation.precision]
    held = max(evaluation.lengths, default=0) * evaluation.sequences if evaluation.domains else 0
    texts = held * (BATCH + 4 + 1)  # tokens, targets, ids and positions; nats and hits
    moments = [
        (cache_size(model, each, ranks, width), activations(model, each, ranks, width, config.trainer.loss_memory))
        for each in readings(evaluation, model.context)
    ]
    cache, most = max(moments, key=sum, default=(0.0, 0.0))
    return Need(weights(model, ranks, width), cache, most, texts)


def weights(model: ModelConfig, ranks: int, width: int) -> float:
    """Of one rank: its part of each matrix and of most biases, and the whole norms."""
    whole = model.n_layers * block_vectors(model)[0] + model.d_model
    return width * ((parameters(model) - whole) / ranks + whole)


def cache_size(model: ModelConfig, reading: Reading, ranks: int, width: int) -> float:
    """Keys and values of all layers; those with a window keep more than it where a beginning is shared, or an answer is taken back."""
    numbers = 2 * model.n_layers * model.n_kv_heads * model.head_dim * reading.rows * reading.length
    return width * numbers / ranks if reading.cached else 0.0


def activations(model: ModelConfig, reading: Reading, ranks: int, width: int, loss_memory: int) -> float:
    """The widest of attention, feed-forward and logits."""
    tokens = reading.rows * reading.length
    if reading.cached:  # prompts are read together up to a chunk, or alone and whole
        tokens = min(tokens, max(reading.length, PREFILL_CHUNK))
    at_once = min(tokens, PREFILL_CHUNK) if reading.cached else tokens
    stream, queries, keys, hidden, words = (
        model.d_model,
        model.n_heads * model.head_dim / ranks,
        model.n_kv_heads * model.head_dim / ranks,
        model.d_ffn / ranks,
        model.vocab_size,
    )
    # The stream before the layer, its norm, q, k and v before and after the rotation, what is attended to and its projection
    attention = tokens * width * (2 * stream + max(3 * queries + 3 * keys, 2 * queries + 3 * keys + stream))
    if width == 4 and queries != keys:
        attention += tokens * width * 2 * queries  # every head gets keys and values of its own (model/attention.py)
    # The stream before and after attention, its norm; gate, up, silu(gate) and their product
    feed_forward = width * (2 * tokens * stream + at_once * (stream + max(4 * hidden, 3 * hidden + stream)))
    chunk = min(max(FEWEST, loss_memory // (BYTES_A_LOGIT * words)), tokens) if not reading.cached else reading.rows
    own = width * words / ranks
    gathered = 2 * width * words + own if ranks > 1 else own  # parts, and these side by side
    logits = tokens * width * stream + chunk * max(gathered, own + 4 * words * (width != 4), 8 * words)
    return max(attention, feed_forward, logits) + 6 * model.head_dim * tokens
