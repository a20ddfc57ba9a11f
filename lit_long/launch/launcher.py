"""What the runner asks of a launcher, and the choice of one by ``launcher.name``.

A launcher starts `python -m lit_long.stage FOLDER` somewhere, under torchrun where a stage has several ranks. What the stage reads and writes
lies in its folder, so that whoever started it, results, record and table are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from lit_long.config import LauncherConfig, StageConfig, UserError, nearest, refuse_idle_keys

# Where each launcher lives, and the keys that mean something to it besides name and parallel.
JOB_KEYS = ("cpus", "cancel_on_exit")
SBATCH_KEYS = ("hours", "grace_seconds", "requeues", "partition", "account", "qos", "memory", "extra", "setup")
LAUNCHERS = {
    "local": ("lit_long.launch.local", "LocalLauncher", ("fork",)),
    "torchrun": ("lit_long.launch.torchrun", "TorchrunLauncher", ("fork", "hosts", "rdzv_endpoint", "ssh", "setup")),
    "slurm": ("lit_long.launch.slurm", "SlurmLauncher", (*JOB_KEYS, *SBATCH_KEYS, "cluster", "poll_seconds")),
    "ray": ("lit_long.launch.ray", "RayLauncher", (*JOB_KEYS, "address")),
}


@dataclass(frozen=True)
class ReadyStage:
    """A stage to be started: its folder is complete, and the open file ``lock`` holds it."""

    folder: Path
    label: str
    config: StageConfig
    lock: int


class Running(Protocol):
    """A stage that was started."""

    def exit_code(self) -> int | None:
        """None while it runs, or waits in a queue; negative for a signal."""

    def waits_for(self) -> str:
        """What keeps it from running, such as its place in a queue; "" when it runs."""

    def why(self) -> str:
        """What the launcher knows of a failure that the stage cannot say itself, such as a node that went down; "" if nothing."""

    def stop(self) -> str:
        """End it in good order, within seconds. Returns what goes on all the same, as a line for the user; "" if nothing."""


class Launcher(Protocol):
    """Where stages run. A launcher is made before anything is written, and starts or connects to nothing until ``start``."""

    def check(self, configs: Sequence[StageConfig]) -> None:
        """Refuse what cannot run here. Raises UserError."""

    def fits(self, config: StageConfig, running: Sequence[StageConfig]) -> bool:
        """Whether the stage can run beside those that do. Always, when none does."""

    def start(self, stages: Sequence[ReadyStage], say: Callable[[str], None]) -> list[Running]:
        """Start stages that are independent of one another, in this order. ``say`` shows the user a line."""

    def join(self, stage: ReadyStage, job: dict[str, str]) -> Running | None:
        """The job that an earlier sweep, which is gone, left running; None when it is gone, too."""

    def close(self) -> None:
        """The sweep is over."""


def make_launcher(config: LauncherConfig, root: Path) -> Launcher:
    """The launcher of that name.

    Args:
        root: where runs/ lies, for what a launcher has to write besides the stages' folders.

    Raises:
        UserError: an unknown name, a key of another launcher, a package that is not installed.
    """
    if config.name not in LAUNCHERS:
        raise UserError(f"launcher.name={config.name}: there is no such launcher{nearest(config.name, LAUNCHERS)}")
    if under_torchrun():
        raise UserError(
            "this sweep was started under torchrun, so that it would run once in every rank. Start it by itself, once: it starts torchrun "
            "for each stage of several devices, and for several machines with launcher=torchrun, slurm or ray"
        )
    module, name, _ = LAUNCHERS[config.name]
    refuse_idle_keys(config, "launcher", {name: own for name, (_, _, own) in LAUNCHERS.items()}, ("name", "parallel"))
    return getattr(import_module(module), name)(config, root)


def under_torchrun() -> bool:
    """Whether a torchrun started this process, or one that it comes from. Its variables say nothing: they are handed down to anything."""
    import psutil

    found: list[str] = []
    for process in psutil.Process().parents():
        with suppress(psutil.Error):
            found += process.cmdline()[:4]  # python -m torch.distributed.run
    return any(word == "torch.distributed.run" or Path(word).name == "torchrun" for word in found)


def refuse_nodes(configs: Sequence[StageConfig], launcher: str) -> None:
    """For launchers that know one machine. Raises UserError for a stage of several."""
    for config in configs:
        if config.kind == "train" and config.trainer.nodes > 1:
            raise UserError(
                f"trainer.nodes={config.trainer.nodes}: launcher={launcher} runs stages on one machine; launcher=torchrun, slurm and ray "
                "run them on several"
            )


def missing(package: str, launcher: str) -> UserError:
    return UserError(
        f"launcher={launcher} needs {package}, which is not installed: pip install 'lit-long[cluster]'; or choose launcher=local"
    )
