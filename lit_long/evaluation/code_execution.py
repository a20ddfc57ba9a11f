"""Programs that a model wrote, run against their tests: HumanEval (Chen et al. 2021) and MBPP (Austin et al. 2021), pass@1 of greedy answers.

A program runs in a process of its own, without the environment's variables, in an empty folder that is deleted, with limits on time, memory,
files and processes. That stops accidents, not attacks: nothing keeps it from the network or from reading what this user may read.
So it is off unless the user asks for it (``run_code=true``), who should do so on a machine that may be lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

SECONDS = 10.0
MEBIBYTES = 1024
PASSED = 77  # sys.exit(0) in an answer must not count as passing

# Limits are set by the child itself, before it reads the program: a function to run between fork and exec may hang beside torch's threads.
CHILD = """
import resource, sys
limits = {"AS": %d << 20, "CPU": %d, "FSIZE": 1 << 20, "NPROC": 0, "NOFILE": 32, "CORE": 0}
for name, limit in limits.items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
exec(compile(sys.stdin.read(), "<answer>", "exec"), {"__name__": "__main__"})
"""


def passes(program: str, seconds: float = SECONDS, mebibytes: int = MEBIBYTES) -> bool:
    """Whether ``program`` runs to its end within the limits, without an exception, and does not leave early by itself."""
    marked = f"{program}\nimport sys as _sys\n_sys.exit({PASSED})\n"
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", CHILD % (mebibytes, int(seconds) + 1)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            child.communicate(marked.encode(), timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        return child.returncode == PASSED


def humaneval(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The function's beginning, what the model wrote, and the test of the data set."""
    return {"pass@1": float(passes(f"{doc['prompt']}{results[0]}\n{doc['test']}\ncheck({doc['entry_point']})"))}


def mbpp(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    tests = "\n".join([doc.get("test_setup_code") or "", *doc["test_list"]])
    return {"pass@1": float(passes(f"{results[0]}\n{tests}"))}


def examples(rows: Dataset) -> Dataset:
    """The three examples of MBPP's authors: tasks 2, 3 and 4 of the split "prompt"."""
    return rows.filter(lambda row: row["task_id"] in (2, 3, 4))
