"""Plan a training run before it runs: memory of each GPU, communication between GPUs, FLOPs, time.

    python -m lit_long.plan model=llama2-70b context=16k gpus=64     the fastest layout that fits on H100s
    … tokens_per_update=4M tokens=400e9                 the run (these are the defaults)
    … gpu=a100|h100|h200|b200|l40s gpus=8 gpus_per_machine=8 efficiency=0.4       efficiency: the share of the peak to assume
    … layers=swan layers.groups.local.window=512        layers that differ (configs/layers/)
    … precision=bf16-mixed|bf16-true|32-true
    … replicate=1 context_parallel=2 tensor_parallel=8 checkpointing=full micro_batch_tokens=16k accumulate=sharded
                                                        fixed, not searched; weights are sharded over the remaining GPUs
    … trace=true                                        run the model itself, on tensors without data, and compare (minutes for 7B)
    python -m lit_long.plan experiment=NAME …           every stage of an experiment with its own trainer; with gpus=… the fastest layout
    python -m lit_long.plan paper=true                  the paper's own runs, as Markdown (docs/planning.md)

Memory is a formula, held against the real model; time rests on the assumed efficiency. Exit codes: 0 it fits, 1 it does not, 2 bad input.
"""

from __future__ import annotations

from dataclasses import fields

from rich.console import Console

from lit_long.config import parse_words, read_command, typed
from lit_long.config.compose import parse_model_words
from lit_long.planning import rows
from lit_long.planning.hardware import usable
from lit_long.planning.settings import MachinesConfig, PlanConfig, job_of, machines_of
from lit_long.report.tables import Table
from lit_long.stages.costs import find_fastest, misfits, model_of, paper_rows, stage_rows
from lit_long.stages.plan import make_plan
from lit_long.terminal import answer, run_command

COMMAND_LINE = "command line"


def main(argv: list[str]) -> int:
    return answer(argv, __doc__, run)


def run(argv: list[str]) -> int:
    if any(word.startswith("experiment=") for word in argv):
        return plan_experiment(argv)
    words = parse_model_words(argv, PlanConfig)
    config = typed(PlanConfig, words, COMMAND_LINE)
    return plan_paper(config) if config.paper else plan_one(config, frozenset(words))


def plan_one(config: PlanConfig, said: frozenset[str]) -> int:
    """Tables and sentences about one run."""
    machines = machines_of(config)
    asked = {"model": config.model, "layers": config.layers, "context": config.context}
    named = model_of({key: value for key, value in asked.items() if value})
    found = find_fastest(job_of(config, named), machines, said)
    show(Table("Memory of a GPU", ["kind", "GiB"], rows.memory_rows(found)))
    if transfers := rows.transfer_rows(found):
        show(Table("What a GPU sends in an update", ["collective", "GiB", "seconds", "computing"], transfers))
    say(*rows.sentences(found, machines))
    if config.trace:
        from lit_long.training.memory_trace import compare

        say(rows.trace_sentence(*compare(found.job)))
    return 0 if found.fits else 1


def plan_experiment(argv: list[str]) -> int:
    """A row for each stage."""
    own = {field.name for field in fields(MachinesConfig)}
    mine = [word for word in argv if word.partition("=")[0] in own]
    machines = machines_of(typed(MachinesConfig, parse_words(mine, MachinesConfig), COMMAND_LINE))
    as_configured = not any(word.startswith("gpus=") for word in mine)
    plan = make_plan(
        read_command([*(word for word in argv if word not in mine), "dry_run=true"])
    )  # weights and data may lie elsewhere
    stages, fit = stage_rows(plan, machines, as_configured)
    say(*plan.notes)
    show(Table(f"Stages on {machines.gpu.name}s", rows.in_groups(rows.RUN_HEADER), [rows.in_groups(row) for row in stages]))
    if as_configured:
        say(*misfits(plan, machines.gpu, usable(machines.gpu)))
    return 0 if fit else 1


def plan_paper(config: PlanConfig) -> int:
    runs, flops = paper_rows(machines_of(config))
    print(Table("", rows.RUN_HEADER, runs).markdown())
    print()
    print(Table("", rows.FLOPS_HEADER, flops).markdown())
    return 0


def show(table: Table) -> None:
    for part in table.terminal():
        Console().print(part)


def say(*lines: str) -> None:
    for line in lines:
        Console().print(line, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
