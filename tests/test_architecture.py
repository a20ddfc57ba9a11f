"""The house's own rules that a machine can check."""

from __future__ import annotations

import subprocess
import sys

from tests.integration.mini import REPOSITORY


def test_arrows_point_one_way():
    code = "import sys; from importlinter.cli import lint_imports_command as main; main()"
    finished = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert finished.returncode == 0 and "0 broken" in finished.stdout, finished.stdout


def test_mlflow_folder_is_no_package():
    assert not (REPOSITORY / "mlflow" / "__init__.py").exists()
    where = subprocess.run(
        [sys.executable, "-c", "import mlflow; print(mlflow.__file__)"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert "site-packages" in where.stdout


def test_the_model_is_a_page():
    assert len((REPOSITORY / "lit_long" / "model" / "llama.py").read_text().splitlines()) <= 250
