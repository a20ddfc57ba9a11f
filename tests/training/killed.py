"""A stage of one device that ends by kill -9 within a validation, and again within a later one: killed.py STORE OUT UPDATE … Run by test_resume.py.
Each time it is a fork of this process, which imports once, and ends with 0 if all were killed."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from lit_long.config import CurriculumConfig, StageConfig
from lit_long.config.schema import PhaseConfig
from lit_long.training.callbacks import MetricsFile
from lit_long.training.resume import newest_checkpoint
from lit_long.training.run import train
from tests.training.resume_ranks import config


def stage() -> StageConfig:
    """Its phases have encoders of their own, and its last update is a milestone."""
    first = PhaseConfig(until=0.5, scale=0.5, position={"scheme": "rope", "base": 100.0})
    return replace(config(1, milestones=[1.0]), curriculum=CurriculumConfig([first, PhaseConfig(until=1.0)]))


def kill(callback: MetricsFile, trainer: object, values: dict[str, object]) -> None:
    """In place of writing a line: of the validation of that update half of it is written, and the process is gone."""
    if trainer.global_step == update and any(name.startswith("val/") for name in values):
        with callback.file.open("a") as file:
            file.write('{"step": ')
        os.kill(os.getpid(), signal.SIGKILL)
    write(callback, trainer, values)


if __name__ == "__main__":
    write, MetricsFile.write = MetricsFile.write, kill
    for update in map(int, sys.argv[3:]):
        if not (child := os.fork()):
            train(stage(), Path(sys.argv[2]), Path(sys.argv[1]), None, lambda *_: None)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == -signal.SIGKILL, f"update {update}: {status}"
        assert newest_checkpoint(Path(sys.argv[2]) / "checkpoints").name == f"step-{update:08d}.ckpt"
