"""What runs cost before they run: the training stages of an experiment, and the paper's own runs, as the planner's jobs."""

from __future__ import annotations

import subprocess
from dataclasses import replace

from lit_long.config import LauncherConfig, StageConfig, UserError
from lit_long.config.command import option_pick, read_option
from lit_long.config.compose import compose_model
from lit_long.config.mesh import Mesh, evaluation_ranks, mesh_of
from lit_long.config.updates import first_update, number_of_updates, updates_of_run
from lit_long.data.curriculum import make_phases, phases_from
from lit_long.planning.flops import stage_flops
from lit_long.planning.hardware import GIB, GPUS, Gpu, usable
from lit_long.planning.inference import need
from lit_long.planning.job import Job, describe, job_layers, why_not
from lit_long.planning.memory import states
from lit_long.planning.paper import paper_runs
from lit_long.planning.rows import run_row
from lit_long.planning.search import Estimate, Machines, estimate, search
from lit_long.pretrained import PretrainedWeights, open_pretrained
from lit_long.stages.plan import Plan, Stage
from lit_long.stages.resolve import resolve_layers

NOTHING = "–"


def model_of(words: dict) -> StageConfig:
    """The model, layers and context that the words name; without a context, the model's own. Weights are not looked at where the option file tells their shape."""
    name = option_pick(words.get("model"))
    option = read_option("model", name) if name else {}

    def pretrained(init: str) -> PretrainedWeights | None:
        return None if init == option.get("init") and "d_model" in option else open_pretrained(init)

    config = compose_model(words, pretrained)
    return replace(config, layers=resolve_layers(config, config.layers, config.position, config.context, "command line"))


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
    phases = phases_from(
        first_update(config),
        make_phases(config.curriculum, config.context, config.tokens_per_update, updates_of_run(config), where),
    )
    trainer = config.trainer
    return Job(
        model=config.model,
        context=config.context,
        tokens_per_update=config.tokens_per_update,
        tokens=updates * config.tokens_per_update,
        mesh=mesh_of(trainer),
        micro_batch_tokens=trainer.micro_batch_tokens,
        precision=trainer.precision,
        checkpointing=trainer.checkpointing,
        accumulate=trainer.accumulate,
        loss_memory=trainer.loss_memory,
        phases=tuple((phase.updates / updates, phase.context) for phase in phases),
        layers=job_layers(config.layers, config.model.n_layers),
    )


def stage_rows(experiment: Plan, machines: Machines, as_configured: bool) -> tuple[list[list[str]], bool]:
    """A row of text for each distinct stage that computes, in running order, and whether all of them fit.

    Args:
        as_configured: training stages run as their trainer stands; else the fastest way on all of ``machines`` is looked for.
    """
    rows, fit, free = [], True, usable(machines.gpu)
    for stage in experiment.stages:
        name, config = experiment.label(stage), stage.config
        if config.kind == "train":
            job = job_of(config, name)
            own = replace(machines, gpus=job.mesh.ranks)
            found = estimate(job, own) if as_configured else find_fastest(job, machines, frozenset())
            fit &= found.fits
            rows.append(run_row(name, found))
        elif config.kind == "evaluate":
            if not as_configured:
                trainer = replace(config.trainer, strategy="fsdp", devices=min(machines.gpus, machines.in_machine))
                config = replace(config, trainer=trainer)
            ranks, size = evaluation_ranks(config), need(config).total
            fit &= size <= free
            cells = [
                f"{stage_flops(config):.2e}",
                f"{ranks}",
                f"{size / GIB:.1f}",
                "yes" if size <= free else "no",
                *[NOTHING] * 3,
            ]
            rows.append([name, *cells, describe(Mesh(tensor=ranks)), *[NOTHING] * 2])
    return rows, fit


