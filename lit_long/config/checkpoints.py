"""What the trainer's keys about checkpoints and faults mean. Planning checks them here, without torch."""

from __future__ import annotations

from lit_long.config.schema import StageConfig, TrainerConfig
from lit_long.config.typed import UserError, nearest
from lit_long.config.updates import number_of_updates

CHECKPOINTS = "checkpoints"  # below a training stage's folder
STEP = "step-{:08d}.ckpt"
BACKGROUND = ("auto", "always", "never")
ON_BAD_STEP = ("stop", "skip")


def check_checkpoints(config: StageConfig, where: str) -> None:
    """Raise the UserError of values that make no sense; ``where``: file and stage, for the message."""
    trainer = config.trainer
    for key, value, known in (
        ("checkpoint_async", trainer.checkpoint_async, BACKGROUND),
        ("on_bad_step", trainer.on_bad_step, ON_BAD_STEP),
    ):
        if value not in known:
            raise UserError(f"{where}: trainer.{key}={value}: no such way{nearest(value, known)}")
    milestone_updates(config, where)


def milestone_updates(config: StageConfig, where: str = "stage.yaml") -> set[int]:
    """The updates after which ``trainer.milestones`` are reached: up to 1 they are shares of the run, above it tokens.

    Raises:
        UserError: one that is not reached.
    """
    updates, found = number_of_updates(config), set()
    for number, milestone in enumerate(config.trainer.milestones):
        update = round(milestone * updates) if milestone <= 1 else -(-int(milestone) // config.tokens_per_update)
        if update > updates:
            raise UserError(
                f"{where}: trainer.milestones[{number}]={milestone:g}: must be a share of the run, up to 1, or a number of tokens "
                f"up to the stage's {updates * config.tokens_per_update:,}"
            )
        found.add(max(1, update))
    return found


def writes_in_background(trainer: TrainerConfig) -> bool:
    """Whether checkpoints are written beside training."""
    return trainer.accelerator != "cpu" if trainer.checkpoint_async == "auto" else trainer.checkpoint_async == "always"
