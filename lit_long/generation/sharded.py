"""A model that is run and not trained, shared by the ranks of a group: each has some of the heads, hidden units and words, and of the cached keys
(tensor parallelism, Shoeybi et al. 2019).

Its weights are plain tensors, with an all-reduce where a product is a sum over ranks: after attention, after the feed-forward and in the
embedding. (Training's DTensors, which gradients need, cost more per step of decoding than the products.) All ranks read the same tokens, and get
the same hidden states and, by an all-gather, the same logits. So whatever asks the model runs on every rank as it runs on one.
"""

from __future__ import annotations

import functools
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from lit_long.model.llama import Block, Llama

ROWS, COLUMNS = Shard(0), Shard(1)
NORMS = ("self_attn.q_norm", "self_attn.k_norm")


def cuts(block: Block) -> dict[str, Shard]:
    """How the weights of a block are cut; of matrices that are cut by columns each rank's product is a part of the sum."""
    rows = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"]
    rows += ["mlp.gate_proj"] if block.mlp.gated else []
    rows += NORMS if block.self_attn.qk_norm == "layer" else ()
    return dict.fromkeys(rows, ROWS) | dict.fromkeys(("self_attn.o_proj", "mlp.down_proj"), COLUMNS)


class ShardedVocabulary:
    """The vocabulary dealt to the ranks of a group in equal parts, in order (`lit_long.model.loss.Vocabulary`)."""

    def __init__(self, group: ProcessGroup, size: int) -> None:
        self.group, self.ranks = group, group.size()
        self.first = group.rank() * (size // self.ranks)

    def rows(self, head_VD: Tensor) -> Tensor:
        return head_VD

    def largest(self, x: Tensor) -> Tensor:
        dist.all_reduce(x, dist.ReduceOp.MAX, self.group)
        return x

    def total(self, x: Tensor) -> Tensor:
        dist.all_reduce(x, dist.ReduceOp.SUM, self.group)
        return x

    def gather(self, logits_NV: Tensor) -> Tensor:
        parts = [torch.empty_like(logits_NV) for _ in range(self.ranks)]
        dist.all_gather(parts, logits_NV.contiguous(), self.group)
        return torch.cat(parts, dim=-1)


def join_ranks(device: torch.device, patience: timedelta) -> DeviceMesh:
    """The mesh of all ranks, which torchrun started, over NCCL on GPUs and gloo on CPUs. Every rank calls.

    Args:
        device: this rank's.
        patience: how long a rank waits for another in a collective.
    """
    how: dict[str, Any] = {"backend": "gloo"}
    if device.type == "cuda":
        torch.cuda.set_device(device)
        how = {"backend": "nccl", "device_id": device}
    dist.init_process_group(timeout=patience, **how)
    return DeviceMesh.from_group(dist.group.WORLD, device.type)


def shard_weights(model: Llama, mesh: DeviceMesh) -> None:
    """Cut the matrices of a model on the meta device, in place: what loads weights (pretrained/weights.py) then keeps this rank's part of each."""
    heads = [model.embed_tokens] if model.config.tie_embeddings else [model.embed_tokens, model.lm_head]
    cut = [(module, ROWS) for module in heads]
    cut += [(block.get_submodule(name), how) for block in model.layers for name, how in cuts(block).items()]
    for module, how in cut:
        module.weight = nn.Parameter(distribute_tensor(module.weight, mesh, [how], src_data_rank=None), requires_grad=False)
        if how == ROWS and getattr(module, "bias", None) is not None:
            module.bias = nn.Parameter(distribute_tensor(module.bias, mesh, [how], src_data_rank=None), requires_grad=False)


def share_products(model: Llama, mesh: DeviceMesh) -> None:
    """Make a model whose weights are cut and loaded ready to be run, in place: its parameters are this rank's parts, as plain tensors."""
    model.vocabulary = vocabulary = ShardedVocabulary(mesh.get_group(), model.config.vocab_size)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if hasattr(parameter, "to_local"):
                setattr(module, name, nn.Parameter(parameter.to_local(), requires_grad=False))
    for block in model.layers:
        for name, how in cuts(block).items():
            module = block.get_submodule(name)
            if how == COLUMNS:
                module.register_forward_hook(lambda _, inputs, part: vocabulary.total(part))
                if module.bias is not None and vocabulary.first:  # the sum has it once
                    module.bias.zero_()
            if name in NORMS:
                module.forward = functools.partial(normalise_all, module, vocabulary)

    def embed(tokens_BT: Tensor) -> Tensor:
        rows_VD, own_BT = model.embed_tokens.weight, tokens_BT - vocabulary.first
        elsewhere_BT = (own_BT < 0) | (own_BT >= len(rows_VD))
        return vocabulary.total(
            F.embedding(own_BT.masked_fill(elsewhere_BT, 0), rows_VD).masked_fill_(elsewhere_BT[..., None], 0.0)
        )

    model.embed_tokens.forward = embed


def normalise_all(norm: nn.RMSNorm, vocabulary: ShardedVocabulary, x: Tensor) -> Tensor:
    """RMSNorm of the heads of all ranks as one vector, of which this rank has a part; so it has of the weight."""
    wide = x.float()
    squares = vocabulary.total(wide.square().sum(-1, keepdim=True)) / (x.shape[-1] * vocabulary.ranks)
    return (wide * torch.rsqrt(squares + norm.eps)).to(x.dtype) * norm.weight


def as_first(value: Any, mesh: DeviceMesh | None) -> Any:
    """What the first rank has for ``value``, on every rank; without a mesh the value itself."""
    if mesh is None:
        return value
    found = [value]
    dist.broadcast_object_list(found, src=0, group=mesh.get_group())
    return found[0]
