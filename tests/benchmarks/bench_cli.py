"""What a user waits for before anything happens: seconds of the light commands, beside `import torch` in the same run."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest

from tests.integration.mini import REPOSITORY

COMMANDS = {
    "--help": ["-m", "lit_long.sweep", "--help"],
    "dry_run=true": ["-m", "lit_long.sweep", "dry_run=true"],
    "a wrong key": ["-m", "lit_long.sweep", "modle=1"],
    "report (needs a finished sweep)": ["-m", "lit_long.report", "experiment=position_tiny"],
    "import torch": ["-c", "import torch"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_start(name):
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, *COMMANDS[name]], cwd=REPOSITORY, capture_output=True)
        times.append(time.perf_counter() - start)
    print(f"\n{name}: {statistics.median(times):.2f} s (best {min(times):.2f})")
