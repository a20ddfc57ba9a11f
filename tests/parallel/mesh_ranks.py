"""One of the ranks that run training stages, one after the other, in one process group. Run by test_mesh.py as:
mesh_ranks.py FOLDER …

A folder's name with "rounded" in it asks for what GPUs do with precision=bf16-mixed; which precisions were met is then written to its precisions.json.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lit_long.stages.run import run_stage
from lit_long.training import run
from lit_long.training.module import LongContextModule
from lit_long.training.precision import ShardedMixed
from lit_long.training.run import quieten


@contextmanager
def as_on_gpus(folder: Path) -> Iterator[None]:
    seen, configure = defaultdict(set), LongContextModule.configure_model
    collectives = {"all_gather_single": "gathered", "reduce_scatter_single": "reduced"}
    collectives |= {"all_gather_into_tensor": "gathered", "reduce_scatter_tensor": "reduced"}  # as torch called them before

    def note(name: str, *tensors: torch.Tensor) -> None:
        seen[name] |= {str(x.dtype).removeprefix("torch.") for x in tensors if x.is_floating_point()}

    def watched(name: str):
        collective, what = getattr(dist, name), collectives[name]

        def call(*args, **kwargs):
            note(what, *(x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)))
            return collective(*args, **kwargs)

        return call

    def watch(module: LongContextModule) -> None:
        if module.model is None:
            configure(module)
            for block in module.model.layers:
                block.register_forward_pre_hook(lambda _, args: note("stream", args[0]))
                block.self_attn.register_forward_pre_hook(lambda self, args: note("rotation", *args[1]))
                block.self_attn.register_forward_pre_hook(lambda self, args: note("weights", *self.parameters()))

    def at_step(optimizer, args, kwargs) -> None:
        kept = [p for group in optimizer.param_groups for p in group["params"]]
        note("masters", *kept)
        note("gradients", *(p.grad for p in kept))

    hook = register_optimizer_step_pre_hook(at_step)
    with (
        patch.object(run, "make_precision", lambda trainer: ShardedMixed()),
        patch.object(LongContextModule, "configure_model", watch),
        patch.multiple(dist, **{name: watched(name) for name in collectives if hasattr(dist, name)}),
    ):
        yield
    hook.remove()
    if dist.get_rank() == 0:
        (folder / "precisions.json").write_text(json.dumps({name: sorted(found) for name, found in seen.items()}))


if __name__ == "__main__":
    quieten()
    for stage in map(Path, sys.argv[1:]):
        if "rounded" in stage.name:
            with as_on_gpus(stage):
                run_stage(stage, lambda message, done: None, int(os.environ["RANK"]))
        else:
            run_stage(stage, lambda message, done: None, int(os.environ["RANK"]))
    dist.destroy_process_group()
