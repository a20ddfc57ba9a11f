"""Attention behind one function. Which kernel runs is decided here and nowhere else.

    sdpa      torch's scaled_dot_product_attention, which itself picks a flash or cuDNN kernel; documents one after the other, and on a CPU
              short ones by model/short.py
    flash     FlashAttention 4, 3 or 2, the one that the GPU is fastest with (model/flash.py)
    varlen    torch's own kernel for documents of many lengths (torch.nn.attention.varlen)

A window (`AttentionMask.window`) is the kernels' own on GPUs; a CPU computes it block by block (model/local.py).

Boundaries of documents are worked out where the batch's document ids are, in the host's memory (`Batch.to`), so that no kernel is waited for.

Scores that fall with distance (ALiBi) come to the kernels as two more components of queries and keys (`biased`); on CPUs only.

Where ranks share sequences, the same kernels look at whole sequences for a part of the queries (model/context_parallel.py).

No kernel makes a T × T tensor. Shapes: B sequences, H query heads, G key-value heads, T tokens, S tokens that are looked at, K components
a head, N documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lit_long.batch import Batch, to_device
from lit_long.config import UserError, nearest
from lit_long.model import flash, short
from lit_long.model.context_parallel import PACKED, ContextShard, attend_shard, context_shard
from lit_long.model.documents import attend_documents, hides, pieces
from lit_long.model.local import window_mask
from lit_long.positions import PositionalEncoder, Rotation
from lit_long.positions.layers import LayerGroup

PIECE = 256  # positions that bf16 tells apart
QUERY_BLOCK = 512  # queries that attend at once where their keys begin before them
KERNELS = ("sdpa", "flash", "varlen")
AUTO = "auto"
_wanted = AUTO
_observer: Callable[[Tensor, Tensor, AttentionMask], None] | None = None


class CacheView(Protocol):
    """One layer's view of the KV cache in generation; see lit_long/generation/cache.py.

    padding_mask  added to the scores of a single query, [B, 1, 1, S]; None when it sees everything
    chunk         tokens whose widest activations may exist at once
    wanted        how many of the T tokens, the last ones, have an output: after the last layer only what comes next matters
    """

    padding_mask: Tensor | None
    chunk: int
    wanted: int

    def extend(self, k_BGTK: Tensor, v_BGTK: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Remember keys (not yet rotated) and values of T tokens; rotated keys and values [B, G, S, K] to look at."""


class AttentionMask(NamedTuple):
    """Which tokens see which, and the kernel that computes it: one for each group of layers of a forward pass.

    cu_seqlens  int32 [N + 1]: where documents begin in the B·T tokens, row after row, and then B·T. None: every token sees all before it
    longest     a bound of the documents' lengths, a power of two, so that compiled code meets few of them; 0 where no kernel asks
    shard       instead, when ranks share sequences: what this one's queries see; ``gather`` then makes the whole sequences' keys and values
    window      tokens that a query sees, its own included; None: all before it
    slopes      what scores lose for each position between query and key, fp32 [H]; None: nothing. Then no window
    places      the keys' positions [B, S], where there are slopes; None: 0 … S − 1
    """

    cu_seqlens: Tensor | None = None
    kernel: str = "sdpa"
    longest: int = 0
    shard: ContextShard | None = None
    gather: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    window: int | None = None
    slopes: Tensor | None = None
    places: Tensor | None = None


CAUSAL = AttentionMask()


def attention_masks(
    batch: Batch, dtype: torch.dtype, head_dim: int, windows: Sequence[int | None], slopes: Sequence[Tensor | None] = ()
) -> list[AttentionMask]:
    """What the tokens of a batch see within each of the windows, by the kernel that is best for it here; with `group_slopes`, if there are some."""
    device = batch.tokens.device
    if any(one is not None for one in slopes):
        if batch.part is not None:
            raise UserError(
                "position: alibi and trainer.context_parallel: ranks that share sequences have no kernel for its scores"
            )
        masks = attention_masks(batch, dtype, head_dim, windows)
        return [mask._replace(slopes=own, places=batch.positions) for mask, own in zip(masks, slopes, strict=True)]
    if batch.part is not None:
        kernel = choose(device, dtype, head_dim, True)
        return [context_parallel_mask(batch, kernel, window) for window in windows]
    cu_seqlens, longest, masks = document_cu_seqlens(batch), 0, []
    if cu_seqlens is not None:
        longest = bound(int(cu_seqlens.diff().max()), batch.tokens.shape[1])
        (cu_seqlens,) = to_device([cu_seqlens], device)
    for window in windows:
        kernel = choose(device, dtype, head_dim, cu_seqlens is not None or window is not None)
        masks.append(AttentionMask(cu_seqlens, kernel, longest if kernel in PACKED else 0, window=window))
    return masks


