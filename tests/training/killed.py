"""A stage of one device that ends by kill -9 within a validation: killed.py STORE OUT UPDATE. Run by test_resume.py."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from lit_long.config import CurriculumConfig, StageConfig
from lit_long.config.schema import PhaseConfig
from lit_long.training.callbacks import MetricsFile
from lit_long.training.run import train
from tests.training.resume_ranks import config


def stage() -> StageConfig:
    """Its phases have encoders of their own, and its last update is a milestone."""
    first = PhaseConfig(until=0.5, scale=0.5, position={"scheme": "rope", "base": 100.0})
    return replace(config(1, milestones=[1.0]), curriculum=CurriculumConfig([first, PhaseConfig(until=1.0)]))


def kill(callback: MetricsFile, trainer: object, values: dict[str, object]) -> None:
    """In place of writing a line: of the validation of that update half of it is written, and the process is gone."""
    if trainer.global_step == int(sys.argv[3]) and any(name.startswith("val/") for name in values):
        with callback.file.open("a") as file:
            file.write('{"step": ')
        os.kill(os.getpid(), signal.SIGKILL)
    write(callback, trainer, values)


if __name__ == "__main__":
    write, MetricsFile.write = MetricsFile.write, kill
    train(stage(), Path(sys.argv[2]), Path(sys.argv[1]), None, lambda *_: None)
