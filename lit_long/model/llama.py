"""Llama 2 (Touvron et al. 2023b) on a page: RMSNorm before each block, grouped-query attention, SwiGLU, no biases. And, switched on in
`ModelConfig`, what today's families do otherwise: normalised queries and keys, norms after, biases, multipliers, ReLU².

Shape legend:
    B sequences   T tokens a sequence   D model width   V vocabulary
    H query heads   G key-value heads (H is a multiple of G)   K components a head
    S tokens that are looked at: T, and in generation also those before

The model takes a `PositionalEncoder`, or a `LayerPattern` of several, and never asks which one it is. Parameters carry Hugging Face's names without their
"model." prefix, and queries and keys its half-split layout. Training, generation, parallelism and file formats are elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_long.batch import Batch
from lit_long.config import ModelConfig, UserError
from lit_long.model.attention import AttentionMask, CacheView, attention, attention_masks, group_slopes
from lit_long.model.fused_loss import CHUNKED
from lit_long.model.loss import Vocabulary, computing, summed_nats, token_nats
from lit_long.positions import PositionalEncoder, Rotation
from lit_long.positions.layers import LayerPattern, as_pattern
from lit_long.positions.rotary import apply_rotary

INIT_STD = 0.02


class RMSNorm(nn.RMSNorm):
    """torch's, with the weight in the precision of what it multiplies, as autocast has it with matrices: kernels want one precision."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Grouped-query self-attention with rotated queries and keys.

    ``fused_proj``, if set, computes the projections of x in one product (generation/prepacking.py); likewise in `FeedForward`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim, self.qk_norm = config.head_dim, config.qk_norm
        queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.d_model, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.d_model, bias=config.o_bias)
        if self.qk_norm != "none":
            self.q_norm = RMSNorm(queries if self.qk_norm == "layer" else config.head_dim, eps=config.norm_eps)
            self.k_norm = RMSNorm(keys if self.qk_norm == "layer" else config.head_dim, eps=config.norm_eps)
        self.query_factor = config.attention_multiplier * math.sqrt(config.head_dim) or 1.0  # attention divides by √head_dim
        self.fused_proj: nn.Module | None = None

    def forward(self, x_BTD: Tensor, rotation: Rotation, mask: AttentionMask, cache: CacheView | None = None) -> Tensor:
        q, k, v = self.fused_proj(x_BTD) if self.fused_proj else (self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD))
        if self.qk_norm == "layer":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (heads.unflatten(-1, (-1, self.head_dim)) for heads in (q, k, v))
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        q_BHTK, k_BGTK, v_BGTK = (heads.transpose(1, 2) for heads in (scaled(q, self.query_factor), k, v))
        q_BHTK = apply_rotary(q_BHTK, rotation.cos_q, rotation.sin_q)
        if cache is None:
            k_BGSK, v_BGSK = apply_rotary(k_BGTK, rotation.cos_k, rotation.sin_k), v_BGTK
        else:
            k_BGSK, v_BGSK = cache.extend(k_BGTK, v_BGTK, rotation)
            q_BHTK = q_BHTK[:, :, -cache.wanted :]
        out_BHTK = attention(q_BHTK, k_BGSK, v_BGSK, mask, cache.padding_mask if cache else None)
        return self.o_proj(out_BHTK.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU; or ReLU², which has no gate."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated = config.activation == "swiglu"
        if self.gated:
            self.gate_proj = nn.Linear(config.d_model, config.d_ffn, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.d_model, config.d_ffn, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.d_ffn, config.d_model, bias=config.mlp_bias)
        self.fused_proj: nn.Module | None = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.gated:
            return self.down_proj(F.relu(self.up_proj(x_BTD)).square())
        gate, up = self.fused_proj(x_BTD) if self.fused_proj else (self.gate_proj(x_BTD), self.up_proj(x_BTD))
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on the normalised residual stream; or each normalised before it is added to the stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_first, self.factor = config.norm == "pre", config.residual_multiplier
        if self.norm_first:
            self.input_layernorm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.mlp = FeedForward(config)
        if not self.norm_first:
            self.post_feedforward_layernorm = RMSNorm(config.d_model, eps=config.norm_eps)

    def forward(self, x_BTD: Tensor, rotation: Rotation, mask: AttentionMask, cache: CacheView | None = None) -> Tensor:
        wanted_BTD = x_BTD if cache is None else x_BTD[:, -cache.wanted :]
        x_BTD = wanted_BTD + scaled(self.attend(x_BTD, rotation, mask, cache), self.factor)
        if cache is None:
            return x_BTD + scaled(self.feed_forward(x_BTD), self.factor)
        for piece_BTD in x_BTD.split(cache.chunk, dim=1):  # in place: a long prompt needs the room, and nothing is differentiated
            piece_BTD += scaled(self.feed_forward(piece_BTD), self.factor)
        return x_BTD

    def attend(self, x_BTD: Tensor, rotation: Rotation, mask: AttentionMask, cache: CacheView | None) -> Tensor:
        if self.norm_first:
            return self.self_attn(self.input_layernorm(x_BTD), rotation, mask, cache)
        return self.post_attention_layernorm(self.self_attn(x_BTD, rotation, mask, cache))

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        if self.norm_first:
            return self.mlp(self.post_attention_layernorm(x_BTD))
        return self.post_feedforward_layernorm(self.mlp(x_BTD))


def scaled(x: Tensor, factor: float) -> Tensor:
    """The product; x itself where it would be the same."""
    return x if factor == 1 else x * factor


class Llama(nn.Module):
    """A causal language model. ``model(batch)`` returns its loss as (sum of nats, number of tokens).

    Args:
        encoder: the positional encoder, or how layers differ; it holds no parameters.
        loss_chunk: tokens whose logits may exist at once.
        loss: the backend of head and loss in training (model/fused_loss.py).

    ``vocabulary``, if set, has dealt the words of embedding and head to several ranks, which share each matrix, too (training/tensor_parallel.py,
    generation/sharded.py).
    """

    def __init__(
        self, config: ModelConfig, encoder: PositionalEncoder | LayerPattern, loss_chunk: int = 2048, loss: str = CHUNKED
    ) -> None:
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise UserError(f"model.n_heads={config.n_heads} must be a multiple of model.n_kv_heads={config.n_kv_heads}")
        self.config, self.pattern, self.loss_chunk, self.loss = config, as_pattern(encoder), loss_chunk, loss
        self.vocabulary: Vocabulary | None = None
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, eps=config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def draw_weights(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Each parameter's name and first values, whole and on the CPU: ones for norms, zeros for biases, else Normal(0, 0.02), output projections divided by √(2·layers).
        The same for a seed on any device and number of ranks."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            drawn = torch.full(parameter.shape, 0.0 if name.endswith("bias") else 1.0, dtype=parameter.dtype, device="cpu")
            if parameter.ndim > 1:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                drawn.normal_(0.0, INIT_STD / math.sqrt(2 * self.config.n_layers) if residual else INIT_STD, generator=generator)
            yield name, drawn

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Give a model that is not sharded the values of `draw_weights`."""
        parameters = dict(self.named_parameters())
        for name, drawn in self.draw_weights(seed):
            parameters[name].copy_(drawn)

    def forward(self, batch: Batch, per_token: bool = False) -> tuple[Tensor, Tensor]:
        """(sum of nats, number of tokens); or with ``per_token`` (nats [B, T], greedy hits [B, T]), without gradients.

        Head and loss run in here, so that no caller materialises the logits by mistake and sharded or tied weights are
        gathered once.
        """
        hidden_BTD = self.hidden_states(batch)
        if per_token:
            return token_nats(hidden_BTD, batch.targets, self.head_weight, self.loss_chunk, self.vocabulary)
        nats, tokens = summed_nats(
            hidden_BTD, batch.targets, self.head_weight, self.loss_chunk, batch.weights, self.vocabulary, self.loss
        )
        return nats, tokens if batch.divisor is None else batch.loss_tokens()

    def hidden_states(self, batch: Batch) -> Tensor:
        """What the head takes [B, T, D]: normalised outputs of the last layer, divided by ``logits_scaling``."""
        dtype, groups = computing(self.embed_tokens.weight), self.pattern.groups
        rotations = [group.rotation(batch.positions, batch.length).widened() for group in groups]
        slopes = group_slopes(groups, self.config.n_heads, batch.tokens.device)
        masks = attention_masks(batch, dtype, self.config.head_dim, [group.window for group in groups], slopes)
        return self.through_layers(batch.tokens, rotations, masks)

    def through_layers(
        self,
        tokens_BT: Tensor,
        rotations: Sequence[Rotation],
        masks: Sequence[AttentionMask],
        caches: Sequence[CacheView] | None = None,
    ) -> Tensor:
        """What the head takes [B, T, D]; in generation each layer has its cache, and nothing is differentiated.

        Args:
            rotations, masks: of each group of layers.
        """
        x_BTD = scaled(self.embed_tokens(tokens_BT), self.config.embedding_multiplier)
        for number, layer in enumerate(self.layers):
            group = self.pattern.place(number)
            x_BTD = layer(x_BTD, rotations[group], masks[group], caches[number] if caches else None)
        return scaled(self.norm(x_BTD), 1 / self.config.logits_scaling)

    @property
    def kv_heads(self) -> int:
        """Key-value heads that are here, of those that ranks share."""
        return self.config.n_kv_heads // (self.vocabulary.ranks if self.vocabulary else 1)

    @property
    def head_weight(self) -> Tensor:
        """[V, D]; the embedding's when they are tied."""
        return self.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] of hidden states [N, D]."""
        if self.vocabulary is None:
            return F.linear(hidden_ND, self.head_weight)
        return self.vocabulary.gather(F.linear(hidden_ND, self.vocabulary.rows(self.head_weight)))

    def logits(self, batch: Batch) -> Tensor:
        """All logits [B, T, V] at once: for short texts and tests, not for training."""
        return self.head(self.hidden_states(batch))
