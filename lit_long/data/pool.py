"""Processes that work side by side and never outlive the one that started them, not even when that was ended by kill -9.

Spawned, not forked: the caller may hold threads (torch, tokenizers), which a fork would leave with their locks taken. They do not import the caller's
script, whose functions they never call: no ``if __name__ == "__main__"`` is needed around what starts them, and a script that imports Lightning does
not import it once for each of them.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any

from lit_long.config import UserError


def available_cores() -> int:
    """Cores that this process may use; fewer than the machine has where a scheduler says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def process_pool(workers: int, threads: bool = False) -> Iterator[ProcessPoolExecutor]:
    """A pool of ``workers`` processes. ``threads``: whether there are cores left for the tokenizer's own threads.

    Raises:
        UserError: one of them was killed, as the kernel does when memory is used up.
    """
    with ProcessPoolExecutor(workers, mp_context=_Context(), initializer=_start, initargs=(threads,)) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise UserError(
                "A process that read documents was killed (was the memory used up?). Give the same command again, with fewer of them "
                "(processes=1) if it was: it goes on where it was."
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Worker(SpawnProcess):
    """A spawned process that starts without the caller's script: multiprocessing tells it to import what is ``__main__`` at its start."""

    @staticmethod
    def _Popen(process: Any) -> Any:  # noqa: N802 - the name that multiprocessing calls
        script = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process)
        finally:
            sys.modules["__main__"] = script


class _Context(SpawnContext):
    Process = _Worker


def _start(threads: bool) -> None:
    """Begin a process. Many of them already use all cores; the tokenizer's own threads would only be in their way."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads else "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent is gone would wait for work for ever: it holds the queue's other end itself and sees no end of it."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
