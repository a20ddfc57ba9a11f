"""All benchmarks, one after the other, on a machine that does nothing else: `make bench`, or `python -m tests.benchmarks [only=train,data] [full]`:
more rounds and the grids in full, which takes much longer.

Each writes its rows to tests/benchmarks/results/DATE-NAME.json. (Rotation only prints: pytest -s tests/benchmarks/bench_rotation.py; how long a
command takes to start, bench_cli.py.)
"""

from __future__ import annotations

import datetime
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
BENCHES = {
    "train": "bench_train_step",
    "generation": "bench_generation",
    "evaluation": "bench_evaluation",
    "data-prepare": "bench_data_prepare",
    "data-batches": "bench_data_batches",
}
FULL = ("train", "evaluation")  # those that know the word


def main(argv: list[str]) -> int:
    names = next((word.removeprefix("only=") for word in argv if word.startswith("only=")), ",".join(BENCHES)).split(",")
    if unknown := [name for name in names if name not in BENCHES]:
        print(f"only={unknown[0]}: no such benchmark; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    failed = []
    for name in names:
        full = ["full"] if "full" in argv and name in FULL else []
        file = RESULTS / f"{datetime.date.today()}-{name}.json"
        print(f"── {name}", flush=True)
        start = time.perf_counter()
        code = subprocess.run([sys.executable, "-m", f"tests.benchmarks.{BENCHES[name]}", str(file), *full]).returncode
        print(
            f"   {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}, {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        failed += [name] if code else []
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
