"""Bad input: one clear message, exit code 2, nothing half-written, nothing lost."""

from __future__ import annotations

import contextlib
import importlib
import re
import shutil
import sqlite3

import pytest

from lit_long.config import UserError, read_command
from lit_long.stages.folder import read_stage
from lit_long.sweep import main as sweep
from tests.integration.mini import MINI, REPOSITORY, run_here


def refused(*words: str, root) -> str:
    """The message of a sweep that must not start."""
    finished = run_here("lit_long.sweep", *MINI, *words, f"root={root}")
    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert finished.stderr.startswith("error: ") and "Traceback" not in finished.stdout + finished.stderr
    assert not list(root.glob("runs/stages/*")) and not list(root.glob("runs/position_tiny/*"))
    return finished.stderr


def test_a_disk_that_is_too_small(tmp_path):
    message = refused("model.n_layers=100M", root=tmp_path)
    said = re.search(r"the disk has ([\d.]+) GiB free", message)
    # other tests write to the same disk meanwhile
    assert said and float(said[1]) == pytest.approx(shutil.disk_usage(tmp_path).free / 2**30, abs=1)
    assert "root=FOLDER" in message


def test_a_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    finished = run_here("lit_long.sweep", *MINI, f"root={tmp_path}/file/below")
    assert finished.returncode == 2 and "cannot be written" in finished.stderr and "Traceback" not in finished.stderr


