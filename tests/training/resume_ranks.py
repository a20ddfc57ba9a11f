"""Ranks that train, stop, save and go on, again and again in one process group. Run by test_resume.py as:
resume_ranks.py STORE OUT NAME …; the stages' folders are OUT/NAME, and what each of them is for stands in `PARTS`.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from lit_long.config import (
    CurriculumConfig,
    DataConfig,
    LayerGroupConfig,
    LayersConfig,
    ModelConfig,
    OptimConfig,
    StageConfig,
    TrainerConfig,
    UserError,
)
from lit_long.config.schema import PhaseConfig, ValidationConfig
from lit_long.training import resume
from lit_long.training.module import LongContextModule
from lit_long.training.run import train
from tests.training import broken

UPDATES, STOP = 8, 5
NARROW = {"groups": {"local": {"window": 9}, "global": {"position": {"scheme": "nope"}}}, "pattern": ["local", "global"]}


def config(ranks: int, **trainer) -> StageConfig:
    model = ModelConfig(vocab_size=300, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, d_ffn=64, context=64)
    return StageConfig(
        context=64,
        tokens=UPDATES * 512,
        tokens_per_update=512,
        model=model,
        position={"scheme": "rope", "base": 10_000.0},
        data=DataConfig(weights={"long": 0.7, "short": 0.3}),
        layers=LayersConfig({"local": LayerGroupConfig(window=20), "global": LayerGroupConfig()}, ["local", "global"]),
        curriculum=CurriculumConfig([PhaseConfig(until=0.5, scale=0.5, layers=NARROW), PhaseConfig(until=1.0)]),
        optim=OptimConfig(lr=1e-2),
        validation=ValidationConfig(times=2, sequences=2),
        trainer=TrainerConfig(
            precision="32-true",
            strategy="single" if ranks == 1 else "fsdp",
            devices=ranks,
            **{"checkpoint_every": 2, "timeout_minutes": 5.0} | trainer,
        ),
    )


def run(
    out: Path,
    store: Path,
    ranks: int,
    at: Callable[[int], None] = lambda update: None,
    position: dict[str, object] | None = None,
    **trainer: object,
) -> tuple[str, BaseException | None]:
    """Train the stage in ``out``, to its end or to what stops it.

    Args:
        at: is called by the first rank after every update.
    """

    def report(message: str, done: float) -> None:
        if message.startswith("update"):
            at(round(done * UPDATES))

    out.mkdir(exist_ok=True)
    try:
        settings = config(ranks, **trainer)
        result = train(replace(settings, position=position or settings.position), out, store, None, report)
        if result:  # the first rank's
            (out / "result.json").write_text(json.dumps(result))
    except (KeyboardInterrupt, UserError) as error:
        return str(error), error
    return "", None


def stop(update: int) -> None:
    """The first rank alone is asked to end."""
    if update == STOP:
        os.kill(os.getpid(), signal.SIGTERM)


def fill(update: int) -> None:
    """From now on the first rank cannot write files of more than 30,000 bytes, as if its disk were full."""
    if update == STOP:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def saved(out: Path) -> list[str]:
    """The checkpoints there are. All ranks look before any of them goes on."""
    found = sorted(path.name for path in (out / "checkpoints").iterdir())
    if dist.is_initialized():
        dist.barrier()
    return found


def expect(found: object, expected: object) -> None:
    if found != expected:
        sys.exit(f"rank {os.environ['RANK']}: {found!r}, not {expected!r}")


def straight(out: Path, store: Path, ranks: int) -> None:
    expect(run(out, store, ranks, checkpoint_every=100)[0], "")


def stopped(out: Path, store: Path, ranks: int, way: str) -> None:
    """Asked to end after update 5, and run again. Milestones and the newest two stay."""
    keys = {"keep_checkpoints": 2, "milestones": [0.25, 1.0], "checkpoint_async": way}
    message, error = run(out, store, ranks, stop, **keys)
    expect(message, "interrupted after update 5 of 8; the same command goes on from update 5")
    expect(isinstance(error, KeyboardInterrupt), True)
    expect(saved(out), [f"step-{step:08d}.ckpt" for step in (2, 4, 5)])
    if dist.get_rank() == 0:
        shutil.copytree(out, out.with_name(f"{out.name} copy"))
        (out / "checkpoints" / "step-00000007.ckpt.writing").mkdir()  # as a kill leaves it
    dist.barrier()
    expect(run(out, store, ranks, **keys)[0], "")
    expect(saved(out), [f"step-{step:08d}.ckpt" for step in (2, 6, 8)])
    if dist.get_rank() == 0:
        (out / "weights.safetensors").unlink()  # as if killed after the last update
    dist.barrier()
    expect(run(out, store, ranks, **keys)[0], "")


def background(out: Path, store: Path, ranks: int) -> None:
    """The disk is slow: while a checkpoint is written, training goes on by several updates."""
    write = resume.write_folder

    def slow(*arguments: object) -> None:
        time.sleep(0.5)
        write(*arguments)

    resume.write_folder = slow
    stopped(out, store, ranks, "always")
    resume.write_folder = write


def full(out: Path, store: Path, ranks: int) -> None:
    """The disk is full when update 6 is to be saved."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    message, error = run(out, store, ranks, fill)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    expect(isinstance(error, UserError), True)
    expect("step-00000006.ckpt: no space left" in message and "step-00000004.ckpt, is whole" in message, True)
    dist.barrier()
    expect(saved(out), ["step-00000004.ckpt"])
    expect(run(out, store, ranks)[0], "")


def validation(out: Path, store: Path, ranks: int) -> None:
    """All end within the validation of update 4, after its checkpoint."""
    measure = LongContextModule.on_validation_epoch_end

    def end(module: LongContextModule) -> None:
        raise UserError("ended")

    LongContextModule.on_validation_epoch_end = end
    expect(run(out, store, ranks)[0], "ended")
    LongContextModule.on_validation_epoch_end = measure
    expect(saved(out), ["step-00000004.ckpt"])
    expect(run(out, store, ranks)[0], "")


def not_finite(out: Path, store: Path, ranks: int) -> None:
    """The last rank alone has a loss that is not a number, in update 3: all stop there, or leave it out, and remember that."""
    position = {"scheme": "tests.training.broken:Broken", "base": 10_000.0}
    for way in ("stop", "skip"):
        broken.at = 3 if dist.get_rank() == ranks - 1 else 0
        message, error = run(out.with_name(f"{out.name} {way}"), store, ranks, stop, position, on_bad_step=way)
        if way == "stop":
            expect(message.partition(",")[0], "update 3: the loss is nan and the norm of the gradient nan. It was not applied")
            expect(isinstance(error, UserError), True)
            expect(saved(out.with_name(f"{out.name} {way}")), ["step-00000002.ckpt"])
    expect(run(out.with_name(f"{out.name} skip"), store, ranks, position=position, on_bad_step="skip")[0], "")


def goes_on(out: Path, store: Path, ranks: int) -> None:
    """From a checkpoint that another number of ranks left."""
    expect(saved(out), ["step-00000005.ckpt"])
    expect(run(out, store, ranks)[0], "")


PARTS = {
    "straight": straight,
    "sync": lambda *arguments: stopped(*arguments, "never"),
    "background": background,
    "full": full,
    "validation": validation,
    "nan": not_finite,
}


if __name__ == "__main__":
    prepared, place, *names = sys.argv[1:]
    for name in names:
        PARTS.get(name, goes_on)(Path(place) / name, Path(prepared), int(os.environ["WORLD_SIZE"]))
    dist.destroy_process_group()
