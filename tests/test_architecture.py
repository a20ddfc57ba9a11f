"""The house's own rules that a machine can check."""

from __future__ import annotations

import ast
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


def test_no_circles_between_files():
    """In all of the package. Imports inside functions count, too: a circle that is put off is a circle. What only names types does not."""
    root = REPOSITORY / "lit_long"
    files = {
        ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): file
        for file in root.rglob("*.py")
    }
    imports = {name: set(_imported(ast.parse(file.read_text()))) & files.keys() - {name} for name, file in files.items()}
    assert len(imports) > 150 and "lit_long.model.attention" in imports["lit_long.model.llama"]
    while ends := {name for name, found in imports.items() if not found}:
        imports = {name: found - ends for name, found in imports.items() if name not in ends}
    assert not imports


def _imported(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from _imported(node)
