"""What goes between a device and the host while torch runs: every operation that makes the host wait for the device, and every copy from one to the other.

The device is torch's ``meta``: tensors without values that are not in the host's memory, so that whatever needs their values is met, autograd's backward pass
included. A value that is asked for is made up (1, or true), and where their number is asked for there are as many as can be.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
DEVICE = torch.device("meta")
# What a device alone knows: the values of a tensor, or the shape of a result.
ANSWERS = {
    aten._local_scalar_dense.default: lambda x: 1.0 if x.is_floating_point() else x.dtype == torch.bool or 1,
    aten.equal.default: lambda x, y: True,
    aten.nonzero.default: lambda x: x.new_empty((x.numel(), x.ndim), dtype=torch.int64),
    aten.masked_select.default: lambda x, mask: x.new_empty(x.numel()),
}
UNKNOWN = (aten.unique_consecutive.default, aten._unique2.default, aten.bincount.default, aten.repeat_interleave.Tensor)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
# They make tensors of numbers and lists, and reach no dispatch mode.
MADE = (
    (torch, "tensor"),
    (torch, "as_tensor"),
    (torch, "asarray"),
    (Tensor, "new_tensor"),
    (Tensor, "__getitem__"),
    (Tensor, "__setitem__"),
)


class HostTraffic:
    """Counts waits and copies by what asked for them: ``found`` has (operation, line of code) → number."""

    def __init__(self) -> None:
        self.found: Counter[tuple[str, str]] = Counter()

    def take(self) -> Counter[tuple[str, str]]:
        """What was found since the last time."""
        found, self.found = self.found, Counter()
        return found

    @contextmanager
    def count(self) -> Iterator[Operations]:
        with ExitStack() as stack:
            for place, name in MADE:
                stack.enter_context(patch.object(place, name, self.watched(getattr(place, name))))
            yield stack.enter_context(Operations(self))

    def watched(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """``make``, with a note when numbers of the host become a tensor, or its indices, on the device."""
        indexes = make in (Tensor.__getitem__, Tensor.__setitem__)

        def call(*args: Any, **kwargs: Any) -> Any:
            made = make(*args, **kwargs)
            given = args[1] if indexes or isinstance(args[0], Tensor) else args[0]
            lists = isinstance(given, list) or (isinstance(given, tuple) and any(isinstance(x, list) for x in given))
            if (args[0] if indexes else made).device == DEVICE and (lists if indexes else not isinstance(given, Tensor)):
                self.note(make)
            return made

        return call

    def note(self, function: Any) -> None:
        frames = [x for x in traceback.extract_stack()[:-2] if "site-packages/torch" not in x.filename and x.filename != __file__]
        self.found[str(function), f"{frames[-1].filename}:{frames[-1].lineno} {frames[-1].line}"] += 1


class Operations(TorchDispatchMode):
    """Everything else, as torch dispatches it."""

    def __init__(self, traffic: HostTraffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        devices = {x.device for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        if DEVICE in devices and function in (*ANSWERS, *UNKNOWN):
            self.traffic.note(function)
            return ANSWERS[function](*args)  # a KeyError: nobody knows what a device would have found
        if DEVICE in devices and function in INDEXED:
            return self.index(function, *args, **kwargs)
        target = args[0].device if args and isinstance(args[0], Tensor) else None
        if function is aten.copy_.default and len(devices) == 2 and args[1].ndim:
            self.traffic.note(function)
            return args[0] if target == DEVICE else args[0].fill_(1)
        if (
            function is aten._to_copy.default
            and (to := torch.device(kwargs.get("device") or target)) != target
            and DEVICE in (to, target)
        ):
            self.traffic.note(function)
            if target == DEVICE:
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return function(*args, **kwargs)

    def index(self, function: Any, x: Tensor, indices: list[Tensor | None], *args: Any, **kwargs: Any) -> Tensor:
        places = []
        for index in indices:
            if index is not None and (index.dtype == torch.bool or index.device != x.device):
                self.traffic.note(function)
                shape, dimensions = ((index.numel(),), index.ndim) if index.dtype == torch.bool else (index.shape, 1)
                places += [torch.zeros(shape, dtype=torch.int64, device=x.device)] * dimensions
            else:
                places.append(index)
        return function(x, places, *args, **kwargs)
