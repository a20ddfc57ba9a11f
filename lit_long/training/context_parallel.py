"""Context parallelism: the ranks of a mesh dimension share the tokens of every sequence, for contexts that one device cannot hold.

All of them read the same rows. Each keeps its two chunks of every sequence (model/context_parallel.py says which, and why two) and, in every layer, gathers the keys
and values of the others. Norms, matrices, embeddings and the loss look at one token at a time and never know.

A layer's keys and values are 2·B·S·G·K numbers, of which a rank receives the share of the others, (C−1)/C, in forward (all-gather) and sends as many
gradients in backward (reduce-scatter). Grouped-query attention makes that cheap: with G = 8 heads of 128 components a sequence of 131,072 tokens costs 512 MiB a
layer in bf16. Gradients of the weights are reduced over these ranks as over those that read different rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import _functional_collectives as collectives
from torch.distributed.device_mesh import DeviceMesh

from lit_long.batch import Batch, Part
from lit_long.config import UserError
from lit_long.model.attention import choose
from lit_long.model.context_parallel import PACKED, natural_order, own_chunks

# Two names of one function; older versions of torch have the second only. torch.distributed.nn's gives wrong gradients where these are not
# contiguous.
all_gather = getattr(collectives, "all_gather_single_autograd", None) or collectives.all_gather_tensor_autograd


@dataclass(frozen=True)
class Gather:
    """Keys and values of whole sequences from those of every rank's part (`Part.gather`).

    Args:
        group: name of the process group of the ranks that share sequences.
        ranks: how many they are.
    """

    group: str
    ranks: int

    def __call__(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        own_chunks = [x.transpose(1, 2).unflatten(1, (2, -1)).transpose(0, 1) for x in (k_BGTK, v_BGTK)]  # 2, B, tokens, G, K
        chunks = all_gather(torch.stack(own_chunks, dim=1), 0, self.group).unbind(0)
        whole_2BSGK = torch.cat([chunks[place] for place in natural_order(self.ranks)], dim=2)
        k_BGSK, v_BGSK = whole_2BSGK.transpose(2, 3).unbind(0)
        return k_BGSK, v_BGSK


class ContextShare:
    """This rank's share of every sequence.

    Args:
        mesh: the one dimension whose ranks share sequences.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.rank, self.ranks = mesh.get_local_rank(), mesh.size()
        self.gather = Gather(mesh.get_group().group_name, self.ranks)

    def cut(self, batch: Batch) -> Batch:
        """The tokens of the batch that this rank computes, [B, T / ranks]. Positions come along as they are, and so do document boundaries, which follow from
        the whole sequences' document ids.

        Raises:
            UserError: a sequence that cannot be cut into two equal chunks a rank.
        """
        check_divisible(batch.tokens.shape[1], self.ranks)
        chunk = batch.tokens.shape[1] // (2 * self.ranks)
        starts = [first * chunk for first in own_chunks(self.rank, self.ranks)]
        fields = (
            field if field is None else torch.cat([field[:, start : start + chunk] for start in starts], dim=1)
            for field in (*batch[:4], batch.weights, batch.divisor)
        )
        part = Part(self.rank, self.ranks, batch.document_ids, self.gather)
        *kept, weights, divisor = fields
        return Batch(*kept, mask_documents=batch.mask_documents, weights=weights, part=part, divisor=divisor, reach=batch.reach)


def check_divisible(length: int, ranks: int) -> None:
    if length % (2 * ranks):
        raise UserError(
            f"trainer.context_parallel={ranks} cuts every sequence into {2 * ranks} equal chunks, but there are sequences of {length} tokens: "
            f"context must be a multiple of {2 * ranks}"
        )


def check_compiled(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Raise UserError where attention to whole sequences goes segment by segment, which would be compiled anew in every batch."""
    if device.type != "cpu" and choose(device, dtype, head_dim, True) not in PACKED:
        raise UserError(
            "trainer.compile=true with trainer.context_parallel needs a kernel that knows document boundaries: use trainer.precision=bf16-mixed "
            "with trainer.attention=auto, or trainer.compile=false"
        )
