"""ASCII terminals, pipes, and readers that end first, for every command."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from lit_long import sweep
from lit_long.generate import InOrder
from lit_long.terminal import Output
from tests.integration.mini import CORPUS, MINI, REPOSITORY, command, record, runs, stages

COMMANDS = ("sweep", "plan", "generate", "evaluate", "export", "theory", "stage", "data", "instruct", "report")
BASE = REPOSITORY / "experiments" / "bases" / "mini-s0"
ASCII = {"PYTHONIOENCODING": "ascii"}
# What PYTHONIOENCODING does not reach, files that are opened without an encoding, is ASCII, too.
ASCII_LOCALE = ASCII | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def start(*words: str, environment: dict[str, str] | None = None, output: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    environment = os.environ | {"COLUMNS": "120", "OMP_NUM_THREADS": "1"} | (environment or {})
    return subprocess.Popen(
        command(f"lit_long.{words[0]}", *words[1:]), cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.PIPE
    )


def start_unread(*words: str) -> subprocess.Popen[bytes]:
    """Standard output is a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    process = start(*words, output=writing)
    os.close(writing)
    return process


def ends_well(process: subprocess.Popen[bytes]) -> str:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0 and b"Traceback" not in out + err, f"{process.args}\n{(out + err).decode()}"
    return out.decode("latin-1")


def stops_quietly(process: subprocess.Popen[bytes]) -> None:
    """As after Ctrl-C."""
    _, err = process.communicate(timeout=600)
    said = f"{process.args}\n{err.decode()}"
    assert process.returncode == 130 and not any(word in said for word in ("Traceback", "Broken", "interrupted")), said


def test_help_of_every_command():
    asked = [start(name, "--help", environment=ASCII) for name in COMMANDS]
    for process in asked:
        assert "Exit codes" in ends_well(process)
    for process in [start_unread(name, "--help") for name in COMMANDS]:
        stops_quietly(process)


def test_a_cache_below_the_home_of_nobody():
    """Of the two variables the first that is set counts."""
    script = "from lit_long.terminal import run_command; run_command(lambda _: 0)"
    good, bad = "/somewhere", "~nouser/x"
    for own, general, refused in ((bad, good, "LIT_LONG_CACHE"), ("", bad, "XDG_CACHE_HOME"), (good, bad, ""), ("~/x", good, "")):
        environment = os.environ | {"LIT_LONG_CACHE": own, "XDG_CACHE_HOME": general}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == (2 if refused else 0), done.stderr
        if refused:
            said = f"error: environment: {refused} must be a path whose ~ or ~NAME is a user's home folder"
            assert done.stderr.startswith(said) and done.stderr.endswith(f"not '{bad}'\n")


def test_help_by_its_short_name():
    for process in [start(name, "-h") for name in ("stage", "report")]:
        assert "Exit codes" in ends_well(process)


def test_a_plan_and_a_text():
    words = [("sweep", "dry_run=true"), ("generate", f"model.init={BASE}", "prompt=Café — naïve", "max_new_tokens=8")]
    for process in [start(*each, environment=ASCII) for each in words]:
        ends_well(process).encode("ascii")
    for process in [start_unread(*each) for each in words]:
        stops_quietly(process)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_output_that_cannot_be_written():
    """A log on a full disk: that is said, not a traceback, and no other disk is blamed."""
    words = [("sweep", "dry_run=true"), ("sweep", "--help"), ("plan", "model=tiny", "gpus=1"), ("stage", "--help"), ("doctor",)]
    with open("/dev/full", "w") as full:
        for process in [start(*each, output=full.fileno()) for each in words]:
            said = process.communicate(timeout=600)[1].decode()
            assert process.returncode == 2, f"{process.args}\n{said}"
            assert said == "error: standard output cannot be written: No space left on device; send it to another place\n"


def test_a_full_disk_before_there_is_a_plan(monkeypatch, capsys):
    """That of the cache, say, where digests of weights are kept."""

    def full(command):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sweep, "make_plan", full)
    assert sweep.main(["dry_run=true"]) == 1
    assert capsys.readouterr().err == "error: no space left on a disk: free some, then run the same command again\n"


def test_text_leaves_as_it_comes():
    """A pipe holds what was generated, before a line is complete; bytes of a path that are no UTF-8 are no error."""
    reading, writing = os.pipe()
    with open(reading, "rb") as reader, Output(open(writing, "wb"), "utf-8", errors="replace", line_buffering=True) as stream:
        os.set_blocking(reading, False)
        show = InOrder(stream, 2)
        show(0, "as it ", False)
        assert reader.read() == b"as it "
        show(1, "later", True)
        assert reader.read() is None
        show(0, "comes", True)
        assert reader.read() == b"comes\n\nlater\n"
        print("caf\udce9", file=stream)
        assert reader.read() == b"caf?\n"
        stream.reconfigure(encoding="latin-1", errors="replace")
        print("café …", file=stream)
        assert reader.read() == b"caf\xe9 ?\n"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_in_turn(tmp_path):
    """A sweep stops in good order when its reader is gone, is recorded as one that is to go on, and does so, in ASCII."""
    text = tmp_path / "naïve.jsonl"
    rows = [{"text": f"Ein Café, naïve: 日本語 — and {number} more.\n" * 9} for number in range(40)]
    text.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    root = f"root={tmp_path}"
    own = (f"data.sources.mine.path={text}", f"data.corpus.tokenizer={BASE}", *CORPUS[:2], root)
    mine = ("sweep", *MINI, "position=rope", root)
    stops_quietly(start_unread(*mine))
    assert {run.info.status for run in runs(record(tmp_path))} == {"KILLED"}
    ends_well(start(*mine, environment=ASCII_LOCALE)).encode("ascii")
    stage = stages(tmp_path)["extend rope"]
    for words in (
        ("report", root),
        ("sweep", "show=config", root),
        ("stage", str(stage)),
        ("plan", "gpus=8"),
        ("theory", "schemes=[rope,abf]", f"out={tmp_path}/theory", root),
        ("data", "prepare", *own),
        ("data", "inspect", *own),
        ("export", f"checkpoint={stage}", f"out={tmp_path}/exported"),
        ("evaluate", f"checkpoint={stage}", "tasks=[perplexity]", "lengths=[128,256]", f"out={tmp_path}/scores", root),
        ("instruct", "generate", "generator=rules", "n=4", "chunk_tokens=100", *CORPUS, f"out={tmp_path}/qa", root),
    ):
        # Standard output is ASCII; files that are opened without an encoding, too, where no word of the command needs more.
        ends_well(start(*words, environment=ASCII if words[0] == "data" else ASCII_LOCALE)).encode("ascii")
        if words[0] not in ("stage", "export"):  # the one has nothing left to say, the other refuses a folder that is there
            stops_quietly(start_unread(*words))
