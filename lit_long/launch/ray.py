"""``launcher=ray``: a stage is an actor with CPUs and GPUs of its own, on several machines one on each, all in one placement group.

The actors are detached: they outlive a sweep that is killed, and the next command finds them by the stage's name. They end with the stage.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from lit_long.config import LauncherConfig, StageConfig, UserError
from lit_long.launch.job import StageNode, confirm_exit, forget_job, note_job
from lit_long.launch.launcher import ReadyStage, Running, missing
from lit_long.launch.local import Node, count_gpus, count_nodes, count_processes
from lit_long.launch.torchrun import free_port

NAMESPACE = "lit-long"
ASK_SECONDS = 0.5
STOP_SECONDS = 30.0
LINGER_SECONDS = 60.0  # of an actor whose stage is over, to tell the sweep
ORPHAN_SECONDS = 600.0  # of one that was never told to begin


def import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else each start warns of a change to come
    try:
        import ray
    except ImportError:
        raise missing("ray", "ray") from None
    return ray


class StageActor:
    """A node's part of a stage, on the machine where Ray put it. Its methods run in threads: they may wait."""

    def __init__(self, folder: str, threads: int, working_directory: str) -> None:
        self.folder, self.threads = Path(folder), threads
        self.node: StageNode | None = None
        self.error, self.begun = "", threading.Lock()
        if Path(working_directory).is_dir():
            os.chdir(working_directory)
        threading.Thread(target=self.end_in_time, daemon=True).start()

    def place(self) -> str:
        """HOST:PORT where ranks can meet here."""
        import ray

        return f"{ray.util.get_node_ip_address()}:{free_port()}"

    def begin(self, rank: int, count: int, address: str) -> str:
        """Start; at a second call nothing. Returns what the user must put right, "" if nothing."""
        with self.begun:
            if self.node is None and not self.error:
                try:
                    self.node = StageNode(self.folder, Node(rank, count, address), self.threads)
                except UserError as error:
                    self.error = str(error)
        return self.error

    def exit_code(self) -> int | None:
        """None until it has begun and is over."""
        return self.node.exit_code() if self.node else None

    def interrupt(self) -> None:
        if self.node:
            self.node.interrupt(STOP_SECONDS)

    def end_in_time(self) -> None:
        """A detached actor would keep its GPUs when nobody asks for it any more."""
        since, allowed = time.monotonic(), ORPHAN_SECONDS
        while time.monotonic() - since < allowed:
            time.sleep(1.0)
            if self.node and self.node.exit_code() is None:
                since, allowed = time.monotonic(), LINGER_SECONDS
        os._exit(0)


class RayLauncher:
    """Connects at the first start."""

    def __init__(self, config: LauncherConfig, root: Path) -> None:
        self.ray, self.config, self.connected = import_ray(), config, False

    def check(self, configs: Sequence[StageConfig]) -> None:
        pass  # what the cluster has is known when it is connected to

    def fits(self, config: StageConfig, running: Sequence[StageConfig]) -> bool:
        return True  # Ray lets an actor wait for its resources

    def connect(self) -> None:
        """Raises UserError: there is no cluster at that address."""
        if self.connected:
            return
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        address = self.config.address
        options = {"include_dashboard": False} if address == "local" else {}
        try:
            self.ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"launcher.address={address}: no Ray cluster answers: {str(error).splitlines()[0]}. Start one with `ray start --head`, or take "
                "launcher.address=local, one on this machine for this sweep"
            ) from None
        finally:
            for number, handler in handlers.items():  # Ray puts its own in their place
                signal.signal(number, handler)
        self.connected = True

    def start(self, stages: Sequence[ReadyStage], say: Callable[[str], None]) -> list[Running]:
        self.connect()
        return [self.start_one(stage) for stage in stages]

    def start_one(self, stage: ReadyStage) -> RayStage:
        count, ranks = count_nodes(stage.config), count_processes(stage.config) // count_nodes(stage.config)
        share = {"CPU": self.config.cpus * ranks} | ({"GPU": count_gpus(stage.config)} if count_gpus(stage.config) else {})
        self.check_share(share, count)
        places: list[dict[str, Any]] = [{}]
        if count > 1:
            group = self.ray.util.placement_group(
                [share] * count, strategy="STRICT_SPREAD", name=stage.folder.name, lifetime="detached"
            )
            strategy = import_module("ray.util.scheduling_strategies").PlacementGroupSchedulingStrategy
            places = [{"scheduling_strategy": strategy(group, placement_group_bundle_index=rank)} for rank in range(count)]
        actors = [
            self.ray.remote(StageActor)
            .options(
                name=f"{stage.folder.name}-{rank}",
                namespace=NAMESPACE,
                lifetime="detached",
                max_concurrency=4,
                num_cpus=share["CPU"],
                num_gpus=share.get("GPU", 0),
                **place,
            )
            .remote(str(stage.folder), self.config.cpus, os.getcwd())
            for rank, place in enumerate(places)
        ]
        note_job(stage.folder, "ray", address=self.config.address, nodes=str(count))
        return RayStage(stage.folder, actors, self)

    def check_share(self, share: dict[str, float], count: int) -> None:
        """Refuse what no part of the cluster will ever have."""
        alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        enough = [node for node in alive if all(node.get(name, 0) >= wanted for name, wanted in share.items())]
        if len(enough) < count:
            asked = ", ".join(f"{wanted:g} {name}" for name, wanted in share.items())
            has = "; ".join(", ".join(f"{node.get(name, 0):g} {name}" for name in share) for node in alive)
            raise UserError(
                f"a stage asks for {asked} on {count} node(s) of the Ray cluster, whose nodes have {has}: lower launcher.cpus (of each process) "
                "or trainer.devices"
            )

    def join(self, stage: ReadyStage, job: dict[str, str]) -> Running | None:
        if job["address"] == "local":
            return None  # that cluster was a part of the sweep that is gone
        try:
            self.connect()
            actors = [self.ray.get_actor(f"{stage.folder.name}-{rank}", NAMESPACE) for rank in range(int(job["nodes"]))]
        except (UserError, ValueError):
            return None
        return RayStage(stage.folder, actors, self)

    def close(self) -> None:
        if self.connected:
            self.ray.shutdown()


