"""The optimizers that a stage may be trained with: AdamW, as Llama 2 was, or Muon.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") makes the update of every hidden matrix orthogonal; embedding,
head and norms stay AdamW's. Its updates are scaled to the size of AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2),
so both take the same learning rate and weight decay. A small model learns to look back with it in a third of the tokens (docs/lab-book.md).

torch's Muon computes the orthogonal update in bf16. A processor that has no bf16 products may need more time for this than for the model itself
(docs/performance.md), so there it is computed in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from lit_long.config import OptimConfig
from lit_long.processor import has_bf16_products

EMBEDDINGS = ("embed_tokens", "lm_head")


def has_one_moment(name: str, dimensions: int, optim: OptimConfig) -> bool:
    """Whether a parameter of so many dimensions is a hidden matrix that Muon updates, from one moment; AdamW has two."""
    return optim.name == "muon" and dimensions > 1 and not any(part in EMBEDDINGS for part in name.split("."))


def make_optimizer(model: nn.Module, optim: OptimConfig) -> Optimizer:
    """The optimizer of the parameters of ``model`` that are trained. Weight decay is on matrices only."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    hidden, matrices, vectors = [], [], []
    for name, parameter in trained:
        inner = has_one_moment(name, parameter.ndim, optim)
        (hidden if inner else matrices if parameter.ndim > 1 else vectors).append(parameter)
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if optim.name == "adamw":
        return AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
    return Muon(hidden, groups, optim)


class MuonFp32(torch.optim.Muon):
    """torch's Muon, under ``adjust_lr_fn="match_rms_adamw"``, with its orthogonal update in fp32. Groups and state are torch's, so a checkpoint of one
    is a checkpoint of the other."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if (gradient := parameter.grad) is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
                update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
                update = orthogonalize(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(update, alpha=group["lr"] * 0.2 * math.sqrt(max(parameter.shape)))  # match_rms_adamw
        return loss


def orthogonalize(matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> torch.Tensor:
    """``matrix`` (rows × columns) with all its singular values brought near 1, by Newton-Schulz iteration in fp32 (Jordan et al. 2024)."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).float()
    x = x / x.norm().clamp(min=eps)  # the largest singular value is at most 1
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(Optimizer):
    """torch's Muon for ``hidden`` and its AdamW for ``groups``, as one optimizer: one step, one state, one schedule."""

    def __init__(self, hidden: Iterable[nn.Parameter], groups: list[dict[str, Any]], optim: OptimConfig) -> None:
        hidden = list(hidden)
        in_bf16 = has_bf16_products() or any(parameter.device.type != "cpu" for parameter in hidden)
        muon = torch.optim.Muon if in_bf16 else MuonFp32
        self._parts: tuple[Optimizer, ...] = (
            muon(hidden, lr=optim.lr, weight_decay=optim.weight_decay, adjust_lr_fn="match_rms_adamw"),
            AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True),
        )
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:  # what load_state_dict ends with
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Let the parts work on this optimizer's groups and state."""
        groups = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure is not None else None
        for part in self._parts:
            part.step()
        return loss
