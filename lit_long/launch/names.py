"""What runs are called in MLflow: names that say what a run is in a flat list, beside those of other sweeps.

position_tiny | laptop | 4 variants, 3 seeds        the parent
abf | extend 2048 | seed 1                          a child: variant, stage and tokens of context, seed
base 256 | seed 1                                   a stage that all variants share
corpus                                              data, which no seed changes
"""

from __future__ import annotations

from lit_long.config import StageConfig
from lit_long.stages.plan import CORPUS, Plan, Stage


def sweep_name(plan: Plan) -> str:
    """Of the parent run: experiment, scale if there are several, and how much was swept."""
    variants, seeds = ({getattr(trial, key) for trial in plan.trials} for key in ("variant", "seed"))
    counted = ", ".join(f"{len(some)} {word}{'s' * (len(some) > 1)}" for some, word in ((variants, "variant"), (seeds, "seed")))
    return " | ".join(filter(None, (plan.sweep.experiment, plan.sweep.scale, counted)))


def run_name(plan: Plan, stage: Stage) -> str:
    """Of a stage's run. The stage's name is left out where trials have only one; the seed, where several share the stage."""
    users = plan.users(stage)
    variants, mine = ({trial.variant: None for trial in trials} for trials in (plan.trials, users))
    shared = len(mine) == len(variants) and (len(variants) > 1 or stage.config.kind == "data")
    alone = len(set(plan.trials[0].stages) - {CORPUS}) == 1 and stage.config.kind != "data"
    words = " ".join(filter(None, ("" if alone else stage.name, tokens(stage.config))))
    seed = f"seed {stage.config.seed}" if len({trial.seed for trial in users}) == 1 and stage.config.kind != "data" else ""
    return " | ".join(filter(None, ("" if shared else ", ".join(mine), words, seed)))


def tokens(config: StageConfig) -> str:
    """The context that is trained at, or the longest that is measured; "" for data."""
    if config.kind == "data":
        return ""
    evaluation = config.evaluation
    lengths = [*evaluation.lengths, *evaluation.retrieval_lengths, *evaluation.passkey_lengths, *evaluation.task_lengths]
    return str(config.context if config.kind == "train" else max(lengths, default=config.model.context))
