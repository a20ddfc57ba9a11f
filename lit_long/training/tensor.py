"""Tensor parallelism (Shoeybi et al. 2019), from outside: the ranks of a group hold the same tokens and share each matrix product.

    columns   q, k, v, gate, up: each rank makes some of the heads, or of the hidden units, for all tokens
    rows      o, down: each rank's part of the sum; one all-reduce makes it whole, after attention and after the feed-forward
    words     embedding and head: each rank has some of the words (loss.py never needs the logits of the others)

The residual stream and the norms are the same on all ranks. Weights are DTensors, whole to whoever asks for their shape; FSDP2 shards
what is here further.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, PrepareModuleInput, RowwiseParallel, parallelize_module

from lit_long.model.llama import Llama


def share_matrices(model: Llama, mesh: DeviceMesh) -> None:
    """Cut the matrices of ``model``, in place, among the ranks of a 1-D mesh. Every rank holds the same weights, or none yet (meta)."""
    for block in model.layers:
        parallelize_module(block, mesh, block_plan(), src_data_rank=None)
    words: dict[str, ParallelStyle] = {"embed_tokens": RowwiseParallel(input_layouts=Replicate())}
    if not model.config.tie_embeddings:
        words["lm_head"] = ColwiseParallel()
    parallelize_module(model, mesh, words, src_data_rank=None)
    model.vocabulary = SplitVocabulary(mesh, model.config.vocab_size)
    model.loss_chunk *= mesh.size()  # of each token, this rank makes that much fewer logits


def block_plan() -> dict[str, ParallelStyle]:
    """How each matrix of a block is cut. Inputs are declared for attention and feed-forward as wholes, so that the gradients of q, k and
    v (gate and up) are added here before they go between the ranks: one all-reduce, not three."""
    here = (Replicate(), None, None, None)  # x, and what goes with it: rotation, sight, past
    return {
        "self_attn": PrepareModuleInput(input_layouts=here, desired_input_layouts=here),
        "self_attn.q_proj": ColwiseParallel(),
        "self_attn.k_proj": ColwiseParallel(),
        "self_attn.v_proj": ColwiseParallel(),
        "self_attn.o_proj": RowwiseParallel(),
        "mlp": PrepareModuleInput(input_layouts=here[:1], desired_input_layouts=here[:1]),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(),
    }


class SplitVocabulary:
    """The words dealt to the ranks of a mesh in equal parts, in order (`lit_long.model.loss.Vocabulary`)."""

    def __init__(self, mesh: DeviceMesh, words: int) -> None:
        self.group = mesh.get_group()
        self.first = mesh.get_local_rank() * (words // mesh.size())

    def rows(self, head_VD: Tensor) -> Tensor:
        return head_VD.to_local(grad_placements=(Shard(0),))

    def largest(self, x: Tensor) -> Tensor:
        dist.all_reduce(x, dist.ReduceOp.MAX, self.group)
        return x

    def total(self, x: Tensor) -> Tensor:
        dist.all_reduce(x, dist.ReduceOp.SUM, self.group)
        return x
