"""How a stage's tokens divide into optimizer updates, each of whole sequences."""

from __future__ import annotations

from lit_long.config.schema import StageConfig
from lit_long.config.typed import UserError, written

FAR = 2**20  # tokens: a divisor beyond is not looked for


def number_of_updates(config: StageConfig) -> int:
    """Optimizer updates of a stage: its tokens in whole updates, at least one; of a branch, of what is left of its parent's run."""
    return updates_of_run(config) - first_update(config)


def updates_of_run(config: StageConfig) -> int:
    """Optimizer updates of the run that the stage's data are those of: its own, or of a branch its parent's."""
    return max(1, round(config.tokens / config.tokens_per_update))


def first_update(config: StageConfig) -> int:
    """The update of that run with which the stage begins, or whose model it measures; above 0 of branches only."""
    return 0 if config.branch == 1 else min(round(config.branch * updates_of_run(config)), updates_of_run(config) - 1)


def check_whole_sequences(tokens_per_update: int, context: int, where: str, prefix: str = "", note: str = "") -> None:
    """Raise the UserError of an update that ends within a sequence, with the nearest values that fit.

    Args:
        where: file and stage, or "command line".
        prefix: of both keys where they are set, such as ``"stages.extend."``.
        note: said behind tokens_per_update.
    """
    if tokens_per_update % context == 0:
        return
    whole = max(1, round(tokens_per_update / context)) * context
    divisor = near_divisor(tokens_per_update, context)
    raise UserError(
        f"{where}: tokens_per_update={tokens_per_update}{note} must be a multiple of context={context}, whole sequences; take "
        f"{prefix}tokens_per_update={written(whole)}{f' or {prefix}context={written(divisor)}' if divisor else ''}"
    )


def near_divisor(number: int, wanted: int) -> int | None:
    """The divisor of ``number`` that is nearest to ``wanted``, up to half of it away; the number itself where that is smaller."""
    if number < wanted:
        return number
    near = (each for step in range(min(wanted // 2, FAR) + 1) for each in (wanted + step, wanted - step))
    return next((each for each in near if number % each == 0), None)