def context_parallel_mask(batch: Batch, kernel: str, window: int | None) -> AttentionMask:
    """What the tokens of a batch see that is a part of longer sequences."""
    rank, ranks, ids, gather = batch.part
    starts = document_starts(ids, batch.mask_documents)
    if starts is None:
        starts = torch.zeros_like(ids, dtype=torch.bool)
        starts[:, 0] = True
    shard = context_shard(starts, rank, ranks, kernel in PACKED, window)
    if kernel in PACKED:
        shard = ContextShard(shard.table, *to_device(shard[1:], batch.tokens.device))
    return AttentionMask(kernel=kernel, shard=shard, gather=gather, window=window)


def bound(longest: int, length: int) -> int:
    """The power of two from 256 on that is at least ``longest``, or the sequence's ``length``."""
    return min(length, max(256, 1 << (longest - 1).bit_length()))


def document_cu_seqlens(batch: Batch) -> Tensor | None:
    """Where documents begin (`AttentionMask.cu_seqlens`), where the ids are. None when plain causal attention says it all."""
    starts = document_starts(batch.document_ids, batch.mask_documents)
    if starts is None:
        return None
    cu_seqlens = starts.flatten().nonzero()[:, 0]
    return torch.cat((cu_seqlens, cu_seqlens.new_tensor([starts.numel()]))).to(torch.int32)


def document_starts(ids: Tensor, masked: bool) -> Tensor | None:
    """The tokens that begin a document, bool [B, T], from their ids [B, T] alone. Padding is a document of its own.

    None when plain causal attention says it all: documents are not masked, or every sequence holds one (right padding aside: its
    outputs have no loss, and causality hides it from what comes before).
    """
    if not masked or bool(((ids == ids[:, :1]) | (ids < 0)).all()):
        return None
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    return starts


def choose(device: torch.device, dtype: torch.dtype, head_dim: int, partial: bool) -> str:
    """The kernel for these inputs: the one that `use` insists on, or the fastest that is here. It is ready to be called.

    Args:
        partial: whether documents or a window hide some of the tokens before another.

    Raises:
        UserError: the one that is insisted on cannot run here.
    """
    insists = _wanted == "flash"
    no_flash, no_varlen = flash.why_no_flash(device, dtype, head_dim, insists), flash.why_no_varlen(device, dtype)
    if _wanted != AUTO:
        kernel = _wanted
        if why_not := {"sdpa": "", "flash": no_flash, "varlen": no_varlen}[kernel]:
            raise UserError(f"trainer.attention={kernel} cannot run here: {why_not}; use trainer.attention=auto")
    elif not no_flash:
        kernel = "flash"
    else:
        kernel = "varlen" if partial and not no_varlen else "sdpa"
    flash.ready(kernel, device, insists)
    return kernel


@contextmanager
def use(kernel: str) -> Iterator[None]:
    """Insist on a kernel; ``auto`` leaves the choice to `choose`."""
    global _wanted
    if kernel not in (AUTO, *KERNELS):
        raise UserError(f"trainer.attention={kernel}: no such kernel{nearest(kernel, (AUTO, *KERNELS))}")
    before, _wanted = _wanted, kernel
    try:
        yield
    finally:
        _wanted = before


