"""Head and cross-entropy in chunks of tokens, so that the logits [tokens, vocabulary] never exist at once.

With Llama 2's 32,000 words and 32,768 tokens they would take 3.9 GiB in fp32, two or three times over. The gradients of a chunk are made
together with its loss, while its logits are there: backward only scales them, and no product is computed twice.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_long.batch import NO_LOSS, counted
from lit_long.model.fused_loss import CHUNKED, fused_nats

BYTES_A_LOGIT = 10  # that live at once: logits and probabilities in fp32, and a copy in half precision
FEWEST = 16


class Vocabulary(Protocol):
    """Words that are dealt to several ranks, and the head's rows with them; every rank has the same hidden states. Which ranks these are,
    and how they talk, is not known here.
    """

    first: int  # number of the first word that is here
    ranks: int

    def rows(self, head_VD: Tensor) -> Tensor:
        """The head's rows that are here."""

    def largest(self, x: Tensor) -> Tensor:
        """The largest of all ranks, element by element, in place."""

    def total(self, x: Tensor) -> Tensor:
        """The sum over all ranks, element by element, in place."""

    def gather(self, logits_NV: Tensor) -> Tensor:
        """The logits of all words, from those of the words that are here; without gradients."""


def chunk_tokens(vocabulary: int, memory: int) -> int:
    """Tokens whose logits may exist at once when they, with all that is made of them, may take ``memory`` bytes."""
    return max(FEWEST, memory // (BYTES_A_LOGIT * vocabulary))


def summed_nats(
    hidden_BTD: Tensor,
    targets_BT: Tensor,
    head_VD: Tensor,
    chunk: int,
    weights_BT: Tensor | None = None,
    vocabulary: Vocabulary | None = None,
    backend: str = CHUNKED,
) -> tuple[Tensor, Tensor]:
    """Loss as (sum of nats fp32 [], number of tokens []); means are taken by the caller, once, over everything.

    Args:
        head_VD: the head's weights; logits are hidden states times them.
        chunk: tokens whose logits may exist at once.
        weights_BT: what each token counts, fp32; the number of tokens is then their sum, without those that have no target.
        vocabulary: what has dealt the words to several ranks, if anything; each gets the whole loss, and its own rows' gradients.
        backend: `choose_loss`'s; weighted tokens go through the chunked one whatever it is, since the fused ones know no weights.
    """
    targets_N = targets_BT.flatten()
    if backend != CHUNKED and weights_BT is None:
        dtype = computing(hidden_BTD)
        nats = fused_nats(backend, hidden_BTD.flatten(0, 1).to(dtype), head_VD.to(dtype), targets_N)
        return nats, counted(targets_BT)
    weights_N = None if weights_BT is None else weights_BT.flatten() * (targets_N != NO_LOSS)
    head_VD = vocabulary.rows(head_VD) if vocabulary else head_VD
    nats = ChunkedLoss.apply(hidden_BTD.flatten(0, 1), head_VD, targets_N, weights_N, chunk, vocabulary)
    return nats, counted(targets_BT, weights_BT)


@torch.no_grad()
def token_nats(
    hidden_BTD: Tensor, targets_BT: Tensor, head_VD: Tensor, chunk: int, vocabulary: Vocabulary | None = None
) -> tuple[Tensor, Tensor]:
    """Per token: nats fp32 [B, T] (0 where nothing is predicted) and whether greedy decoding hits the target, bool [B, T]."""
    nats, hits = [], []
    dtype = computing(hidden_BTD)
    with torch.autocast(hidden_BTD.device.type, enabled=False):
        head_VD = (vocabulary.rows(head_VD) if vocabulary else head_VD).to(dtype)
        for hidden, targets in zip(hidden_BTD.flatten(0, 1).split(chunk), targets_BT.flatten().split(chunk), strict=True):
            logits = hidden.to(dtype) @ head_VD.t()
            logits = (vocabulary.gather(logits) if vocabulary else logits).float()
            nats.append(torch.nn.functional.cross_entropy(logits, targets, ignore_index=NO_LOSS, reduction="none"))
            hits.append(logits.argmax(-1) == targets)
    return torch.cat(nats).view_as(targets_BT), torch.cat(hits).view_as(targets_BT)


def computing(x: Tensor) -> torch.dtype:
    """The precision of matrix products here: autocast's where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class ChunkedLoss(torch.autograd.Function):
    """Σ nats of hidden states [N, D] under the head [V, D]. Logits are rounded as a linear layer's are; all else is in fp32."""

    @staticmethod
    def forward(
        context: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        targets_N: Tensor,
        weights_N: Tensor | None,
        chunk: int,
        vocabulary: Vocabulary | None,
    ) -> Tensor:
        wants_hidden, wants_head = context.needs_input_grad[:2]
        dtype = computing(hidden_ND)
        nats = hidden_ND.new_zeros((), dtype=torch.float32)
        hidden_gradient = torch.empty_like(hidden_ND) if wants_hidden else None
        head_gradient = torch.zeros_like(head_VD, dtype=torch.float32) if wants_head else None
        with torch.autocast(hidden_ND.device.type, enabled=False):
            weight_VD = head_VD.to(dtype)
            for start in range(0, len(targets_N), chunk):
                part = slice(start, start + chunk)
                hidden = hidden_ND[part].to(dtype)
                weights = None if weights_N is None else weights_N[part]
                logits_NV, wanted = hidden @ weight_VD.t(), wants_hidden or wants_head
                if vocabulary is None:
                    found, gradient_NV = nats_and_gradient(logits_NV, targets_N[part], weights, wanted)
                else:
                    found, gradient_NV = shared_nats_and_gradient(logits_NV, targets_N[part], weights, wanted, vocabulary)
                nats += found
                if wants_hidden:
                    hidden_gradient[part] = gradient_NV @ weight_VD
                if wants_head:
                    head_gradient += gradient_NV.t() @ hidden
        if vocabulary is not None and wants_hidden:
            vocabulary.total(hidden_gradient)
        context.gradients = (hidden_gradient, head_gradient if head_gradient is None else head_gradient.to(head_VD.dtype))
        return nats

    @staticmethod
    @once_differentiable
    def backward(context: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        if context.gradients is None:
            raise RuntimeError("the chunked loss can be differentiated once: its gradients are scaled where they are")
        gradients, context.gradients = context.gradients, None
        return *(gradient if gradient is None else gradient.mul_(scale) for gradient in gradients), None, None, None, None


def nats_and_gradient(
    logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor | None, wants_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Σ nats of a chunk, and their gradient with respect to the logits, in the logits' precision."""
    dtype, none = logits_NV.dtype, targets_N == NO_LOSS
    at_N1 = targets_N.masked_fill(none, 0)[:, None]
    counts_N = (~none).float() if weights_N is None else weights_N
    gradient_NV = torch.softmax(logits_NV, dim=-1, dtype=torch.float32)
    # log Σ exp from the largest share: exponentials of log-probabilities are denormal numbers, which cost a CPU thirty times as much.
    below_N = logits_NV.amax(-1).float() - logits_NV.gather(1, at_N1)[:, 0].float()
    nats = ((below_N - gradient_NV.amax(-1).log()) * counts_N).sum()
    if not wants_gradient:
        return nats, None
    gradient_NV.scatter_add_(1, at_N1, gradient_NV.new_full((1, 1), -1.0).expand_as(at_N1))
    if not gradient_NV.is_cpu:  # a GPU multiplies as it rounds; to ask whether it must would wait for it in every chunk
        rounded_NV = gradient_NV if dtype == gradient_NV.dtype else torch.empty_like(gradient_NV, dtype=dtype)
        return nats, torch.mul(gradient_NV, counts_N[:, None], out=rounded_NV)
    if weights_N is not None or bool(none.any()):
        gradient_NV.mul_(counts_N[:, None])
    return nats, gradient_NV.to(dtype)


def shared_nats_and_gradient(
    logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor | None, wants_gradient: bool, vocabulary: Vocabulary
) -> tuple[Tensor, Tensor | None]:
    """The same from some words' logits only. Three numbers a token go between the ranks: largest logit, Σ exp and the target's logit."""
    own_N = targets_N - vocabulary.first
    elsewhere_N = (own_N < 0) | (own_N >= logits_NV.shape[1])
    at_N1 = own_N.masked_fill(elsewhere_N, 0)[:, None]
    counts_N = (targets_N != NO_LOSS).float() if weights_N is None else weights_N
    wide_NV = logits_NV.float()
    largest_N = vocabulary.largest(wide_NV.amax(-1))
    below_N = (wide_NV.gather(1, at_N1)[:, 0] - largest_N).masked_fill(elsewhere_N, 0.0)
    gradient_NV = (wide_NV - largest_N[:, None]).exp_()
    sums_N, below_N = vocabulary.total(torch.stack((gradient_NV.sum(-1), below_N)))
    nats = ((sums_N.log() - below_N) * counts_N).sum()
    if not wants_gradient:
        return nats, None
    gradient_NV.div_(sums_N[:, None]).scatter_add_(1, at_N1, elsewhere_N.float()[:, None] - 1.0)
    return nats, gradient_NV.mul_(counts_N[:, None]).to(logits_NV.dtype)
