"""How often an update waits for a GPU, and copies to it or from it: host_traffic_cases.py, in a process of its own.

The counter patches the indexing of tensors, and a class whose ``[]`` was ever patched counts as a sequence in its process for ever: ``torch.tensor`` of
scalars then fails, in torchmetrics for example.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_in_a_process_of_its_own():
    cases = Path(__file__).with_name("host_traffic_cases.py")
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "python_files=*_cases.py", str(cases)]
    finished = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=800)
    assert finished.returncode == 0 and "passed" in finished.stdout, finished.stdout + finished.stderr
