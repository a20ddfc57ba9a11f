"""Planning by trials: seconds, processor seconds and memory of `dry_run=true`, 4 encoders × so many seeds, each in a process of its own; and for
1,000 trials beside version 0.1 (commit 6d0d953), where the clone's history has it.

python -m tests.benchmarks.bench_planning FILE.json
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from tests.integration.mini import REPOSITORY

SEEDS = (25, 250, 2500)
ENCODERS = ("rope", "pi", "abf", "yarn")
BEFORE = "6d0d953"


def measure(seeds: int, root: str, code: Path = REPOSITORY) -> dict[str, float]:
    """A plan of so many seeds by the version that lies in ``code``; its memory is the process' highest."""
    grid = [f"grid.position=[{','.join(ENCODERS)}]", f"grid.seed=[{','.join(map(str, range(seeds)))}]"]
    command = [sys.executable, "-m", "lit_long.sweep", *grid, "dry_run=true", f"root={root}"]
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(code)}
    process = subprocess.Popen(command, cwd=code, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    seconds = time.perf_counter() - start
    return {
        "trials": seeds * len(ENCODERS),
        "seconds": round(seconds, 2),
        "processor seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "MB": round(usage.ru_maxrss / 1e3, 1),
    }


def compare(root: str) -> dict[str, float]:
    """Processor seconds of 1,000 trials now and in 0.1, in one run; {} without 0.1 in the history."""
    archive = subprocess.run(["git", "archive", BEFORE], cwd=REPOSITORY, capture_output=True)
    if archive.returncode:
        return {}
    code = Path(root) / "before"
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(code, filter="data")
    found = {name: measure(250, root, place)["processor seconds"] for name, place in (("now", REPOSITORY), (BEFORE, code))}
    return found | {"ratio": round(found["now"] / found[BEFORE], 3)}


def main(argv: list[str]) -> int:
    with tempfile.TemporaryDirectory() as root:
        rows, beside = [measure(seeds, root) for seeds in SEEDS], compare(root)
    for row in [*rows, beside]:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    content = {"planning": rows, "processor seconds of 1,000 trials": beside}
    Path(argv[0]).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
