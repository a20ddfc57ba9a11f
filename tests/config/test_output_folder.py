"""Places that cannot be written to are refused before anything is computed."""

from __future__ import annotations

import importlib

import pytest

from lit_long.config.output_folder import check_writable
from tests.integration.mini import REPOSITORY

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


@pytest.mark.parametrize(
    ("command", "words"),
    [
        *(("sweep", [word]) for word in ("root=~nouser/x", "model.init=~nouser/x", "data.sources.a.path=~nouser/x")),
        *(
            ("sweep", [word])
            for word in ("data.corpus.tokenizer=~nouser/x", "tracking.folder=~nouser/x", "evaluation.public=~nouser/x")
        ),
        ("sweep", ["tracking.uri=sqlite:///~nouser/x.db"]),
        ("sweep", ["data.sources.a.path=hf:~nouser/x"]),
        ("sweep", ["evaluation.tasks=[~nouser/x.yaml]"]),
        ("evaluate", ["model.init={weights}", "out=x", "tracking.enabled=false", "tasks=[~nouser/x.yaml]"]),
        ("plan", ["experiment=position_tiny", "root=~nouser/x"]),
        ("plan", ["model.init=~nouser/x"]),
        *(("data.__main__", ["inspect", word]) for word in ("root=~nouser/x", "out=~nouser/x", "data.sources.a.path=~nouser/x")),
        ("data.__main__", ["prepare", "root=~nouser/x"]),
        *(("report.__main__", [word]) for word in ("root=~nouser/x", "keep=~nouser/x.json", "archive=~nouser/x")),
        ("report.__main__", ["uri=sqlite:///x.db", "out=~nouser/x"]),
        ("report.__main__", ["scores=~nouser/x", "keep=x.json"]),
        *(("report.__main__", [word, "out=x.md"]) for word in ("findings=~nouser/x", "published=~nouser/x")),
        ("report.__main__", ["findings=x", "results=~nouser/x", "out=x.md"]),
        ("export", ["checkpoint=~nouser/x", "out=x"]),
        ("export", ["checkpoint=x", "out=~nouser/x"]),
        *(("generate", ["prompt=x", word]) for word in ("stage=~nouser/x", "model.init=~nouser/x")),
        ("generate", ["prompt_file=~nouser/x"]),
        *(
            ("evaluate", ["out=x", word])
            for word in ("root=~nouser/x", "checkpoint=~nouser/x", "text=~nouser/x", "data=~nouser/x")
        ),
        ("evaluate", ["out=~nouser/x"]),
        *(("instruct.__main__", ["generate", "out=x", "model.init=x", word]) for word in ("root=~nouser/x", "stage=~nouser/x")),
        ("instruct.__main__", ["together", "out=x", "root=~nouser/x"]),
        *(("instruct.__main__", [verb, "out=~nouser/x"]) for verb in ("generate", "together")),
        *(("theory", [word]) for word in ("root=~nouser/x", "out=~nouser/x", "tracking.folder=~nouser/x")),
        ("theory", ["search=longrope", "stage=~nouser/x"]),
        ("doctor", ["root=~nouser/x"]),
    ],
)
def test_a_home_folder_of_nobody(command, words, tmp_path, monkeypatch, capsys):
    """The name is mistyped; Python has a RuntimeError for it."""
    monkeypatch.chdir(tmp_path)
    words = [word.format(weights=REPOSITORY / "experiments" / "bases" / "mini-s0") for word in words]
    assert importlib.import_module(f"lit_long.{command}").main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "must be a path whose ~ or ~NAME is a user's home folder" in error
    key = next(word for word in words if "~" in word).partition("=")[0]
    assert key in error and "not '~nouser/x" in error and not list(tmp_path.iterdir())


def test_nothing_is_left_behind(tmp_path):
    check_writable(tmp_path / "new" / "folder", "out")
    check_writable(tmp_path, "out")
    assert not list(tmp_path.iterdir())