@contextmanager
def observe(observer: Callable[[Tensor, Tensor, AttentionMask], None]) -> Iterator[None]:
    """Show rotated queries [B, H, T, K], keys [B, G, S, K] and the mask of each call of `attention` to ``observer``: those of the layers, in order."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


def without_cudnn(device: torch.device) -> AbstractContextManager[None]:
    """On a GPU, SDPA by other kernels than cuDNN's, which plans anew for every number of keys: each prompt, and each token that is generated, has
    another."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def describe(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """The kernels that will run, and on a GPU why not the fastest, for the log."""
    whole, documents = (choose(device, dtype, head_dim, masked) for masked in (False, True))
    names = {
        "sdpa": "torch's SDPA",
        "varlen": "torch's varlen_attn",
        "flash": flash.version(device, _wanted == "flash") if whole == "flash" else "",
    }
    text = names[whole] if whole == documents else f"{names[whole]}, {names[documents]} where documents are masked"
    reason = flash.why_no_flash(device, dtype, head_dim, _wanted == "flash")
    return f"{text} ({reason})" if device.type == "cuda" and reason else text


def attention(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: AttentionMask, padding_mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention, causal, within documents when ``mask`` has ``cu_seqlens``, and within its window: [B, H, T, K].

    Heads share keys when G < H. T = S, except in generation: one query, of the newest token, sees all keys, less what ``padding_mask``
    [B, 1, 1, S] (added to the scores) hides; T queries are of the last T of S tokens, when a prompt goes on from what is cached.
    Where ranks share sequences, the S tokens are those of all ranks.
    """
    if mask.slopes is not None:
        return biased(q_BHTK, k_BGSK, v_BGSK, mask, padding_mask)
    if _observer is not None:
        _observer(q_BHTK, k_BGSK, mask)
    if mask.shard is not None:
        return attend_shard(q_BHTK, *mask.gather(k_BGSK, v_BGSK), mask.shard, mask.kernel, mask.window)
    if q_BHTK.shape[2] == 1:
        last = slice(-mask.window if mask.window else None, None)  # of the keys
        return newest(q_BHTK, k_BGSK[:, :, last], v_BGSK[:, :, last], padding_mask)
    if q_BHTK.shape[2] < k_BGSK.shape[2]:
        return latest(q_BHTK, k_BGSK, v_BGSK, mask.window)
    window = mask.window if hides(mask.window, q_BHTK) else None
    if mask.kernel == "flash":
        return flash.attend("flash", q_BHTK, k_BGSK, v_BGSK, mask.cu_seqlens, mask.longest, window)
    if mask.cu_seqlens is None and window is None:
        if short.pays(q_BHTK):
            return attend_documents(q_BHTK, k_BGSK, v_BGSK, whole_sequences(q_BHTK))[0]
        return causal(q_BHTK, k_BGSK, v_BGSK)
    if mask.kernel == "varlen":
        return flash.attend("varlen", q_BHTK, k_BGSK, v_BGSK, mask.cu_seqlens, mask.longest, window)
    cu_seqlens = whole_sequences(q_BHTK) if mask.cu_seqlens is None else mask.cu_seqlens
    if q_BHTK.is_cpu:
        return attend_documents(q_BHTK, k_BGSK, v_BGSK, cu_seqlens, window)[0]
    return document_by_document(q_BHTK, k_BGSK, v_BGSK, cu_seqlens, window)


def biased(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: AttentionMask, padding_mask: Tensor | None) -> Tensor:
    """`attention` with −m·(i − j) added to the score of a query at i and a key at j, m the head's slope.

    m·i is the same for all keys of a query, so the softmax does not see it. What is left, m·j, is a product of two more components: whatever kernel runs
    computes it. j comes in two, multiples of 256 and the rest, since bf16 holds both exactly.
    """
    (B, H, T, K), S, more = q_BHTK.shape, k_BGSK.shape[2], 2
    if len(mask.slopes) != H:
        raise UserError(f"position: alibi has slopes for {len(mask.slopes)} heads and is given {H}: ranks cannot share them")
    places = torch.arange(S, device=k_BGSK.device)[None] if mask.places is None else mask.places
    rest = places % PIECE
    components = torch.stack((places - rest, rest), dim=-1).to(k_BGSK.dtype)[:, None].expand(B, k_BGSK.shape[1], S, more)
    root = math.sqrt(K + more)  # which the kernels divide by, instead of √K
    slopes = (mask.slopes * root).to(q_BHTK.dtype)[:, None, None].expand(B, H, T, more)
    q = torch.cat((q_BHTK * (root / math.sqrt(K)), slopes), dim=-1)
    k, v = torch.cat((k_BGSK, components), dim=-1), F.pad(v_BGSK, (0, more))
    return attention(q, k, v, mask._replace(slopes=None, places=None), padding_mask)[..., :K]


