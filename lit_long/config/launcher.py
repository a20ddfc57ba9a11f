"""The settings of launchers (launch/). None of them is part of a stage's identity: they say where it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lit_long.config.ranges import Count, CountOrNone, Positive


@dataclass
class LauncherConfig:
    """Where stages run, and how many at once. A key that says nothing to the launcher in use is refused (launch/base.py)."""

    name: str = "local"  # local · torchrun · slurm · ray
    parallel: Count = 1  # stages side by side, where there is room for them
    # torchrun: stages of several nodes
    hosts: list[str] = field(default_factory=list)  # the nodes, reached by ssh; none: the other nodes' command lines are printed
    rdzv_endpoint: str = ""  # HOST[:PORT] at which the first node is reached by the others
    ssh: str = "ssh"  # the command, with options such as -p 2222
    # slurm and ray
    cpus: Count = 4  # of each process
    cancel_on_exit: bool = True  # Ctrl-C ends the jobs, too; else they go on, and the same command finds them again
    # slurm: a stage is a job
    cluster: str = "slurm"  # slurm · local: submitit's processes on this machine, to try settings without a cluster
    hours: Positive = 24.0  # then it is checkpointed and queued again
    grace_seconds: CountOrNone = 120  # between that signal, or that of a preemption, and the end
    requeues: CountOrNone = 100  # as often at most
    partition: str = ""
    account: str = ""
    qos: str = ""
    memory: str = ""  # of each node, such as 64G; none: the partition's default
    extra: dict[str, Any] = field(default_factory=dict)  # other options of sbatch: {constraint: a100, exclusive: true}
    setup: list[str] = field(default_factory=list)  # shell lines before the stage: module load cuda (torchrun: on each host, too)
    poll_seconds: Positive = 15.0  # between two looks at the queue, one for all jobs
    # ray: a stage is an actor
    # auto: the cluster that this machine belongs to · local: one on this machine, for this sweep · HOST:PORT
    address: str = "auto"
