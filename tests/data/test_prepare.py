"""Preparing as it goes wrong and as a cluster does it: shares side by side, kill -9 at any moment, a disk that is full."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import psutil
import pytest

from lit_long.config import UserError
from lit_long.data.__main__ import main
from lit_long.stages.folder import locked
from tests.data.own import write_jsonl
from tests.data.test_shards import files_of
from tests.integration.mini import REPOSITORY, command, run

SHARDS = 4
CHARACTERS = 2_300_000  # of a shard: tokenised in two goes, so that there is a moment with half of it on the disk


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Four files of Python's own library, and a store of them that nothing disturbed."""
    place = tmp_path_factory.mktemp("real")
    (place / "in").mkdir()
    files = iter(sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")))
    for number in range(SHARDS):
        texts, size = [], 0
        while size < CHARACTERS:
            texts.append(next(files).read_text(encoding="utf-8", errors="replace"))
            size += len(texts[-1])
        write_jsonl(place / "in" / f"{number}.jsonl", texts)
    finished = prepare(place / "in", place / "whole")
    assert finished.returncode == 0, finished.stderr
    return place


def words(source: Path, root: Path) -> list[str]:
    return ["prepare", f"data.sources.mine.path={source}", f"root={root}", "data.corpus.vocab_size=1024"]


def prepare(source: Path, root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return run("lit_long.data", *words(source, root), *more)


@pytest.fixture
def start():
    """A function that starts what `prepare` runs to its end. What a test that fails leaves running, or stopped, is ended."""
    started: list[subprocess.Popen[str]] = []

    def begin(source: Path, root: Path, *more: str) -> subprocess.Popen[str]:
        line = command("lit_long.data", *words(source, root), *more)
        started.append(subprocess.Popen(line, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def stored(root: Path) -> dict[str, bytes]:
    """Every file of the store but the stage's papers, which name places."""
    (folder,) = (root / "runs" / "stages").iterdir()
    return {name: content for name, content in files_of(folder).items() if name not in ("stage.yaml", "lock", "tokenizer.lock")}


def wait_until(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, f"it ended first: {process.stderr.read()}"
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def shards_of(root: Path, pattern: str) -> list[Path]:
    return list(root.glob(f"runs/stages/*/mine/shards/{pattern}"))


def half_written(root: Path) -> bool:
    """Whether some shard is being written, and a part of it is on the disk."""
    for file in shards_of(root, ".*.tokens.*.writing"):
        try:
            if file.stat().st_size:
                return True
        except FileNotFoundError:  # it has just become whole
            continue
    return False


MOMENTS = {
    "settling the tokenizer": lambda root: bool(list(root.glob("runs/stages/*/stage.yaml"))),
    "starting": lambda root: bool(list(root.glob("runs/stages/*/trained.json"))),
    "inside a shard": half_written,
    "inside a later shard": lambda root: bool(shards_of(root, "*.json")) and half_written(root),
    "between shards": lambda root: len(shards_of(root, "*.json")) >= 3,
}


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(real, start, tmp_path):
    for moment, happened in MOMENTS.items():
        process = start(real / "in", tmp_path, f"processes={1 if moment == 'between shards' else 2}")  # two might end as one
        wait_until(lambda happened=happened: happened(tmp_path), process)
        family = psutil.Process(process.pid).children(recursive=True)
        made = {file: file.stat().st_mtime_ns for file in shards_of(tmp_path, "*.json")}
        process.kill()
        process.communicate()
        _, left = psutil.wait_procs(family, timeout=200)
        assert not left, "processes were left behind"
        assert not list(tmp_path.rglob("manifest.json")) and not list(tmp_path.rglob("DONE"))
    finished = prepare(real / "in", tmp_path, "processes=2")
    assert finished.returncode == 0, finished.stderr
    assert made and {file: file.stat().st_mtime_ns for file in made} == made, "finished shards were made again"
    assert stored(tmp_path) == stored(real / "whole")


def test_shares_run_side_by_side_and_the_whole_waits_for_them(real, start, tmp_path):
    first = start(real / "in", tmp_path, "share=1/2", "processes=1")
    wait_until(lambda: shards_of(tmp_path, ".*.writing"), first)
    first.send_signal(signal.SIGSTOP)  # in the middle of a shard: a machine that is slow
    second = prepare(real / "in", tmp_path, "share=2/2", "processes=1", "format=json")
    assert second.returncode == 0, second.stderr
    said = json.loads(second.stdout)
    assert said["shards"] == SHARDS and said["shards_there"] == len(shards_of(tmp_path, "*.json")) < SHARDS
    assert {file.name for file in shards_of(tmp_path, "*.json")} >= {"000001.json", "000003.json"}
    whole = start(real / "in", tmp_path)
    assert "waiting for the processes that prepare this" in whole.stderr.readline()
    first.send_signal(signal.SIGCONT)
    assert "shards are there" in first.communicate(timeout=600)[0] and first.returncode == 0
    _, told = whole.communicate(timeout=600)
    assert whole.returncode == 0, told
    assert told.count("waiting for") == 0, "said again and again"
    assert "tokenising" not in told, "the shares left something to do"
    assert stored(tmp_path) == stored(real / "whole")
    late = prepare(real / "in", tmp_path, "share=1/2")
    assert f"{SHARDS} of {SHARDS} shards are there" in late.stdout


def test_shares_that_start_together_train_one_tokenizer(real, start, tmp_path):
    shares = [start(real / "in", tmp_path, f"share={i}/3", "processes=1") for i in (1, 2, 3)]
    ends = [share.communicate(timeout=600) for share in shares]
    assert [share.returncode for share in shares] == [0, 0, 0], ends
    assert sum("training the tokenizer" in told for _, told in ends) == 1
    assert len(shards_of(tmp_path, "*.json")) == SHARDS
    assert prepare(real / "in", tmp_path).returncode == 0
    assert stored(tmp_path) == stored(real / "whole")


@pytest.mark.parametrize(
    "more, message",
    [
        (["share=3/2"], "share=3/2 must be I/N"),
        (["share=0/2"], "share=0/2 must be I/N"),
        (["share=half"], "share=half must be I/N"),
        (["share=1/2", "verify=true"], "share=I/N only prepares"),
    ],
)
def test_shares_that_make_no_sense(more, message, tmp_path, capsys):
    assert main([*words(write_jsonl(tmp_path / "in.jsonl"), tmp_path / "root"), *more]) == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told


def test_shares_of_the_builtin_corpus(tmp_path, capsys):
    assert main(["prepare", "data=builtin", "share=1/2", f"root={tmp_path}"]) == 2
    assert "divides the shards of data.sources, and there are none" in capsys.readouterr().err


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("lit_long.stages.folder.fcntl.flock", refuse)
    message = f"{tmp_path}/lock cannot be locked: No locks available.*-o flock.*root=FOLDER"
    with pytest.raises(UserError, match=message), locked(tmp_path, lambda: None):
        pass


def test_a_full_disk(real, tmp_path):
    """A small disk of its own: too small to begin with, then too small for all shards, then large enough."""
    line = " ".join(
        command("lit_long.data", *words(real / "in", tmp_path), "processes=1")
    )  # many would all be cut off in their first
    script = f"""
        mount -t tmpfs -o size={{sizes[0]}}k tmpfs {tmp_path} || exit 99
        {line}; echo "refused $?"
        mount -o remount,size={{sizes[1]}}k {tmp_path}
        {line}; echo "stopped $?"
        mount -o remount,size=1g {tmp_path}
        {line} format=json; echo "ended $?"
    """
    bytes_in = sum(file.stat().st_size for file in (real / "in").iterdir())
    needed = sum(file.stat().st_size for file in shards_of(real / "whole", "*.tokens"))
    sizes = (bytes_in // 20 // 1024 - 50, needed // 1024 * 2 // 3)
    assert sizes[1] > bytes_in // 20 // 1024 + 400, "the second disk must pass the estimate"
    unshare = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]
    finished = subprocess.run(
        [*unshare, "sh", "-c", script.format(sizes=sizes)], cwd=REPOSITORY, capture_output=True, text=True, timeout=800
    )
    if finished.returncode == 99 or "unshare" in finished.stderr:
        pytest.skip(f"no disk of one's own can be mounted here: {finished.stderr}")
    assert "refused 2" in finished.stdout and "stopped 2" in finished.stdout and "ended 0" in finished.stdout, finished
    assert "Traceback" not in finished.stderr
    assert re.search(r"the tokens of data.sources need about \d+ MiB and the disk has \d MiB free; free some", finished.stderr)
    assert re.search(r"No space left on the disk that holds .*Free some.*goes on where it was", finished.stderr)
    (goes_on,) = re.findall(r"tokenising, (\d) of 4 shards were there", finished.stderr.split("No space left")[1])
    assert int(goes_on) > 0
    digest = json.loads(re.search(r"\{.*\}", finished.stdout, re.DOTALL)[0])["digest"]
    (manifest,) = (real / "whole").rglob("manifest.json")
    assert digest == json.loads(manifest.read_text())["digest"]
