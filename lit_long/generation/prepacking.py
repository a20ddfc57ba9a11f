"""Weights packed for generation on a CPU. They keep their values and take no more memory; the model can only be run afterwards.

A step of generation multiplies a few vectors by every matrix of the model, and is mostly spent reading them. Two orders serve that
better than rows of outputs, which BLAS rearranges each time it needs them (a product with thousands of rows does not notice):

* packed once in the order that oneDNN's kernel reads, as torch.compile does (these are its operators, without the compiler). Twice as
  fast for several rows, and for one in bf16; a little faster for long prompts too.
* by input: long runs of outputs, each a scaled row that is added. For one or two rows in fp32 this is as fast as the memory allows,
  where a matrix has at least as many outputs as inputs. A cache line of padding keeps the runs from all starting at the same place of the
  cache, where a power of two would put them. The head's matrix is always stored so; it stays a parameter, since a tied one is the
  embedding too.

Projections of the same input become one product, because every call of oneDNN costs some 20 µs.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_long.model.llama import Attention, FeedForward, Llama

CACHE_LINE = 64  # bytes
FEW_ROWS = 2


class PrepackedLinear(nn.Module):
    """x [..., inputs] times matrices [outputs, inputs] in one product, in the order of oneDNN made for about ``rows`` rows."""

    def __init__(self, weights: Sequence[Tensor], bias: Tensor | None, rows: int) -> None:
        super().__init__()
        self.sizes, self.bias = [len(weight) for weight in weights], bias
        self.order = torch.ops.mkldnn._reorder_linear_weight(torch.cat(list(weights)), rows)

    def forward(self, x: Tensor) -> Tensor | Sequence[Tensor]:
        y = torch.ops.mkldnn._linear_pointwise(x, self.order, self.bias, "none", [], "")
        return y if len(self.sizes) == 1 else y.split(self.sizes, dim=-1)


class ByInput(nn.Module):
    """x [..., inputs] times matrices [outputs, inputs] in one product, stored by input."""

    def __init__(self, weights: Sequence[Tensor], bias: Tensor | None) -> None:
        super().__init__()
        self.sizes, self.bias = [len(weight) for weight in weights], bias
        self.order = by_input(torch.cat(list(weights)))

    def forward(self, x: Tensor) -> Tensor | Sequence[Tensor]:
        y = F.linear(x, self.order, self.bias)
        return y if len(self.sizes) == 1 else y.split(self.sizes, dim=-1)


def by_input(weight: Tensor) -> Tensor:
    """The same matrix [outputs, inputs], stored input by input."""
    outputs, inputs = weight.shape
    stored = weight.new_empty(inputs, outputs + CACHE_LINE // weight.element_size())[:, :outputs]
    return stored.copy_(weight.t()).t()


@torch.no_grad()
def prepack(model: Llama, rows: int) -> None:
    """Pack ``model`` in place for steps of ``rows`` sequences: it can then be run, with any number, but not trained, saved or moved.

    A model on a GPU stays as it is, and so does one in a precision that this CPU or this torch cannot pack.
    """
    head = model.embed_tokens if model.config.tie_embeddings else model.lm_head
    if not can_prepack(head.weight):
        return

    def product(*layers: nn.Linear) -> nn.Module:
        weights = [layer.weight.detach() for layer in layers]
        bias = None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers])
        widens = sum(map(len, weights)) >= weights[0].shape[1]
        few = widens and rows <= FEW_ROWS and head.weight.dtype == torch.float32
        return ByInput(weights, bias) if few else PrepackedLinear(weights, bias, rows)

    for module in model.layers.modules():
        if isinstance(module, Attention):
            module.fused_proj = product(module.q_proj, module.k_proj, module.v_proj)
            module.o_proj = product(module.o_proj)
            del module.q_proj, module.k_proj, module.v_proj
        elif isinstance(module, FeedForward):
            module.down_proj = product(module.down_proj)
            if module.gated:
                module.fused_proj = product(module.gate_proj, module.up_proj)
                del module.gate_proj, module.up_proj
            else:
                module.up_proj = product(module.up_proj)
    head.weight.data = by_input(head.weight)
    give_memory_back()


def give_memory_back() -> None:
    """The matrices as they were leave holes that glibc keeps for later, up to a fifth of the model. Other C libraries lack the call."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def can_prepack(weight: Tensor) -> bool:
    """Whether oneDNN is there and knows the precision of ``weight`` on this CPU. (torch.compile packs on x86 alone, too.)"""
    if weight.device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32
