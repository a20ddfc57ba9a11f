"""Finding a sweep, the messages for what cannot be read, and what a report may import."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import yaml

from lit_long.config import UserError
from lit_long.report import find_sweep, write_report
from lit_long.report.__main__ import main


def test_find_sweep_follows_latest(tmp_path, make):
    folder = make.sweep(tmp_path, {("abf", 0): None})
    assert find_sweep(tmp_path, "position_tiny") == folder.resolve()


def test_an_older_sweep_by_its_key(tmp_path, make):
    older = make.sweep(tmp_path, {("abf", 0): None})
    newer = older.with_name("41ace964")
    shutil.copytree(older, newer)
    (newer.parent / "latest").unlink()
    (newer.parent / "latest").symlink_to(newer.name)
    assert find_sweep(tmp_path, "position_tiny") == find_sweep(tmp_path, "position_tiny", newer.name) == newer.resolve()
    assert find_sweep(tmp_path, "position_tiny", older.name) == older.resolve()
    with pytest.raises(UserError, match=f"key=41ace965: .* has no such sweep; did you mean '41ace964'.* it has .*{older.name}"):
        find_sweep(tmp_path, "position_tiny", "41ace965")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out=DIR"], "out= says nothing without uri=, findings=, published= or scores="),
        (["findings=a", "results=b", "out=c", "key=1"], "key= says nothing with findings="),
        (["scores=a", "keep=b", "root=c"], "root= says nothing with scores="),
        (["experiment"], "'experiment' is not of the form key=value, such as experiment=position_tiny"),
        (["kye=1"], "unknown key 'kye'; did you mean 'key'"),
    ],
)
def test_words_that_say_nothing_are_refused(words, message, capsys):
    assert main(words) == 2 and message in capsys.readouterr().err


def test_an_empty_root_is_that_of_other_commands(tmp_path, make, monkeypatch, capsys):
    monkeypatch.setattr("lit_long.report.__main__.project_root", lambda: tmp_path / "checkout")
    monkeypatch.chdir(tmp_path)
    assert main(["root="]) == 2 and f"{tmp_path}/checkout/runs/position_tiny/latest does not exist" in capsys.readouterr().err


def test_find_sweep_lists_experiments_and_guesses(tmp_path, make):
    for name in ("position_tiny", "mixture"):
        make.sweep(tmp_path, {("abf", 0): None}, experiment=name)
    with pytest.raises(UserError) as caught:
        find_sweep(tmp_path, "position_tyni")
    message = str(caught.value)
    assert "mixture, position_tiny" in message and "Did you mean `position_tiny`?" in message
    assert "`python -m lit_long.sweep experiment=position_tyni`" in message
    assert "stages" not in message


@pytest.mark.parametrize("name", ["anything", "", "..", "../runs/position_tiny"])
def test_find_sweep_before_any_sweep(tmp_path, name):
    with pytest.raises(UserError, match="There are no results in .*runs yet"):
        find_sweep(tmp_path, name)


def test_find_sweep_with_a_dangling_latest(tmp_path, make):
    folder = make.sweep(tmp_path, {("abf", 0): None})
    folder.rename(folder.with_name("moved"))
    with pytest.raises(UserError, match="latest does not exist"):
        find_sweep(tmp_path, "position_tiny")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("sweep.json", None, r"sweep.json does not exist. Run the sweep again"),
        ("sweep.json", "{", r"sweep.json cannot be read: .* Run the sweep again"),
        ("sweep.json", "[]", r"sweep.json must hold a mapping, but holds list"),
        ("sweep.json", '{"trials": [{"variant": "abf", "seed": 0}]}', r"sweep.json: malformed, KeyError: 'stages'"),
        (
            "sweep.json",
            '{"trials": [{"variant": "abf", "seed": 0, "stages": []}]}',
            r"sweep.json: malformed, AttributeError",
        ),
        ("sweep.yaml", None, r"sweep.yaml does not exist"),
        ("sweep.yaml", "a: [", r"sweep.yaml cannot be read"),
        ("sweep.yaml", "report: {row: evaluate}", "unknown key 'report.row'; did you mean 'report.rows'"),
        ("sweep.yaml", "report: {paper: {abf: 3}}", "report.paper.abf must be a group of settings"),
        (
            "sweep.yaml",
            "report: {rows: eval}",
            r"report.rows is `eval`, but no trial has .*Stages: corpus, base, extend, evaluate",
        ),
        ("sweep.yaml", "report: {reference: nothing}", r"report.reference is `nothing`"),
        ("../../stages/evaluate-abf-s0/result.json", "nan nan", r"result.json cannot be read: .*Remove .*DONE and run"),
        ("../../stages/evaluate-abf-s0/result.json", None, r"result.json does not exist. Remove .*DONE and run"),
    ],
)
def test_malformed_files_name_the_file_and_the_remedy(tmp_path, make, file, content, message):
    folder = make.sweep(tmp_path, {("abf", 0): make.perplexities(20.0)})
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(UserError, match=message):
        write_report(folder)
    assert not (folder / "report.md").exists()


def test_a_bare_config_is_enough(tmp_path, make):
    folder = make.sweep(tmp_path, {("abf", 0): make.perplexities(20.0)})
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"experiment": "position_tiny"}))
    markdown = write_report(folder).markdown
    assert markdown.startswith("# position_tiny\n") and "| RoPE ABF | 20.00 | 30.00 |" in markdown


def test_heavy_libraries_stay_out(tmp_path, make):
    folder = make.sweep(tmp_path, {("abf", 0): make.everything()})
    heavy = "torch lightning mlflow pandas transformers matplotlib.pyplot"
    script = f"""
import sys
import lit_long.report
early = [name for name in "matplotlib rich numpy {heavy}".split() if name in sys.modules]
from pathlib import Path
assert len(lit_long.report.write_report(Path({str(folder)!r})).figures) == 4
print(early, [name for name in {heavy!r}.split() if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[] []\n", "")
