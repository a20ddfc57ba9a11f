"""`python -m lit_long.theory`: what it writes, what it records, what it refuses."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest

from lit_long.positions import SCHEMES
from lit_long.positions.analysis import TheoryConfig, encoders
from lit_long.theory import main
from lit_long.tracking.mlflow_store import default_uri
from tests.integration.mini import REPOSITORY

SMALL = ["schemes=[rope,abf,pi]", "head_dim=32", "length=256", "factor=2", "distances=[0,10,2k]"]
COLUMNS = {
    "spectrum": ["scheme", "head_dim", "index", "inv_freq", "attention_factor"],
    "decay": ["scheme", "distance", "score"],
    "granularity": ["scheme", "head_dim", "value"],
    "base_bound": ["base", "head_dim", "length"],
    "layers": ["pattern", "layer", "group", "rotated", "window", "reach", "positioned", "pairs"],
    "query_scale": ["form", "context", "beta"],
}


def rows(file):
    with file.open() as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("theory")
    assert main([*SMALL, f"root={root}"]) == 0
    return root


def test_files_and_columns(written):
    folder = written / "runs" / "theory"
    for name, columns in COLUMNS.items():
        table = rows(folder / f"{name}.csv")
        assert list(table[0]) == columns, name
    spectrum = rows(folder / "spectrum.csv")
    assert [row["scheme"] for row in spectrum[::16]] == ["rope", "abf", "pi"]
    assert float(spectrum[17]["inv_freq"]) == pytest.approx(5e5 ** (-2 / 32)) and spectrum[17]["index"] == "1"
    assert [row["distance"] for row in rows(folder / "decay.csv")][:3] == ["0", "10", "2048"]
    for name in ("theory", "layers"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / "figures" / f"{name}.svg").read_text()
    page = (folder / "theory.md").read_text()
    for words in ("0.076", "0.027", "18,438", "misprint", "1000 of 1,000", "32,768"):
        assert words in page


def test_recorded_once(written, tmp_path):
    from mlflow import MlflowClient

    assert main([*SMALL, f"root={written}", f"out={tmp_path}"]) == 0  # the same analysis: the same run
    client = MlflowClient(tracking_uri=default_uri(written))
    experiment = client.get_experiment_by_name("theory")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["head_dim"] == "32"
    assert run.data.metrics["granularity/rope"] > run.data.metrics["granularity/pi"]
    assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {"theory.md", "spectrum.csv", "figures"}


def test_no_torch_and_no_record(tmp_path):
    code = f"""
import sys
from lit_long.theory import main
assert main({[*SMALL, f"root={tmp_path}", "tracking.enabled=false"]!r}) == 0
assert not {{"torch", "mlflow", "matplotlib.pyplot"}} & set(sys.modules)
"""
    finished = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert not (tmp_path / "mlflow").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["schems=[rope]"], "did you mean 'schemes'?"),
        (["schemes=[yarm]"], "error: schemes=yarm: there is no configs/position/yarm.yaml; did you mean 'yarn'?"),
        (["schemes=[longrope]"], "search=longrope"),
        (["schemes=[]"], "at least one option"),
        (["schemes=[alibi]"], "position alibi: changes scores, not the rotation that is analysed here"),
        (["schemes=[rope]", "layers=[swam]"], "there is no configs/layers/swam.yaml; did you mean 'swan'?"),
        (["schemes=[rope]", "layers=[gemma3]", "n_layers=4"], "layers gemma3: model.n_layers=4 ends before"),
        (["schemes=rope"], "schemes must be a list such as [a,b]"),
        (["head_dim=31"], "head_dim must be even"),
        (["distances=[-1]"], "distances[0] must be at least 0"),
        (["factor=0.5"], "factor must be at least 1"),
        (["--fast"], "not of the form key=value"),
        (["search=longrop", "stage=x"], "only search=longrope"),
        (["search=longrope"], "needs stage=FOLDER"),
        (["search=longrope", "stage=nowhere"], "/nowhere: there is no such folder"),
        (["search=longrope", "stage=x", "populaton=3"], "did you mean 'population'?"),
    ],
)
def test_errors(words, expected, tmp_path, capsys):
    quiet = [] if words[0].startswith("search") else ["tracking.enabled=false"]
    assert main([*words, f"root={tmp_path}", *quiet]) == 2
    assert expected in capsys.readouterr().err


def test_default_schemes():
    """All options but those that need the user's factors or that change training only; T = 2,048."""
    found, left_out = encoders(TheoryConfig())
    assert set(found) == set(SCHEMES) - {"longrope", "alibi"} and list(found)[:3] == ["rope", "pi", "abf"]
    assert [line.split()[0] for line in left_out] == ["pose", "randomised"]
    assert found["pi"].factor == 8 and found["abf"].base == 5e5 and found["xpos_abf"].scale_base == 8192
    truncated = found["truncated"].inverse_frequencies(32_768)
    kept = sum(a == b for a, b in zip(truncated, found["rope"].inverse_frequencies(32_768), strict=True))
    assert (kept, truncated.count(0.0)) == (41, 9)  # Giraffe's counts at T = 2,048


def test_a_file_is_a_scheme(tmp_path):
    (tmp_path / "mine.yaml").write_text("scheme: rope\nbase: ${multiply:2,${model.rope_base}}\n")
    found, _ = encoders(TheoryConfig(schemes=["rope", str(tmp_path / "mine.yaml")]))
    assert list(found) == ["rope", "mine"] and found["mine"].base == 2e4


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "search=longrope" in capsys.readouterr().out
