"""Planning by trials: seconds, processor seconds and memory of `dry_run=true`, 4 encoders × so many seeds, each in a process of its own.

python -m tests.benchmarks.bench_planning FILE.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.integration.mini import REPOSITORY

SEEDS = (25, 250, 2500)
ENCODERS = ("rope", "pi", "abf", "yarn")


def measure(seeds: int, root: str) -> dict[str, float]:
    """A plan of so many seeds; its memory is the process' highest."""
    grid = [f"grid.position=[{','.join(ENCODERS)}]", f"grid.seed=[{','.join(map(str, range(seeds)))}]"]
    command = [sys.executable, "-m", "lit_long.sweep", *grid, "dry_run=true", f"root={root}"]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    seconds = time.perf_counter() - start
    return {
        "trials": seeds * len(ENCODERS),
        "seconds": round(seconds, 2),
        "processor seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "MB": round(usage.ru_maxrss / 1e3, 1),
    }


def main(argv: list[str]) -> int:
    with tempfile.TemporaryDirectory() as root:
        rows = [measure(seeds, root) for seeds in SEEDS]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    Path(argv[0]).write_text(json.dumps({"planning": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
