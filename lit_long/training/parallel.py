"""What training does to the model, from outside, in one visible order: tensor parallelism → activation checkpointing → compile →
FSDP2. (An adapter comes before all of it: adapter.py.)

Names of parameters stay as they are: only the blocks' ``forward`` is replaced.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lit_long.config import UserError, nearest
from lit_long.config.mesh import Mesh
from lit_long.model.attention import AttentionMask
from lit_long.model.llama import Llama
from lit_long.positions import Rotation
from lit_long.training.tensor_parallel import shard_block, shard_vocabulary

CHECKPOINTING = ("none", "selective", "attention", "full")
# In the names of operations
ATTENTION = ("scaled_dot_product", "attend_documents", "attend_segments", "flash_attn", "flash_attention", "varlen_attn")
SHAPES = 64  # compilations of one function that torch allows before it gives up; a growing context needs one for each length


def parallelize(
    model: Llama,
    mesh: DeviceMesh | None = None,
    checkpointing: str = "none",
    compiled: bool = False,
    policy: MixedPrecisionPolicy | None = None,
) -> Llama:
    """Make ``model`` ready for training.

    Args:
        mesh: of all ranks, as `make_mesh` makes it; None on one device.
        checkpointing: activations that are computed again in backward: none, all of a block (full: one tensor a block is kept), all but attention's
            outputs (attention), or all but these and every second matrix product (selective), as torchtitan's.
        compiled: torch.compile for each block, for exactly the shapes that come.
        policy: the precisions in which FSDP2 gathers parameters and reduces gradients; those of the parameters, if not given.
    """
    if checkpointing not in CHECKPOINTING:
        raise UserError(f"trainer.checkpointing={checkpointing}: no such way{nearest(checkpointing, CHECKPOINTING)}")
    shards = None if mesh is None else sharding(mesh)
    shard = functools.partial(fully_shard, mesh=shards, mp_policy=policy or MixedPrecisionPolicy())
    matrices = mesh["tensor"] if mesh is not None and size_of(mesh, "tensor") > 1 else None
    for block in model.layers:  # one after the other, so that a GPU never holds more than one whole block
        if matrices is not None:
            shard_block(block, matrices)
        if checkpointing != "none":
            how = {} if checkpointing == "full" else {"context_fn": functools.partial(keep, checkpointing == "selective")}
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, **how)
        if compiled:
            block.forward = compile_block(block.forward)
        if shards is not None:
            shard(block)
    if matrices is not None:
        shard_vocabulary(model, matrices)
    if shards is not None:  # the rest: embedding, final norm, head
        # These weights serve the head right after the last block and its backward begins there: keep them gathered.
        shard(model, reshard_after_forward=False)
    return model


def make_mesh(device_type: str, sizes: Mesh) -> DeviceMesh:
    """The mesh of all ranks, with the dimensions replicate, shard, context and tensor. Every rank calls."""
    return init_device_mesh(device_type, tuple(sizes), mesh_dim_names=Mesh._fields)


def size_of(mesh: DeviceMesh, dimension: str) -> int:
    return mesh.size(mesh.mesh_dim_names.index(dimension))


def sharding(mesh: DeviceMesh) -> DeviceMesh:
    """The part of the mesh that FSDP2 works on: shard × context as one dimension, and before it replicate when there are copies.

    Context ranks differ in their tokens as data ranks do, so that FSDP2 may shard weights, and must average gradients, over them too.
    """
    copies = size_of(mesh, "replicate") > 1
    if size_of(mesh, "context") == 1:
        return mesh["replicate", "shard"] if copies else mesh["shard"]
    shards = mesh["shard", "context"]._flatten("shard_context")
    return DeviceMesh._concatenate([mesh["replicate"], shards]) if copies else shards


def compile_block(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The block compiled for each [B, T] that comes, whatever the number of documents. Blocks are alike and share the code."""
    import torch._dynamo  # not before: it takes a second

    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    fast = torch.compile(forward, dynamic=False, fullgraph=True)

    def call(x_BTD: Tensor, rotation: Rotation, mask: AttentionMask, cache: None = None) -> Tensor:
        for tensor in (mask.cu_seqlens, *(mask.shard or ())):
            if tensor is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return fast(x_BTD, rotation, mask, cache)

    return call


def eager(compiled: bool) -> AbstractContextManager[Any]:
    """Validation goes through the blocks uncompiled: without gradients they would be compiled once more."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def keep(products: bool) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Keep what attention gives, and with ``products`` every second matrix product; compute the rest again."""
    counts = Counter()

    def policy(context: Any, function: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if any(word in str(function) for word in ATTENTION):
            return CheckpointPolicy.MUST_SAVE
        if products and function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            counts[context.is_recompute] += 1
            if counts[context.is_recompute] % 2:
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], most: float) -> Tensor:
    """Scale gradients so that their norm, over everything, is at most ``most``; the norm before that, fp32 [], the same on all ranks.

    torch's own clipping takes tensors of one mesh. Under tensor parallelism matrices lie on (shard, tensor) and norms on (shard): each
    kind's norm is taken by itself. And torch's norm of gradients in bf16 is in bf16, with three digits.
    """
    kinds: dict[DeviceMesh | None, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            kinds.setdefault(getattr(parameter.grad, "device_mesh", None), []).append(parameter)
    each = [torch._foreach_norm([parameter.grad for parameter in kind], 2, torch.float32) for kind in kinds.values()]
    norms = [gather(torch.linalg.vector_norm(torch.stack(kind))) for kind in each]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for kind in kinds.values():
        clip_grads_with_norm_(kind, most, norm)
    return norm


def gather(tensor: Tensor) -> Tensor:
    """The tensor, of all ranks if it is dealt to them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
