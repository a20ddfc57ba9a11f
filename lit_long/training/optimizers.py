"""The optimizers that a stage may be trained with: AdamW, as Llama 2 was, or Muon.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") makes the update of every hidden matrix orthogonal; embedding,
head and norms stay AdamW's. Its updates are scaled to the size of AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2),
so both take the same learning rate and weight decay. A small model learns to look back with it in a third of the tokens (docs/lab-book.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from lit_long.config import OptimConfig

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


class Muon(Optimizer):
    """torch's Muon for ``hidden`` and its AdamW for ``groups``, as one optimizer: one step, one state, one schedule."""

    def __init__(self, hidden: Iterable[nn.Parameter], groups: list[dict[str, Any]], optim: OptimConfig) -> None:
        self._parts: tuple[Optimizer, ...] = (
            torch.optim.Muon(hidden, lr=optim.lr, weight_decay=optim.weight_decay, adjust_lr_fn="match_rms_adamw"),
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
