"""All benchmarks, one after the other, on a machine that does nothing else: `make bench`, or `python -m tests.benchmarks [only=train,data-prepare]
[full] [minutes=30]`. They are to take half an hour: on a slow machine the parts of `train`, the longest, that do not fit into it are left out,
and named. `full`: more rounds and the grids in full, however long that takes. only=growth and only=recording, some ten minutes each, run where they are
asked for alone.

Each writes its rows to tests/benchmarks/results/DATE-NAME.json, a second run of the day to DATE-NAME-2.json, and so on. (Rotation only prints:
pytest -s tests/benchmarks/bench_rotation.py; how long a command takes to start, bench_cli.py.)
"""

from __future__ import annotations

import datetime
import itertools
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
BENCHES = {
    "generation": "bench_generation",
    "evaluation": "bench_evaluation",
    "data-prepare": "bench_data_prepare",
    "data-batches": "bench_data_batches",
    "planning": "bench_planning",
    "optimizer": "bench_optimizer",
    "train": "bench_train_step",  # last: it leaves out parts for which there is no time
}
ON_DEMAND = {"growth": "bench_growth", "recording": "bench_recording"}
FULL = ("train", "evaluation")  # those that know the word


def unused(stem: str) -> Path:
    """A result file that does not exist yet."""
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(file for name in names if not (file := RESULTS / f"{name}.json").exists())


def main(argv: list[str]) -> int:
    names = next((word.removeprefix("only=") for word in argv if word.startswith("only=")), ",".join(BENCHES)).split(",")
    known = BENCHES | ON_DEMAND
    if unknown := [name for name in names if name not in known]:
        print(f"only={unknown[0]}: no such benchmark; there are {', '.join(known)}", file=sys.stderr)
        return 2
    minutes = next((word.removeprefix("minutes=") for word in argv if word.startswith("minutes=")), "30")
    if not minutes.isdecimal():
        print(f"minutes={minutes}: must be a whole number", file=sys.stderr)
        return 2
    limits = {"train": f"until={time.time() + 60 * int(minutes)}"} if "full" not in argv else dict.fromkeys(FULL, "full")
    failed = []
    for name in names:
        more = [limits[name]] if name in limits else []
        file = unused(f"{datetime.date.today()}-{name}")
        print(f"── {name}", flush=True)
        start = time.perf_counter()
        code = subprocess.run([sys.executable, "-m", f"tests.benchmarks.{known[name]}", str(file), *more]).returncode
        print(
            f"   {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}, {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        failed += [name] if code else []
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
