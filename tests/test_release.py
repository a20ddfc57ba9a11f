"""What is released: sdist and wheel, installed into environments of their own, at work in an empty folder."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import lit_long
from tests.integration.mini import REPOSITORY

SHIPPED = ("configs", "experiments")
TWO_UPDATES = [
    *("position=abf", "stages.extend.tokens=16k", "trainer.threads=2"),
    *("evaluation.sequences=2", "evaluation.retrieval_examples=2", "evaluation.retrieval_lengths=[256,512]"),
]
CACHES = {".cache/matplotlib", ".config/matplotlib"}  # matplotlib's list of fonts, which it writes for any program


def files(folder: Path) -> dict[str, Path]:
    """By their names below ``folder``; without Python's byte code."""
    return {
        str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    }


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """Of this tree, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)], cwd=REPOSITORY, check=True)
    (archive,) = folder.iterdir()
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """Built from the sdist, as pip does it where there is no wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=sdist, check=True)
    (found,) = folder.iterdir()
    return found


def test_sdist_and_wheel_hold_the_package_and_what_it_ships(sdist, wheel):
    about = {".gitignore", "CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    package = {f"lit_long/{name}" for name in files(REPOSITORY / "lit_long")}
    shipped = {f"{folder}/{name}" for folder in SHIPPED for name in files(REPOSITORY / folder)}
    assert set(files(sdist)) == about | package | shipped
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
        (metadata,) = (opened.read(name).decode() for name in opened.namelist() if name.endswith("/METADATA"))
    assert names == package | {f"lit_long/shipped/{name}" for name in shipped}
    assert f"\nVersion: {lit_long.__version__}\n" in metadata
    assert f"version: {lit_long.__version__}\n" in (REPOSITORY / "CITATION.cff").read_text()


class Place:
    """An environment with the wheel, and an empty folder, home and temporary folder of its own."""

    def __init__(self, root: Path, interpreter: str = sys.executable) -> None:
        self.venv, self.work, self.home, self.temporary = (root / name for name in ("venv", "work", "home", "tmp"))
        for folder in (self.work, self.home, self.temporary):
            folder.mkdir(parents=True)
        subprocess.run([interpreter, "-m", "venv", "--without-pip", str(self.venv)], check=True)
        self.python = self.venv / "bin" / "python"

    def install(self, *words: str) -> None:
        """By this environment's pip, into that one."""
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *words], check=True)

    def run(self, *words: str) -> str:
        """What ``python`` prints with those words, in the empty folder; nothing of this checkout or user is seen."""
        kept = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG")}
        own = {"HOME": str(self.home), "TMPDIR": str(self.temporary), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([str(self.python), *words], cwd=self.work, env=kept | own, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def elsewhere(self) -> set[str]:
        """What lies where nothing should be written."""
        written = {*files(self.home), *files(self.temporary)}
        return {name for name in written if str(Path(name).parent) not in CACHES} | set(files(self.venv))


@pytest.fixture
def place(tmp_path) -> Iterator[Path]:
    yield tmp_path / "place"
    shutil.rmtree(tmp_path / "place", ignore_errors=True)  # gigabytes, where torch comes with CUDA


def surroundings(place: Place, wheel: Path) -> None:
    """lit_long from the wheel alone, all else from the environment that runs the tests."""
    place.install("--no-deps", "--no-index", str(wheel))
    (own,) = place.venv.glob("lib/python*/site-packages")
    others = [each for each in sys.path if each.endswith("site-packages")]
    (own / "surroundings.pth").write_text("".join(f"{each}\n" for each in others))


def test_the_wheel_is_enough(place, wheel):
    """Commands, options, experiments and the base come from the installed package, not from a checkout."""
    there = Place(place)
    surroundings(there, wheel)
    before = there.elsewhere()
    assert Path(there.run("-c", "import lit_long; print(lit_long.__file__)").strip()).is_relative_to(there.venv)
    said = there.run("-m", "lit_long.sweep", "dry_run=true", "grid.position=[rope,abf]")
    assert "2 trials" in said and str(there.venv) in said  # where the base lies
    assert not files(there.work) and there.elsewhere() == before


def runs_position_tiny(there: Place) -> None:
    """Two updates of the default experiment and its evaluation; results in the working directory, and nothing elsewhere."""
    before = there.elsewhere()
    said = there.run("-m", "lit_long.sweep", *TWO_UPDATES)
    assert "Validation perplexity" in said and {each.name for each in there.work.iterdir()} == {"runs", "mlflow"}
    sweep = there.work / "runs" / "position_tiny" / "latest"
    with (sweep / "table.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "perplexity" and row["variant"] == "abf"]
    perplexities = [float(row["mean"]) for row in rows if row["mean"]]  # not the paper's
    assert len(perplexities) == 4 and all(1 < value < 4096 for value in perplexities)  # two domains, two lengths
    assert (sweep / "report.md").is_file() and (sweep / "figures").is_dir()
    assert len(list(there.work.glob("runs/stages/*/DONE"))) == 4  # corpus, extend, two evaluations
    assert (there.work / "mlflow" / "mlflow.db").is_file()
    assert there.elsewhere() == before


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_position_tiny_from_the_wheel(place, wheel):
    there = Place(place)
    surroundings(there, wheel)
    runs_position_tiny(there)


def floors() -> list[str]:
    """The lowest version that pyproject.toml allows of each dependency: ``name==version``."""
    needed = map(Requirement, tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"])
    return [f"{each.name}=={next(one.version for one in each.specifier if one.operator == '>=')}" for each in needed]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_lowest_versions(place, wheel):
    there = Place(place)
    there.install(str(wheel), *floors())
    runs_position_tiny(there)


def python313() -> str | None:
    """An interpreter that runs: ``PYTHON313``, one of PATH (not pyenv's placeholder), or pyenv's."""
    pyenv = sorted(Path.home().glob(".pyenv/versions/3.13*/bin/python3.13"))
    for candidate in (os.environ.get("PYTHON313"), shutil.which("python3.13"), *map(str, pyenv)):
        if candidate and subprocess.run([candidate, "-c", "import venv"], capture_output=True).returncode == 0:
            return candidate
    return None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_python_3_13(place, wheel):
    if not (interpreter := python313()):
        pytest.skip("no Python 3.13 here; PYTHON313=/path/to/python names one")
    there = Place(place, interpreter)
    there.install(str(wheel), "-c", str(REPOSITORY / "constraints.txt"))
    runs_position_tiny(there)