def test_a_locked_record(tmp_path):
    database = tmp_path / "mlflow" / "mlflow.db"
    database.parent.mkdir()
    with contextlib.closing(sqlite3.connect(database)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        message = refused(root=tmp_path)
    assert "Another process holds it" in message and "lsof" in message


def test_a_record_of_a_newer_mlflow(tmp_path):
    database = tmp_path / "mlflow" / "mlflow.db"
    database.parent.mkdir()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.executescript(
            "CREATE TABLE experiments (id INTEGER); CREATE TABLE alembic_version (version_num TEXT);"
            "INSERT INTO alembic_version VALUES ('fedcba987654');"
        )
    before = database.read_bytes()
    message = refused(root=tmp_path)
    assert "newer than" in message and "pip install --upgrade mlflow" in message
    assert database.read_bytes() == before


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("evaluation.lengths=[100,256]", "evaluation.lengths must divide the longest"),
        ("evaluation.retrieval_lengths=[64]", "evaluation.retrieval_lengths[0] must be at least 128 (tokens), not 64"),
        ("evaluation.domains=[cod]", "unknown domain 'cod' in evaluation.domains; did you mean 'code'?"),
        ("evaluation.sequences=0", "evaluation.sequences must be at least 1"),
        ("data.weights.cod=1", "data.weights.cod: unknown domain; did you mean 'code'?"),
        ("data.weights.code=-1", "data.weights.code must be at least 0, not -1"),
        ("data.corpus.packages=[no_such_package]", "data.corpus.packages names 'no_such_package'"),
        ("stages.extend.data.corpus.vocab_size=2048", "stages.extend: its data are not those of its parent, base"),
        ("stages.extend.data.corpus.packages=[yaml]", "Name the same data.sources and data.corpus for both"),
        ("model.n_kv_heads=3", "model.n_heads=2 must be a multiple of model.n_kv_heads=3"),
        ("model.vocab_size=100", "model.vocab_size=100 must not be smaller than data.corpus.vocab_size=1024"),
        ("model.head_dim=7", "model.head_dim must be even"),
        ("launcher.parallel=${seed}", "command line: launcher.parallel=${seed}: only settings of stages can refer to others"),
        ("only_failed=${seed}", "command line: only_failed=${seed}: only settings of stages can refer to others"),
        ("report.paper.rope.code=${context}", "command line: report.paper.rope.code=${context}: only settings"),
        ("report.published=[{rows: {rope: {x: '${seed}'}}}]", "report.published[0].rows.rope.x=${seed}: only settings"),
    ],
)
def test_settings_that_make_no_sense(word, message, tmp_path, capsys, monkeypatch):
    """In this process: one for each would do little but start."""
    monkeypatch.chdir(REPOSITORY)
    code, said = sweep([*MINI, word, f"root={tmp_path}"]), capsys.readouterr().err
    assert code == 2 and said.startswith("error: ") and message in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "axis"),
    [
        ("grid.position=rope,abf", "grid.position=[rope,abf]"),
        ("grid.seed=0, 1", "grid.seed=[0,1]"),
        ("position=rope,abf", "grid.position=[rope,abf]"),
        ("position=[rope,abf]", "grid.position=[rope,abf]"),
        ("seed=[0,1]", "grid.seed=[0,1]"),
        ("optim.lr=1e-3,2e-3", "grid.optim.lr=[1e-3,2e-3]"),
        ("model.norm=pre,post", "grid.model.norm=[pre,post]"),
        ("stages.extend.context=[256,512]", "grid.stages.extend.context=[256,512]"),
        ("stages.extend.position=rope,abf", "grid.stages.extend.position=[rope,abf]"),
        ("data.weights.code=[0.5,1]", "grid.data.weights.code=[0.5,1]"),
    ],
)
def test_several_values_belong_in_the_grid(word, axis, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert sweep([*MINI, word, "dry_run=true", f"root={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: command line: {word}: ") and said.count("\n") == 1
    assert said.partition(f"{word}: ")[2].rstrip() in (
        f"several values are a list: {axis}",
        f"must be one value; {axis} makes a variant of each",
    )
    read_command([axis])


@pytest.mark.parametrize(
    "word",
    [
        "evaluation.lengths=[128,256]",
        "optim.betas=[0.9,0.95]",
        "position.short_factors=[1,2]",
        "description=one, two",
        "data.weights={code: 0.5, docs: 0.5}",
        "model.rope_base=${multiply:50,${model.context}}",
        "stages.extend.tokens=1,000,000",  # of which its type says what it must be
        "trainer.devices=[0,1]",  # says where it runs
        "stages.extend.trainer.devices=[0,1]",
        "launcher.parallel=[1,2]",  # is the sweep's, of which there are no variants
        "position=/tmp/rope,abf.yaml",
        "grid.position=[rope,abf]",
    ],
)
def test_lists_and_commas_elsewhere_are_no_axes(word):
    read_command([word])


def test_an_option_with_a_comma_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (file := tmp_path / "configs" / "position" / "rope,mine.yaml").parent.mkdir(parents=True)
    file.write_text("scheme: rope\n")
    assert read_command(["position=rope,mine"]).cli["position"]["option"] == "rope,mine"


@pytest.mark.parametrize(
    ("group", "content", "said"),
    [
        ("launcher", "option: local\nparallel: ${seed}\n", "launcher.parallel=${seed}"),
        ("tracking", "option: local\nenabled: ${seed}\n", "tracking.enabled=${seed}"),
    ],
)
def test_an_option_file_of_the_sweep_refers_to_no_other_setting(group, content, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (file := tmp_path / "configs" / group / "mine.yaml").parent.mkdir(parents=True)
    file.write_text(content)
    assert sweep([*MINI, f"{group}=mine", "dry_run=true", f"root={tmp_path}"]) == 2
    assert capsys.readouterr().err == (
        f"error: {file}: {said}: only settings of stages can refer to others; write the value itself\n"
    )


def test_a_record_that_cannot_be(tmp_path):
    assert "MLflow cannot use" in refused("tracking.uri=sqlite:////proc/none/x.db", root=tmp_path)


def test_an_empty_validation_split_fails_in_its_stage(tmp_path):
    """What only building the corpus can tell: the stage fails, its message is shown, what needs it is skipped."""
    finished = run_here("lit_long.sweep", *MINI, "data.corpus.validation=[this]", "position=rope", f"root={tmp_path}")
    assert finished.returncode == 1
    assert "corpus: FAILED: The validation split" in finished.stdout and "data.corpus.validation" in finished.stdout
    assert "base: skipped" in finished.stdout and "Traceback" not in finished.stdout + finished.stderr
    assert finished.stdout.splitlines()[-1].startswith("  corpus: The validation split")  # the reason again, last
    assert "perplexity" not in finished.stdout and "6.548" not in finished.stdout  # no empty table, nor the paper's numbers


def test_report_without_results(tmp_path):
    for words, message in (
        (["experiment=position_tiny"], "No results for experiment"),
        (["experimnt=x"], "did you mean 'experiment'"),
    ):
        finished = run_here("lit_long.report", *words, f"root={tmp_path}")
        assert finished.returncode == 2 and message in finished.stderr and "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [("theory", []), ("evaluate", ["out=x"]), ("instruct.__main__", ["generate", "out=x"])],
)
def test_commands_whose_tracking_has_no_options_say_how_to_choose(command, words, capsys):
    """A sweep takes tracking=csv and tracking=none."""
    for option in ("csv", "none"):
        assert importlib.import_module(f"lit_long.{command}").main([*words, f"tracking={option}"]) == 2
        message = "tracking must be a group of settings, such as tracking.name=csv or tracking.enabled=false, not"
        assert message in capsys.readouterr().err


def test_a_folder_that_is_no_stage(tmp_path):
    finished = run_here("lit_long.stage", str(tmp_path))
    assert finished.returncode == 2 and finished.stdout == ""
    assert finished.stderr.startswith(f"error: {tmp_path}: is no stage, for it has no stage.yaml; ")


def test_stages_that_cannot_be_read(tmp_path):
    with pytest.raises(
        UserError, match=f"^{tmp_path}/nowhere: there is no such folder; .*Provenance of runs/EXPERIMENT/latest/report.md"
    ):
        read_stage(tmp_path / "nowhere")
    (tmp_path / "stage.yaml").write_text("a: [")
    with pytest.raises(UserError, match=f"^{tmp_path}/stage.yaml: not a stage: "):
        read_stage(tmp_path)
