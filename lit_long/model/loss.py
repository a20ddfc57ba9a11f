"""Head and cross-entropy in chunks of tokens, so that the logits [tokens, vocabulary] never exist at once.

With Llama 2's 32,000 words and 32,768 tokens they would take 3.9 GiB in fp32, two or three times over. Each chunk is
checkpointed: backward computes its logits again and drops them again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_long.model.batch import NO_LOSS, counted


def summed_nats(
    hidden_BTD: Tensor,
    targets_BT: Tensor,
    head: Callable[[Tensor], Tensor],
    chunk: int,
    weights_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss as (sum of nats fp32 [], number of tokens int64 []); means are taken by the caller, once, over everything.

    Args:
        head: from hidden states [N, D] to logits [N, V].
        chunk: tokens whose logits may exist at once.
        weights_BT: by which each token's nats are multiplied; then their sum, fp32 [], stands for the number of tokens.
    """
    hidden_ND, targets_N = hidden_BTD.flatten(0, 1), targets_BT.flatten()
    chunks = [hidden_ND.split(chunk), targets_N.split(chunk)]
    chunks += [] if weights_BT is None else [weights_BT.flatten().split(chunk)]

    def chunk_nats(hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        nats = F.cross_entropy(
            head(hidden).float(), targets, ignore_index=NO_LOSS, reduction="sum" if weights is None else "none"
        )
        return nats if weights is None else (nats * weights).sum()

    pieces = list(zip(*chunks, strict=True))
    # One chunk alone has nothing to gain from being computed twice.
    recompute = len(pieces) > 1 and torch.is_grad_enabled()
    nats = [checkpoint(chunk_nats, *piece, use_reentrant=False) if recompute else chunk_nats(*piece) for piece in pieces]
    return torch.stack(nats).sum(), counted(targets_BT, weights_BT)


@torch.no_grad()
def token_nats(hidden_BTD: Tensor, targets_BT: Tensor, head: Callable[[Tensor], Tensor], chunk: int) -> tuple[Tensor, Tensor]:
    """Per token: nats fp32 [B, T] (0 where nothing is predicted) and whether greedy decoding hits the target, bool [B, T]."""
    nats, hits = [], []
    for hidden, targets in zip(hidden_BTD.flatten(0, 1).split(chunk), targets_BT.flatten().split(chunk), strict=True):
        logits = head(hidden).float()
        nats.append(F.cross_entropy(logits, targets, ignore_index=NO_LOSS, reduction="none"))
        hits.append(logits.argmax(-1) == targets)
    return torch.cat(nats).view_as(targets_BT), torch.cat(hits).view_as(targets_BT)
