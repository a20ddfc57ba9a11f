"""The README's Python runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.integration.mini import REPOSITORY


def test_library_example(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    (tmp_path / "example.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    finished = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800
    )
    assert finished.returncode == 0, finished.stderr
    assert "max_steps=10` reached" in finished.stdout + finished.stderr
