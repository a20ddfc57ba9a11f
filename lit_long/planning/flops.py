"""Floating-point operations counted from the shapes: the one place where they are defined.

Forward and backward, with N the weights that take part in a matrix product (head included, embedding look-up not), L layers,
d = heads · head_dim and T tokens of context, a token costs

    6·N + 12·L·T·d   causality ignored, as PaLM and torchtitan count     → mfu
    6·N +  6·L·T·d   what causal attention needs                          → mfu_causal

In a layer with a window of W < T tokens, W stands for T in the first, and in the second 2/T times the pairs of tokens that see each other,
T·W − W(W − 1)/2. Beside an adapter, weights that are frozen have no gradient: they count 4 times, those of the adapter 6.
"""

from __future__ import annotations

from collections.abc import Sequence

from lit_long.config import AdapterConfig, LayersConfig, ModelConfig, StageConfig, typed
from lit_long.config.updates import first_update, number_of_updates, updates_of_run
from lit_long.planning.job import job_layers

Windows = Sequence[int | None]  # of each layer, in tokens; None: it sees all before it. Empty where no layer has one


def block_weights(config: ModelConfig) -> int:
    """Weights of one block's matrix products."""
    feed_forward = (3 if config.activation == "swiglu" else 2) * config.d_ffn
    return config.d_model * (config.head_dim * (2 * config.n_heads + 2 * config.n_kv_heads) + feed_forward)


def block_vectors(config: ModelConfig) -> tuple[int, int]:
    """A block's norms and the biases of o and down; and the biases of the other matrices, which tensor parallelism shards."""
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    whole = 2 * config.d_model + {"none": 0, "head": 2 * config.head_dim, "layer": queries + keys}[config.qk_norm]
    whole += (config.o_bias + config.mlp_bias) * config.d_model
    hidden = (2 if config.activation == "swiglu" else 1) * config.d_ffn
    return whole, config.qkv_bias * (queries + 2 * keys) + config.mlp_bias * hidden


def matmul_weights(config: ModelConfig) -> int:
    """N: weights of all matrix products."""
    return config.n_layers * block_weights(config) + config.vocab_size * config.d_model


def parameters(config: ModelConfig) -> int:
    """All weights: those of matrix products, norms, biases, and the embedding when it is not tied to the head."""
    vectors = config.n_layers * sum(block_vectors(config)) + config.d_model
    return matmul_weights(config) + vectors + (0 if config.tie_embeddings else config.vocab_size * config.d_model)


def adapter_weights(config: ModelConfig, adapter: AdapterConfig) -> int:
    """Weights of an adapter's matrices, two at each of its targets."""
    width, queries, keys = config.d_model, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    sizes = {"q_proj": width + queries, "k_proj": width + keys, "v_proj": width + keys, "o_proj": queries + width}
    feed_forward = ("gate_proj", "up_proj", "down_proj") if config.activation == "swiglu" else ("up_proj", "down_proj")
    sizes |= dict.fromkeys(feed_forward, width + config.d_ffn)
    return config.n_layers * adapter.rank * sum(sizes.get(target, 0) for target in adapter.targets)


def trained_parameters(config: ModelConfig, adapter: AdapterConfig) -> tuple[int, int]:
    """Parameters that are trained: those of hidden matrices, and all others."""
    if not adapter.rank:
        hidden = config.n_layers * block_weights(config)
        return hidden, parameters(config) - hidden
    whole = config.vocab_size * config.d_model + config.n_layers * block_vectors(config)[0] + config.d_model
    return adapter_weights(config, adapter), whole if adapter.train_embeddings_and_norms else 0


def training_flops(config: ModelConfig, tokens: int, attended: float, adapter: AdapterConfig | None = None) -> float:
    """Forward and backward over ``tokens`` tokens. ``attended``: pairs of tokens that are computed, the mean over layers; causality ignored, the sum
    of length² over sequences."""
    weights = trained = matmul_weights(config)
    if adapter is not None and adapter.rank:
        trained = adapter_weights(config, adapter)
        weights += trained
        if adapter.train_embeddings_and_norms and config.tie_embeddings:  # the head is the embedding
            trained += config.vocab_size * config.d_model
    return (4 * weights + 2 * trained) * tokens + 12 * config.n_layers * config.n_heads * config.head_dim * attended


def paper_flops(config: ModelConfig, tokens: float, context: int) -> float:
    """FLOPs as LLaMA 2 Long's Table 10 has them: 72·L·d²·(1 + T/6d) a token (Narayanan et al. 2021, without recomputation).

    Causality is ignored, the feed-forward part is counted as GPT's (8·d² weights), and the vocabulary is left out.
    """
    width = config.d_model
    return 72 * config.n_layers * width**2 * (1 + context / (6 * width)) * tokens


def windows_of(layers: LayersConfig, n_layers: int) -> list[int | None]:
    """The window of each layer."""
    return [window for _, window in job_layers(layers, n_layers)]


def seen(length: float, windows: Windows = ()) -> float:
    """Tokens that a token of a sequence of ``length`` sees, the mean over the sequence and over layers: pairs / length."""
    found = [
        length / 2 if window is None or window >= length else window - window * (window - 1) / 2 / length for window in windows
    ]
    return sum(found) / len(found) if found else length / 2


def seen_in_training(config: StageConfig) -> float:
    """`seen` over all tokens that are trained on, by the curriculum's phases; a sequence that grows counts by its middle."""
    start = first_update(config) / updates_of_run(config)
    total, before = 0.0, start
    for phase in config.curriculum.phases:
        layers = typed(LayersConfig, phase.layers, "curriculum") if phase.layers else config.layers
        length = config.context * (phase.scale + (phase.grow_from or phase.scale)) / 2
        total += max(0.0, phase.until - before) * seen(length, windows_of(layers, config.model.n_layers))
        before = max(before, phase.until)
    return (
        total / (1 - start)
        if config.curriculum.phases
        else seen(config.context, windows_of(config.layers, config.model.n_layers))
    )


def stage_flops(config: StageConfig) -> float:
    """Causal FLOPs of a whole train or evaluate stage; 0 for a data stage. For its share in the sweep's time."""
    if config.kind == "train":
        tokens = config.tokens * number_of_updates(config) / updates_of_run(config)
        return training_flops(config.model, tokens, tokens * seen_in_training(config), config.adapter)
    if config.kind == "evaluate":
        evaluation, longest = config.evaluation, max(config.evaluation.lengths, default=0)
        text = len(evaluation.domains) * evaluation.sequences * longest
        work = [(text, length) for length in evaluation.lengths]
        work += [(evaluation.retrieval_examples * length, length) for length in evaluation.asked_lengths]
        fitted = len(evaluation.query_scales) * len(evaluation.domains) * (evaluation.skip or evaluation.sequences) * longest
        work += [(fitted, longest)] if fitted else []
        windows = windows_of(config.layers, config.model.n_layers)
        return sum(training_flops(config.model, tokens, tokens * seen(length, windows)) for tokens, length in work) / 3
    return 0.0
