"""Generating: with rules, with a server that misbehaves, killed and continued, and with a real small model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from math import comb
from pathlib import Path

import pytest

from lit_long.config import CorpusConfig, SourceConfig, UserError
from lit_long.data.prepare import prepare
from lit_long.data.token_store import Store, open_store
from lit_long.instruct.chunks import Item, Items
from lit_long.instruct.critique import Verdict, read_verdict, worth
from lit_long.instruct.endpoint import Endpoint, EndpointConfig
from lit_long.instruct.extract import between, first_question
from lit_long.instruct.filters import FilterConfig, Filters
from lit_long.instruct.generators import Request
from lit_long.instruct.journal import FILE
from lit_long.instruct.pipeline import PipelineConfig, Run
from lit_long.instruct.rules import Rules, judge, question_about
from tests.instruct.server import ChatServer, write_about
from tests.integration.mini import REPOSITORY, command, run_here


@pytest.fixture
def serve() -> Iterator[Callable[..., ChatServer]]:
    """Starts servers, which end with the test."""
    with ExitStack() as stack:
        yield lambda *words, **settings: stack.enter_context(ChatServer(*words, **settings))


NOUNS = ["river", "mill", "tower", "harbour", "orchard", "bridge", "market", "forest", "castle", "garden"]


def document(number: int) -> str:
    lines = []
    for i in range(60):
        noun, other = NOUNS[(number + i) % 10], NOUNS[(number * 3 + i) % 10]
        lines.append(f"Entry {number * 100 + i} says the {noun} keeper met a {other} guard before noon on day {i}.")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(12):
        (folder / f"{number}.txt").write_text(document(number))
    return folder


@pytest.fixture(scope="module")
def store(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    source = SourceConfig(str(texts), validation_share=0.1)
    prepare(CorpusConfig(vocab_size=400), folder, sources={"own": source}, builtin=False, processes=1)
    return open_store(folder)


def run(store: Store, folder: Path, who, critic, **settings) -> dict:
    config = PipelineConfig(**({"n": 12, "chunk_tokens": 200, "planted": 10} | settings))
    items = Items(store, ["own"], config.seed, config.chunk_tokens, 400, config.short)
    going = Run(config, folder, items, who, critic, {"digest": "d", "domains": ["own"]}, lambda message, done: None)
    try:
        return going()
    finally:
        going.journal.close()


def rows(folder: Path, name: str = "examples.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("<question>Who?</question><answer>Me.</answer>", ("Who?", "Me.")),
        ("Sure!\n< Question >\nWho?\n</ question>\n<ANSWER type='x'> 'Me.'", ("Who?", "Me.")),
        ("<question>Who?\n<answer>Me. </ans", ("Who?", "Me.")),
        ("&lt;question&gt;Who?&lt;/question&gt;&lt;answer&gt;Me.&lt;/answer&gt;", ("Who?", "Me.")),
        ("**Question:** Who?\n**Answer:** Me.", ("Who?", "Me.")),
        ("<question>Who?</question>\nAnswer: Me.", ("Who?", "Me.")),
        ("<question>Who</question><question>x</question>", ("Who", None)),
        ("I cannot do that.", (None, None)),
    ],
)
def test_sloppy_tags(reply: str, wanted: tuple) -> None:
    found = between(reply, ("question", "answer"))
    assert (found.get("question"), found.get("answer")) == wanted


def test_first_question() -> None:
    assert first_question("Here is one: What is it? It is good.") == {"question": "What is it?"}
    assert first_question("What is it") == {"question": "What is it?"}
    assert first_question("The text explains what it is.") == {}


@pytest.mark.parametrize(
    ("reply", "verdict", "score"),
    [
        ("<verdict>correct</verdict><score>8</score>", "correct", 0.8),
        ("<verdict>Incorrect.</verdict>", "wrong", 0.0),
        ("<verdict>not correct</verdict><score>2/10</score>", "wrong", 0.2),
        ("<verdict>correct or wrong</verdict><score>from 0", "unclear", None),
        ("<score>7</score>", "correct", 0.7),
        ("a fine answer", "unclear", None),
    ],
)
def test_verdicts(reply: str, verdict: str, score: float | None) -> None:
    assert (read_verdict(reply).verdict, read_verdict(reply).score) == (verdict, score)


def test_critics_that_check_nothing_are_inert() -> None:
    yes, no = Verdict("correct", 1.0), Verdict("wrong", 0.0)
    assert worth([yes] * 8 + [no] * 2, [yes] * 10, 0.5)["inert"]
    assert worth([no] * 10, [no] * 10, 0.5)["inert"]  # rejects all there is
    assert worth([Verdict("unclear", None)] * 9 + [no], [yes] * 10, 0.5)["inert"]  # says nothing
    assert worth([no] * 7 + [yes] * 3, [yes] * 9 + [no], 0.5)["inert"] is False
    # 2 of 6 are more than 9 of 61, and may be chance: 1 − P(0 or 1 of the 6 | 11 of 67 are rejected), hypergeometric.
    few = worth([no] * 2 + [yes] * 4, [no] * 9 + [yes] * 52, 0.5)
    ways = [comb(11, k) * comb(56, 6 - k) / comb(67, 6) for k in (0, 1)]
    assert few["inert"] is None and few["chance"] == pytest.approx(1 - sum(ways))


def test_filters() -> None:
    filters = Filters(FilterConfig())
    chunk = "The mill was built in 1801 by Anna Berg."
    assert filters.failed("When was the mill built?", "In 1801", "short", chunk) == []
    assert filters.failed("when was the mill BUILT", "in 1801", "short", chunk) == ["duplicate"]
    assert filters.failed("Who built the old mill?", "Carl Friedrich", "short", chunk) == ["grounded"]
    assert filters.failed("Who?", "Anna Berg", "short", chunk) == ["length"]
    assert filters.failed("What is the text about?", "The mill", "short", chunk) == ["vague"]


def test_chunks_lie_where_they_say(store: Store) -> None:
    items = Items(store, ["own"], 3, 200, 400, 0.5)
    found = [items[i] for i in range(200)]
    assert found == [Items(store, ["own"], 3, 200, 400, 0.5)[i] for i in range(200)]
    assert all(item.chunk in item.document and item.chunk.startswith("Entry") and item.chunk.endswith(".") for item in found)
    assert 70 <= sum(item.kind == "short" for item in found) <= 130
    middles = [item.start / (len(item.document) - len(item.chunk)) for item in found]
    assert 0.4 < sum(middles) / 200 < 0.6 and min(middles) < 0.1 and max(middles) > 0.9


def test_rules_make_what_can_be_checked(store: Store, tmp_path: Path) -> None:
    manifest = run(store, tmp_path, Rules(), Rules(), n=40)
    kept = rows(tmp_path)
    assert manifest["critique"] == {
        "planted": 10,
        "rejected_planted": 1.0,
        "rejected_generated": 0.0,
        "unclear": 0,
        "chance": pytest.approx(1 / comb(10 + len(kept), 10)),
        "inert": False,
    }
    assert manifest["counts"] == {
        "asked": 40,
        "generated": 40,
        "parsed": len(kept),
        "critiqued": len(kept),
        "kept": len(rows(tmp_path, "train.jsonl")),
    }
    assert len(kept) >= 35
    for row in rows(tmp_path, "train.jsonl"):
        quoted = row["question"].split('"')[1]
        assert row["document"].count(quoted) == 1
        assert row["answer"].startswith(quoted)
        assert row["answer"] in row["document"][row["chunk_start"] : row["chunk_end"]]
        assert (len(row["answer"].split()) == 4) == (row["kind"] == "short") == ("four words" in row["question"])


def test_rules_reject_another_answer() -> None:
    item = Item(0, "d", document(1), 0, 2000, "short", 0.5, 1)
    parts = between(question_about(item), ("question", "answer"))
    assert "correct" in judge(item, **parts) and "wrong" in judge(item, parts["question"], "something else")


MISCHIEF = ["429", "disconnect", "broken", "500", "other", "nothing", "empty", "503", "429", "disconnect"]


def test_a_server_that_misbehaves(store: Store, tmp_path: Path, serve) -> None:
    server = serve(write_about, MISCHIEF, delay=0.05)
    endpoint = Endpoint(EndpointConfig(server.url, "m", concurrency=4, backoff=0.01))
    manifest = run(store, tmp_path, endpoint, endpoint)
    assert manifest["counts"] == {
        "asked": 12,
        "generated": 12,
        "parsed": 12,
        "critiqued": 12,
        "kept": len(rows(tmp_path, "train.jsonl")),
    }
    assert manifest["critique"]["rejected_planted"] == 1.0 and manifest["unanswered"] == {}
    assert 2 <= server.at_once <= 4
    asked = 24 + manifest["critique"]["planted"]
    assert len(server.seen) == asked + len(MISCHIEF)
    again = run(store, tmp_path, endpoint, endpoint)
    assert len(server.seen) == asked + len(MISCHIEF) and again == manifest  # nothing is asked twice


def test_a_server_that_stays_down_is_told_of_and_asked_again(store: Store, tmp_path: Path, serve) -> None:
    server = serve(write_about, ["500"] * 4)
    endpoint = Endpoint(EndpointConfig(server.url, "m", concurrency=1, backoff=0.01, retries=1))
    first = run(store, tmp_path, endpoint, None, n=4)
    assert first["counts"]["generated"] == 2 and len(first["unanswered"]) == 2 and first["critique"] is None
    endpoint.unanswered.clear()
    assert run(store, tmp_path, endpoint, None, n=4)["counts"]["generated"] == 4 and len(server.seen) == 8


def test_a_refusal_ends_it(store: Store, tmp_path: Path, serve) -> None:
    endpoint = Endpoint(EndpointConfig(serve(write_about, ["404"] * 50).url, "m", backoff=0.01))
    with pytest.raises(UserError, match="status 404"):
        run(store, tmp_path, endpoint, None)


def test_requests_keep_their_pace(store: Store, serve) -> None:
    server = serve(write_about)
    endpoint = Endpoint(EndpointConfig(server.url, "m", concurrency=8, per_minute=1200))
    item = Items(store, ["own"], 0, 200, 400, 0.5)[0]
    requests = [Request(str(i), item, f'"""{item.chunk}"""', "", (), 20, i) for i in range(12)]
    assert len([reply for replies in endpoint.ask(requests) for reply in replies]) == 12
    times = sorted(server.times)
    assert times[-1] - times[0] > 0.45  # 11 gaps of 50 ms, less what the network jitters


def test_killed_it_goes_on(texts: Path, tmp_path: Path, serve) -> None:
    server = serve(write_about, delay=0.1)
    words = ["generate", "n=24", "planted=4", "generator=endpoint", f"endpoint.url={server.url}", "endpoint.model=m"]
    words += ["endpoint.concurrency=2", f"data.sources.own.path={texts}", "data.corpus.vocab_size=400", "chunk_tokens=200"]
    words += [f"out={tmp_path / 'out'}", f"root={tmp_path}"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command("lit_long.instruct", *words), env=environment, cwd=tmp_path)
    deadline = time.monotonic() + 600
    while len(server.seen) < 10 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.3)
    journal = tmp_path / "out" / FILE
    there = [json.loads(line)["key"] for line in journal.read_bytes().splitlines()[1:] if line.endswith(b"}")]
    assert 1 <= len(there) < 24
    with journal.open("ab") as file:
        file.write(b'{"key": "generate/23", "repl')  # as a full disk would leave it
    before = len(server.seen)
    done = subprocess.run(command("lit_long.instruct", *words), env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["counts"]["generated"] == manifest["counts"]["critiqued"] == 24
    assert len(server.seen) - before == 48 + manifest["critique"]["planted"] - len(there)
    other = run_here("lit_long.instruct", *words, "seed=1", cwd=tmp_path)
    assert other.returncode == 2 and "other settings (seed)" in other.stderr
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("instruct").experiment_id])
    assert found.data.metrics["instruct/generated"] == 24
    assert "examples.json" in [artifact.path for artifact in client.list_artifacts(found.info.run_id)]