def group_slopes(groups: Sequence[LayerGroup], heads: int, device: torch.device) -> list[Tensor | None]:
    """`AttentionMask.slopes` of each group of layers; only encoders that define some are asked. Raises UserError where they are not computed: on GPUs."""
    none = PositionalEncoder.score_slopes
    found = [None if type(each.encoder).score_slopes is none else each.encoder.score_slopes(heads) for each in groups]
    if any(found) and device.type not in ("cpu", "meta"):
        raise UserError(
            f"position: scores that fall with distance (ALiBi) are computed on CPUs only, not on {device.type}; trainer=cpu, or another position"
        )
    return [None if one is None else torch.tensor(one, dtype=torch.float32, device=device) for one in found]


def whole_sequences(x_BHTK: Tensor) -> Tensor:
    """`AttentionMask.cu_seqlens` of sequences that are one document each."""
    B, _, T, _ = x_BHTK.shape
    return torch.arange(0, B * T + 1, T, dtype=torch.int32)


def causal(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    return grouped_sdpa(q_BHTK, k_BGTK, v_BGTK, is_causal=True)


def grouped_sdpa(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, **how: Any) -> Tensor:
    """SDPA of heads that may share keys. In fp32, and with a mask, a GPU has its memory-efficient kernel only, which wants a head of keys for each of
    queries; what is left, the math kernel, would make T × S scores."""
    H, G = q_BHTK.shape[1], k_BGSK.shape[1]
    if H != G and (q_BHTK.dtype == torch.float32 or "attn_mask" in how) and not q_BHTK.is_cpu:
        k_BGSK, v_BGSK = (x.repeat_interleave(H // G, dim=1) for x in (k_BGSK, v_BGSK))
    return F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, enable_gqa=k_BGSK.shape[1] != H, **how)


def document_by_document(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, cu_seqlens: Tensor, window: int | None = None) -> Tensor:
    """Where no kernel knows documents (fp32 on a GPU): documents of one length in succession go through SDPA together."""
    outputs = []
    for q, k, v in zip(*(pieces(x, cu_seqlens) for x in (q_BHTK, k_BGTK, v_BGTK))):
        out = latest(q, k, v, window) if hides(window, q) else causal(q, k, v)
        outputs.append(out.transpose(0, 1).flatten(1, 2))
    return torch.cat(outputs, dim=1).unflatten(1, (q_BHTK.shape[0], q_BHTK.shape[2])).transpose(0, 1)


def latest(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, window: int | None = None) -> Tensor:
    """Causal attention of the last T of S tokens, a block of queries after the other, of ``window`` at most: a mask is never of all T × S."""
    tokens, seen = q_BHTK.shape[2], k_BGSK.shape[2]
    block, outputs = min(window or QUERY_BLOCK, QUERY_BLOCK), []
    for start in range(0, tokens, block):
        stop = min(tokens, start + block)
        last = seen - tokens + stop
        first = max(0, last - (stop - start) - window + 1) if window else 0
        mask_TS = window_mask(stop - start, last - first, window or seen, q_BHTK.device)
        q, k, v = q_BHTK[:, :, start:stop], k_BGSK[:, :, first:last], v_BGSK[:, :, first:last]
        outputs.append(grouped_sdpa(q, k, v, attn_mask=mask_TS))
    return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]


def newest(q_BH1K: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, padding_mask: Tensor | None) -> Tensor:
    """The query heads that share keys go through the kernel as queries of one head: it then reads the keys once, not H/G times."""
    q_BGRK = q_BH1K.reshape(*k_BGSK.shape[:2], -1, k_BGSK.shape[3])
    return F.scaled_dot_product_attention(q_BGRK, k_BGSK, v_BGSK, attn_mask=padding_mask).reshape(q_BH1K.shape)
