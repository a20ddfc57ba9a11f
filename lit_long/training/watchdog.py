"""Ends a stage of several ranks in which nothing moves, and says which rank did not arrive."""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import lightning
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from lit_long.files import write_atomically

HANG = "hang"  # a folder of the stage's, with what each rank says of itself when nothing moves
FAILED = 1


class Watchdog(Callback):
    """Ends a stage of several ranks in which nothing has moved for ``minutes``, and names the rank that the others wait for.

    In good times nothing is sent or written: each rank counts how far it is. A thread that sees its rank stand still writes down where
    it stands, in a file; then all compare.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.place, self.seconds = folder, folder / HANG, 60 * minutes
        self.position, self.moved = [0, 0], 0.0  # updates done, and how far in the next; when that changed last
        self.ended = threading.Event()
        self.main = threading.main_thread().ident

    def on_train_start(self, trainer: Trainer, module: lightning.LightningModule) -> None:
        if trainer.world_size == 1 or not self.seconds:
            return
        if trainer.is_global_zero:
            shutil.rmtree(self.place, ignore_errors=True)
        trainer.strategy.barrier()
        module.model.register_forward_pre_hook(lambda *_: self.move())
        self.on_train_batch_end(trainer)
        arguments = (trainer.global_rank, trainer.world_size)
        threading.Thread(target=self.watch, args=arguments, name="watchdog", daemon=True).start()

    def on_train_batch_start(self, *_: Any) -> None:
        self.move()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.position, self.moved = [trainer.global_step, 0], time.monotonic()

    def on_train_end(self, *_: Any) -> None:
        self.ended.set()

    def on_exception(self, *_: Any) -> None:
        self.ended.set()

    def move(self) -> None:
        self.position[1] += 1
        self.moved = time.monotonic()

    def watch(self, rank: int, world: int) -> None:
        while not self.ended.wait(min(1.0, self.seconds / 10)):
            if time.monotonic() - self.moved > self.seconds:
                self.alarm(rank, world)

    def alarm(self, rank: int, world: int) -> None:
        """Say where this rank stands, hear the others, and end, unless it moves again."""
        before = self.moved
        file = self.place / f"rank-{rank:05d}.json"
        write_atomically(file, json.dumps(self.stand(rank)))
        if self.ended.wait(min(30.0, 2 + self.seconds / 20)) or self.moved != before:
            file.unlink(missing_ok=True)
            return
        reports = [json.loads(path.read_text()) for path in sorted(self.place.glob("rank-*.json"))]
        message = (
            f"nothing has moved for {self.seconds / 60:g} minutes (trainer.timeout_minutes): {find_culprits(reports, world)}"
        )
        print(f"error: rank {rank}: {message}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        if not (self.folder / "error.txt").exists():
            write_atomically(self.folder / "error.txt", message + ". The same command goes on from the last checkpoint\n")
        os._exit(FAILED)

    def stand(self, rank: int) -> dict[str, Any]:
        """Where the main thread is."""
        frames = traceback.extract_stack(sys._current_frames()[self.main])
        ours = next((frame for frame in reversed(frames) if "lit_long" in frame.filename), frames[-1])
        return {
            "rank": rank,
            "host": socket.gethostname(),
            "position": self.position,
            "waits": any("torch/distributed" in frame.filename for frame in frames[-3:]),
            "where": f"{Path(ours.filename).name}:{ours.lineno} in {ours.name}",
        }


def find_culprits(reports: list[dict[str, Any]], world: int) -> str:
    """Who is to blame: ranks that say nothing; else those that are behind; else those that wait for nobody."""
    silent = sorted(set(range(world)) - {report["rank"] for report in reports})
    if silent:
        return f"{list_ranks(silent)} of {world} did not answer: stopped, out of memory, or on a machine that is gone"
    furthest = max(report["position"] for report in reports)
    behind = [report for report in reports if report["position"] < furthest]
    busy = [report for report in reports if not report["waits"]]
    found = behind or (busy if len(busy) < world else [])
    if not found:
        return f"all {world} ranks stand at the same place, in update {furthest[0] + 1}: a fault of the network? Their stacks are in log.txt"
    places = "; ".join(f"{report['where']} on {report['host']}, in update {report['position'][0] + 1}" for report in found[:3])
    return f"{list_ranks([report['rank'] for report in found])} of {world} did not arrive: {places}. Stacks are in log.txt"


def list_ranks(numbers: list[int]) -> str:
    return f"{'ranks' if len(numbers) > 1 else 'rank'} {', '.join(map(str, numbers[:16]))}{' …' if len(numbers) > 16 else ''}"
