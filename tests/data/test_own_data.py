"""Bring your own data: the data verb and a miniature sweep on one's own text, as docs/data.md says."""

from __future__ import annotations

import json
import os
import time

import pytest

from lit_long.data.__main__ import main as data_command
from lit_long.data.inspect import make_figure
from lit_long.sweep import main as sweep_command
from tests.data.own import TEXTS, write_jsonl, write_text
from tests.integration.mini import MINI, run_here, stages, table

WORDS = [word for word in MINI if not word.startswith(("data.corpus.packages", "data.corpus.validation"))]
LONG = ["\n\n".join(f"Chapter {j} of story {i} has its own sentence. {TEXTS[i + j]}" for j in range(12)) for i in range(24)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    write_text(folder / "text", LONG)
    return folder


@pytest.fixture(scope="module")
def source(place):
    return [f"data.sources.mine.path={place}/text", "data.sources.mine.validation_share=0.3", "data.corpus.vocab_size=1024"]


@pytest.fixture(scope="module")
def prepared(place, source):
    return run_here("lit_long.data", "prepare", *source, f"root={place}/root", "processes=2")


def test_prepare_then_inspect(place, source, prepared):
    assert prepared.returncode == 0, prepared.stderr
    assert "24 documents" in prepared.stdout
    finished = run_here(
        "lit_long.data", "inspect", *source, f"root={place}/root", "format=json", f"out={place}/pictures", "long=1k"
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    mine = found["sources"]["mine"]
    assert found["documents"] == mine["documents"] == 24 and found["tokens"] == mine["tokens"]
    assert mine["train"]["documents"] + mine["validation"]["documents"] == 24
    assert sum(documents for _, documents, _ in mine["histogram"]) == 24
    assert 0 < found["long_share"] <= 1 and len(found["digest"]) == 64
    assert (place / "pictures" / "lengths.png").stat().st_size > 5000
    (axes,) = make_figure(found).axes
    assert axes.lines[0].get_xdata() == [1024, 1024]  # where documents begin to be long
    shown = run_here("lit_long.data", "inspect", *source, f"root={place}/root", "verify=true").stdout
    assert found["digest"] in shown and "█" in shown and "a sample:" in shown


def test_damage_is_found_and_repaired(place, source, prepared):
    (file,) = (place / "root").rglob("000000.tokens")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    finished = run_here("lit_long.data", "inspect", *source, f"root={place}/root", "verify=true")
    assert finished.returncode == 1 and "000000.tokens" in finished.stderr
    again = run_here("lit_long.data", "prepare", *source, f"root={place}/root", "verify=true")
    assert again.returncode == 0 and "is damaged" in again.stderr and file.read_bytes() == content


def test_a_sweep_on_it(place, source, prepared):
    before = {folder.name for folder in (place / "root" / "runs" / "stages").iterdir()}
    finished = run_here("lit_long.sweep", *WORDS, *source, "grid.position=[rope]", "tracking.enabled=false", f"root={place}/root")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    found = stages(place / "root")
    assert found["corpus rope"].name in before, "the sweep did not use what was prepared"
    rows = table(place / "root")
    assert {row["domain"] for row in rows if row["metric"] == "perplexity" and row["mean"]} == {"mine"}
    assert any(row["metric"].startswith("retrieval") and row["domain"] == "mine" for row in rows)


def test_the_command_tells_what_is_wrong(place, tmp_path, capsys):
    write_jsonl(tmp_path / "in.jsonl")
    with (tmp_path / "in.jsonl").open("ab") as file:
        file.write(b'{"text": "cut o')
    for words, message in (
        ([f"data.sources.mine.path={tmp_path}/in.jsonl"], "in.jsonl, line 61 (byte"),
        (["data.sources.mine.path=nowhere"], "no such file or folder"),
        (["data.sources.mine.pth=x"], "did you mean 'data.sources.mine.path'"),
        (["data.sources.docs.path=x"], "has a name of the built-in corpus"),
        (["data=nothing"], "there is no configs/data/nothing.yaml"),
        (["formt=json"], "did you mean 'format'"),
    ):
        assert data_command(["prepare", *words, f"root={tmp_path}/root"]) == 2
        told = capsys.readouterr().err
        assert message in told and "Traceback" not in told
    assert data_command(["inspect", f"data.sources.mine.path={place}/text", f"root={tmp_path}/root"]) == 2
    assert "python -m lit_long.data prepare data.sources.mine.path=" in capsys.readouterr().err


def test_weights_name_sources(place, tmp_path, capsys):
    def planned(*words):
        code = sweep_command([*WORDS, *words, "dry_run=true", f"root={tmp_path}/root"])
        return code, capsys.readouterr()

    source = f"data.sources.mine.path={place}/text"
    assert planned(source, "data.weights.mine=0.5")[0] == 0  # beside the built-in corpus
    code, told = planned(source, "data.weights.mine=0.5", "data.weights.mien=0.5")
    assert code == 2 and "data.weights.mien: unknown domain; did you mean 'mine'" in told.err
    code, told = planned(source, "evaluation.domains=[mine,books]")
    assert code == 2 and "unknown domain 'books' in evaluation.domains" in told.err
    (place / "text" / "0" / "000.txt").touch()  # another time of change is no other content
    os.utime(place / "text", (time.time(), time.time()))
    (code, one), (_, two) = planned(source), planned(f"data.sources.mine.path={place}/../{place.name}/text")
    assert code == 0 and one.out == two.out != ""
