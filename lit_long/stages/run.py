"""Running the stage that a folder describes: its kind says which package computes it (data, training or evaluation)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lit_long.config import StageConfig
from lit_long.processor import take_mkl_fast_path
from lit_long.stages.archive import ADAPTED, CURVE, IN_BF16, check_data, find_adapter
from lit_long.stages.folder import finish, is_archived, is_done, read_result, read_stage, run_digest
from lit_long.stages.resolve import uses_builtin

Report = Callable[[str, float], None]


def run_stage(folder: Path, report: Report, rank: int = 0) -> None:
    """Run, or resume, the stage in ``folder``; return at once when it is done. Under torchrun every rank calls this."""
    config, store, parent = read_stage(folder)
    if is_done(folder):
        return
    if archive := find_adapter(folder, config):
        if rank == 0:
            restore(config, folder, archive)
        return
    if parent and config.kind == "train" and config.branch == 0:
        # From the beginning of its parent's run, and so from what that started from
        parent = read_stage(parent)[2]
    result = compute(config, folder, store, parent, report)
    if config.kind == "data":
        check_data(folder, result["digest"])
    if parent and (run := run_digest(parent)):
        result["parent_run"] = run
    if parent and is_archived(parent):
        result["parent_weights"] = IN_BF16
    if rank == 0:
        finish(folder, result)


def restore(config: StageConfig, folder: Path, archive: Path) -> None:
    """What the stage's run left, from its archive: the adapter as it was trained, and the weights made of it."""
    from lit_long.training.adapter import restore_adapted

    print(f"the weights are made again from the adapter in {archive}", flush=True)  # log.txt
    result = read_result(archive)
    restore_adapted(config, archive / ADAPTED, folder, result["precision"])
    shutil.copyfile(archive / CURVE, folder / CURVE)
    finish(folder, result)


def compute(config: StageConfig, folder: Path, store: Path | None, parent: Path | None, report: Report) -> dict[str, Any]:
    """The stage's result. Imports are here so that each kind loads only what it needs (a data stage needs no torch)."""
    if config.kind == "data":
        from lit_long.data.prepare import prepare

        own = config.data.sources
        return {"kind": "data"} | prepare(config.data.corpus, folder, report, own, uses_builtin(config.data))
    if config.trainer.mkl_fast_path and config.trainer.accelerator == "cpu" and (line := take_mkl_fast_path()):
        print(line, flush=True)  # log.txt
    if config.kind == "train":
        from lit_long.training.run import train

        return train(config, folder, store, parent, report)
    from lit_long.evaluation.run import evaluate

    return evaluate(config, folder, store, parent, report)
