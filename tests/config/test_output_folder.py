"""Places that cannot be written to are refused before anything is computed."""

from __future__ import annotations

import importlib

import pytest

from lit_long.config.output_folder import check_writable

COMMANDS = {
    "theory": ["tracking.enabled=false"],
    "evaluate": ["model.init=x", "tracking.enabled=false"],
    "export": ["checkpoint=x"],
    "instruct.__main__": ["generate", "model.init=x", "tracking.enabled=false"],
    "data.__main__": ["inspect", "data=builtin"],
    "report.__main__": ["experiment=x", "uri=sqlite:///x.db"],
}


@pytest.mark.parametrize("out", ["/proc/x", "/proc/x/y", "{file}", "{file}/x", "a" * 300])
@pytest.mark.parametrize("command", COMMANDS)
def test_out_that_cannot_be_written(command, out, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (file := tmp_path / "file").write_text("mine")
    out = out.format(file=file)
    out = f"{out}/x" if command == "export" and "/x" not in out else out  # which puts a new folder into one that is there
    assert importlib.import_module(f"lit_long.{command}").main([*COMMANDS[command], f"out={out}"]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("error: out=") and "cannot be written: " in error and error.endswith("choose another place with out=…\n")
    )
    assert file.read_text() == "mine" and [file] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("data.__main__", ["prepare", "data=builtin", "root=/proc/x"]),
        ("sweep", ["root=/proc/x"]),
        ("theory", ["search=longrope", "stage=x", "out=/proc/x"]),
        ("report.__main__", ["findings=a", "results=b", "out=/proc/x/y.md"]),
        ("report.__main__", ["keep=/proc/x/y.json"]),
    ],
)
def test_other_places_that_cannot_be_written(command, words, capsys):
    assert importlib.import_module(f"lit_long.{command}").main(words) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_nothing_is_left_behind(tmp_path):
    check_writable(tmp_path / "new" / "folder", "out")
    check_writable(tmp_path, "out")
    assert not list(tmp_path.iterdir())
