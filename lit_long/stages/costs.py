"""What runs cost before they run: the training stages of an experiment, and the paper's own runs, as the planner's jobs."""

from __future__ import annotations

from dataclasses import replace

from lit_long.config import ModelConfig, StageConfig, UserError
from lit_long.config.checkpoints import number_of_updates
from lit_long.config.compose import compose_model
from lit_long.config.mesh import mesh_of
from lit_long.data.curriculum import make_phases
from lit_long.planning.flops import stage_flops
from lit_long.planning.job import Job, why_not
from lit_long.planning.paper import paper_runs
from lit_long.planning.rows import RUN_HEADER, run_row
from lit_long.planning.search import Estimate, Machines, estimate, search
from lit_long.pretrained import open_pretrained
from lit_long.stages.plan import Plan

NOTHING = "–"


def model_and_context(words: dict) -> tuple[ModelConfig, int]:
    """The shape that ``model`` names, and the context: the one given, or the model's own."""

    def pretrained(init: str) -> tuple[ModelConfig, dict]:
        found = open_pretrained(init)
        return found.shape, found.position

    config = compose_model(words, pretrained)
    return config.model, config.context


def find_fastest(job: Job, machines: Machines, said: frozenset[str]) -> Estimate:
    """The fastest way that fits, or the one that is nearest to it.

    Raises:
        UserError: no layout of these GPUs can run the job at all.
    """
    if (found := search(job, machines, said)) is None:
        whole = job.on(shard=max(1, machines.gpus // (job.mesh.replicate * job.mesh.context * job.mesh.tensor)))
        reason = why_not(whole) or f"{machines.gpus} GPUs are no multiple of replicate · context_parallel · tensor_parallel"
        raise UserError(f"no layout of {machines.gpus} GPUs can run this: {reason}")
    return found


def job_of(config: StageConfig, where: str) -> Job:
    """A training stage as a job. An adapter is planned as if all weights were trained: more than it needs."""
    updates = number_of_updates(config)
    phases = make_phases(config.curriculum, config.context, config.tokens_per_update, updates, where)
    trainer = config.trainer
    return Job(
        model=config.model,
        context=config.context,
        tokens_per_update=config.tokens_per_update,
        tokens=updates * config.tokens_per_update,
        mesh=mesh_of(trainer),
        rows=max(1, trainer.micro_batch_tokens // config.context),
        precision=trainer.precision,
        checkpointing=trainer.checkpointing,
        accumulate=trainer.accumulate,
        loss_memory=trainer.loss_memory,
        phases=tuple((phase.updates / updates, phase.context) for phase in phases),
    )


def stage_rows(experiment: Plan, machines: Machines, as_configured: bool) -> tuple[list[list[str]], bool]:
    """A row of text for each distinct stage that computes, in running order, and whether all of them fit.

    Args:
        as_configured: training stages run as their trainer stands; else the fastest way on all of ``machines`` is looked for.
    """
    rows, fit = [], True
    for stage in experiment.stages:
        name, config = experiment.label(stage), stage.config
        if config.kind == "train":
            job = job_of(config, name)
            own = replace(machines, gpus=job.mesh.ranks)
            found = estimate(job, own) if as_configured else find_fastest(job, machines, frozenset())
            fit &= found.fits
            rows.append(run_row(name, found))
        elif config.kind == "evaluate":
            rows.append([name, f"{stage_flops(config):.2e}", *[NOTHING] * (len(RUN_HEADER) - 2)])
    return rows, fit


def paper_rows(machines: Machines) -> tuple[list[list[str]], list[list[str]]]:
    """The paper's runs on their own numbers of GPUs; and of those whose FLOPs it prints, these FLOPs: printed, by its formula, and by ours."""
    rows, flops = [], []
    for run in paper_runs():
        model, _ = model_and_context({"model": {"option": run.model}})
        found = find_fastest(run.job(model), replace(machines, gpus=run.gpus), frozenset())
        rows.append(run_row(run.name, found))
        if run.flops:
            flops.append([run.name, *(f"{value:.3e}" for value in (run.flops, run.flops_as_printed(model), found.speed.flops))])
    return rows, flops