class RayStage:
    """The actors of a stage. Each question to them is asked once and its answer waited for without blocking."""

    def __init__(self, folder: Path, actors: list[Any], launcher: RayLauncher) -> None:
        self.folder, self.actors, self.ray, self.launcher = folder, actors, launcher.ray, launcher
        self.asked = [self.actors[0].place.remote()]
        self.take = self.begin
        self.code: int | None = None
        self.reason, self.next, self.ended = "", 0.0, 0.0

    def exit_code(self) -> int | None:
        if self.code is None and time.monotonic() >= self.next:
            self.next = time.monotonic() + ASK_SECONDS
            ready, _ = self.ray.wait(self.asked, num_returns=len(self.asked), timeout=0)
            broken = self.broken(ready)
            if broken or len(ready) == len(self.asked):
                self.code = self.fail(broken) if broken else self.take(self.ray.get(self.asked))
            if self.code is not None:
                self.clear()
        return self.code

    def broken(self, ready: list[Any]) -> str:
        """Why an actor is gone, if one is."""
        for one in ready:
            try:
                self.ray.get(one)
            except self.ray.exceptions.RayError as error:
                lines = [line for line in str(error).splitlines() if line.strip()]
                return f"Ray lost the stage: {' '.join(lines[:1] + lines[-1:])}"
        return ""

    def fail(self, reason: str, code: int = 1) -> int:
        self.reason = reason
        return code

    def begin(self, answers: list[str]) -> None:
        """The first node has its place: let all begin there."""
        self.asked = [actor.begin.remote(rank, len(self.actors), answers[0]) for rank, actor in enumerate(self.actors)]
        self.take = self.watch

    def watch(self, answers: list[str]) -> int | None:
        """They have begun."""
        if error := next(filter(None, answers), ""):
            return self.fail(error, 2)
        self.take = self.over
        return self.over([None] * len(self.actors))

    def over(self, codes: list[int | None]) -> int | None:
        """The exit code when one node failed or all are through."""
        if (bad := next(filter(None, codes), 0)) or None not in codes:
            self.ended = self.ended or time.monotonic()
            return confirm_exit(self.folder, bad, self.ended)
        self.asked = [actor.exit_code.remote() for actor in self.actors]
        return None

    def waits_for(self) -> str:
        return "waits for resources of the Ray cluster" if self.take == self.begin else ""

    def why(self) -> str:
        return self.reason

    def stop(self) -> str:
        if not self.launcher.config.cancel_on_exit and self.launcher.config.address != "local":
            return f"Ray's actor {self.folder.name} goes on; the same command finds it again"
        if self.take == self.over:
            with suppress(self.ray.exceptions.RayError):
                self.ray.get([actor.interrupt.remote() for actor in self.actors], timeout=STOP_SECONDS)
        self.clear()
        return ""

    def clear(self) -> None:
        """Free what they hold."""
        for actor in self.actors:
            with suppress(Exception):  # it may be gone already
                self.ray.kill(actor)
        if len(self.actors) > 1:
            with suppress(Exception):
                self.ray.util.remove_placement_group(self.ray.util.get_placement_group(self.folder.name))
        forget_job(self.folder)
