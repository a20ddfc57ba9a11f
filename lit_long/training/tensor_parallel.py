"""Tensor parallelism (Shoeybi et al. 2019), from outside: the ranks of a group hold the same tokens and share each matrix product.

    columns     q, k, v, gate, up: each rank makes some of the heads, or of the hidden units, for all tokens, and normalises them where they are
    rows        o, down: each rank's part of the sum; one all-reduce makes it whole, after attention and after the feed-forward
    vocabulary  embedding and head: each rank has some of the tokens (loss.py never needs the logits of the others)

The residual stream and the norms are the same on all ranks. Weights are DTensors, which show their whole shape to whoever saves or loads
them; FSDP2 shards further what is here.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor import parallel as styles

from lit_long.generation.sharded import ShardedVocabulary
from lit_long.model.llama import Block, Llama


def shard_block(block: Block, mesh: DeviceMesh) -> None:
    """Cut the matrices of ``block``, in place, among the ranks of a 1-D mesh. They all have its weights, or none yet (meta device)."""
    present = {name: style for name, style in block_styles().items() if name != "mlp.gate_proj" or block.mlp.gated}
    styles.parallelize_module(block, mesh, present, src_data_rank=None)
    if block.self_attn.qk_norm != "none":
        for norm in (block.self_attn.q_norm, block.self_attn.k_norm):
            norm.forward = functools.partial(normalise, norm, mesh, block.self_attn.qk_norm == "layer")


def shard_vocabulary(model: Llama, mesh: DeviceMesh) -> None:
    """Shard the vocabulary of embedding, head and loss over the ranks, in place."""
    model.vocabulary = TrainedVocabulary(mesh.get_group(), model.config.vocab_size)
    for module in [model.embed_tokens] if model.config.tie_embeddings else [model.embed_tokens, model.lm_head]:
        rows = distribute_tensor(module.weight, mesh, [Shard(0)], src_data_rank=None)
        module.weight = nn.Parameter(rows, requires_grad=module.weight.requires_grad)
    model.embed_tokens.forward = functools.partial(embed, model.embed_tokens, mesh, model.vocabulary)
    model.loss_chunk *= mesh.size()  # a token has that much fewer logits here


def block_styles() -> dict[str, styles.ParallelStyle]:
    """How each matrix of a block is cut.

    The input of attention, and of the feed-forward, is declared once for all its matrices: their gradients with respect to it are then
    added here before they go between the ranks, in one all-reduce instead of three.
    """
    columns, rows, x = styles.ColwiseParallel(), styles.RowwiseParallel(), (Replicate(),)
    beside = (None, None, None)  # rotation, mask and cache are as they are
    return {
        "self_attn": styles.PrepareModuleInput(input_layouts=x + beside, desired_input_layouts=x + beside),
        "self_attn.q_proj": columns,
        "self_attn.k_proj": columns,
        "self_attn.v_proj": columns,
        "self_attn.o_proj": rows,
        "mlp": styles.PrepareModuleInput(input_layouts=x, desired_input_layouts=x),
        "mlp.gate_proj": columns,
        "mlp.up_proj": columns,
        "mlp.down_proj": rows,
    }


def normalise(norm: nn.RMSNorm, mesh: DeviceMesh, all_heads: bool, x: Tensor) -> Tensor:
    """RMSNorm of this rank's heads: of each, or (``all_heads``) of those of all ranks as one vector. All ranks hold the whole weight; its
    gradient is the sum of theirs."""
    weight = DTensor.from_local(norm.weight.to(x.dtype), mesh, [Replicate()], run_check=False)
    if not all_heads:
        return F.rms_norm(x, norm.normalized_shape, weight.to_local(grad_placements=[Partial()]), norm.eps)
    wide = x.float()
    squares = DTensor.from_local(wide.square().sum(-1, keepdim=True), mesh, [Partial()], run_check=False)
    squares = squares.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
    own = weight.redistribute(placements=[Shard(0)]).to_local()
    return (wide * torch.rsqrt(squares / len(norm.weight) + norm.eps)).to(x.dtype) * own


class TrainedVocabulary(ShardedVocabulary):
    """Of weights that are DTensors."""

    def rows(self, head_VD: Tensor) -> Tensor:
        return head_VD.to_local(grad_placements=(Shard(0),))


def embed(embedding: nn.Embedding, mesh: DeviceMesh, vocabulary: ShardedVocabulary, tokens_BT: Tensor) -> Tensor:
    """Embeddings [B, T, D]: the rows of tokens that are here and zeros for the others, summed over the ranks.

    torch's own RowwiseParallel makes the gradient of the whole vocabulary on every rank.
    """
    rows_VD, own_BT = vocabulary.rows(embedding.weight), tokens_BT - vocabulary.first
    elsewhere_BT = (own_BT < 0) | (own_BT >= len(rows_VD))
    part_BTD = F.embedding(own_BT.masked_fill(elsewhere_BT, 0), rows_VD).masked_fill(elsewhere_BT[..., None], 0.0)
    return DTensor.from_local(part_BTD, mesh, [Partial()], run_check=False).redistribute(placements=[Replicate()]).to_local()