def misfits(experiment: Plan, gpu: Gpu, free: float) -> list[str]:
    """A sentence for each stage to run on GPUs that cannot, since a ``gpu`` has no more than ``free`` bytes for tensors: the figure, and the remedy.

    Of training only what is certain counts: weights, gradients and the optimizer's moments.
    """
    found = []
    for stage in experiment.chosen:
        config, name = stage.config, experiment.label(stage)
        if stage.done or not on_gpus(config):
            continue
        room = f"and one {gpu.name} has {free / GIB:.1f} for tensors"
        if config.kind == "evaluate" and (size := need(config)).total > free:
            parts = ", ".join(f"{part} {getattr(size, part) / GIB:.1f}" for part in ("weights", "cache", "activations"))
            on = "one GPU" if (ranks := evaluation_ranks(config)) == 1 else f"each of {ranks} GPUs"
            found.append(f"{name}: takes {size.total / GIB:.1f} GiB on {on} ({parts}), {room}; {evaluation_remedy(stage, free)}")
        if config.kind == "train" and (least := least_of_training(config)) > free:
            found.append(
                f"{name}: weights, gradients and moments alone take {least / GIB:.1f} GiB on each of {mesh_of(config.trainer).ranks} GPUs, {room}; "
                f"stages.{stage.name}.trainer=fsdp deals them to more (trainer.devices, trainer.nodes); python -m lit_long.plan says to how many"
            )
    return found


def on_gpus(config: StageConfig) -> bool:
    return config.kind != "data" and config.trainer.accelerator in ("gpu", "cuda")


def least_of_training(config: StageConfig) -> float:
    """Bytes of a GPU's weights and, unless an adapter is trained beside them, of their gradients and of AdamW's two moments, or Muon's one."""
    job = job_of(config, "")
    copies = 1 if config.adapter.rank else 3 if config.optim.name == "muon" else 4
    return copies * states(job)["parameters"]


def evaluation_remedy(stage: Stage, free: float) -> str:
    """The keys with which an evaluation fits, if there are any."""
    config, key = stage.config, f"stages.{stage.name}"
    for devices in (2, 4, 8):
        shared = replace(config, trainer=replace(config.trainer, strategy="fsdp", devices=devices))
        if evaluation_ranks(shared) == devices > evaluation_ranks(config) and (size := need(shared).total) <= free:
            how = f"{key}.trainer.strategy=fsdp {key}.trainer.devices={devices}"
            return f"{devices} GPUs of a machine share it with {how} ({size / GIB:.1f} GiB each)"
    if config.evaluation.precision != "bf16-true" and need(config, precision="bf16-true").total <= free:
        return f"in bf16 it fits: {key}.evaluation.precision=bf16-true"
    return f"take a smaller {key}.evaluation.batch_tokens, shorter lengths or larger GPUs"


def find_misfits(experiment: Plan) -> list[str]:
    """`misfits` of a sweep that is to run."""
    if not any(on_gpus(stage.config) for stage in experiment.chosen if not stage.done):
        return []
    gpu = gpu_of(experiment.sweep.launcher)
    return misfits(experiment, gpu, gpu.memory)


def gpu_of(launcher: LauncherConfig) -> Gpu:
    """The smallest GPU of this machine where stages run here; else, and where there is none, the largest that a plan knows: what does not fit that
    one fits none."""
    largest = max(GPUS.values(), key=lambda gpu: gpu.memory)
    if launcher.name not in ("local", "torchrun"):
        return largest
    query = ["nvidia-smi", "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
        memory, name = min((float(line.split(",")[0]), line.split(",")[1].strip()) for line in lines)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return largest
    return replace(largest, name=name, memory=memory * 2**20)


def paper_rows(machines: Machines) -> tuple[list[list[str]], list[list[str]]]:
    """The paper's runs on their own numbers of GPUs; and of those whose FLOPs it prints, these FLOPs: printed, by its formula, and by ours."""
    rows, flops = [], []
    for run in paper_runs():
        model = model_of({"model": {"option": run.model}}).model
        found = find_fastest(run.job(model), replace(machines, gpus=run.gpus), frozenset())
        rows.append(run_row(run.name, found))
        if run.flops:
            flops.append([run.name, *(f"{value:.3e}" for value in (run.flops, run.flops_as_printed(model), found.speed.flops))])
    return rows, flops
