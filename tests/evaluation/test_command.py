"""python -m lit_long.evaluate: what it writes, what it records, how it goes on, and how it refuses."""

from __future__ import annotations

import json
import re

import pytest
from mlflow import MlflowClient

from lit_long.config import StageConfig, plain
from lit_long.evaluate import main
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.samples import Samples
from lit_long.pretrained.weights import WEIGHTS, save_weights
from lit_long.report.scores import value
from lit_long.stages.folder import write_stage
from tests.evaluation.models import SHAPE, bytes_folder
from tests.generation.llamas import small

FIELDS = {"task", "metric", "length", "value", "stderr", "low", "high", "n", "truncated", "domain", "prompt", "seed", "data"}
TASKS = ("perplexity", "sliding_perplexity", "needle", "longchat_lines")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bytes_folder(tmp_path_factory.mktemp("llama") / "model", context=2048)


@pytest.fixture(scope="module")
def words(folder, tmp_path_factory):
    """A model and a text, and tasks that bytes as tokens can be asked."""
    text = tmp_path_factory.mktemp("text")
    for number in range(3):
        sentences = (
            f"Sentence {i} of book {number} is about {i * i % 97} apples, and no two of them are alike." for i in range(60)
        )
        (text / f"{number}.txt").write_text("\n".join(sentences))
    sizes = ("lengths=[512,1024]", "samples=3", "depths=2", "batch_tokens=2048")
    return (f"model.init={folder}", f"text={text}", f"tasks=[{','.join(TASKS)}]", *sizes)


def run(capsys, *words):
    """Exit code, standard output, standard error."""
    return main(list(words)), *capsys.readouterr()


def test_writes_records_and_does_not_score_twice(words, tmp_path, capsys, monkeypatch):
    out = tmp_path / "scores"
    code, printed, err = run(capsys, *words, f"out={out}", f"root={tmp_path}")
    assert code == 0, err
    rows = json.loads((out / "scores.json").read_text())
    assert all(row.keys() >= FIELDS for row in rows) and {row["task"] for row in rows} == set(TASKS)
    assert {(row["length"], row["n"]) for row in rows if row["metric"] == "perplexity"} == {(512, 3), (1024, 3)}
    assert all(row["stderr"] > 0 for row in rows if row["metric"] == "perplexity")
    samples = [json.loads(line) for line in (out / "samples" / "needle.jsonl").read_text().splitlines()]
    assert (
        samples[0]["prompt"].startswith("fu-2024") and len(samples) == 1 + 2 * 2 and {"written", "reference"} <= samples[1].keys()
    )
    assert "sliding window" in printed and "LongChat-Lines" in printed and f"written  {out}" in printed
    assert "needle.png" in (out / "scores.md").read_text() and (out / "needle.png").stat().st_size > 10_000
    assert (out / "loss_by_position.png").is_file() and not (out / "scaling_law.png").exists()  # of two lengths

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("evaluate").experiment_id
    (found,) = client.search_runs([experiment])
    row = next(row for row in rows if row["metric"] == "perplexity" and row["length"] == 1024)
    assert found.data.metrics["eval/perplexity/text/1024"] == pytest.approx(row["value"])
    assert found.info.status == "FINISHED" and found.data.params["suite"] == "quick"
    artifacts = {each.path for each in client.list_artifacts(found.info.run_id)}
    assert artifacts >= {"scores.json", "samples", "figures", "evaluation.json"}

    def never(*arguments, **options):
        raise AssertionError("measured again")

    before, about = (out / "scores.json").read_bytes(), (out / "evaluation.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(EvaluatedModel, "nats", never), patch.setattr(EvaluatedModel, "write", never)
        code, again, err = run(capsys, *words, f"out={out}", f"root={tmp_path}")
    assert (code, again) == (0, printed), err
    assert (out / "scores.json").read_bytes() == before and len(client.search_runs([experiment])) == 1
    code, _, err = run(capsys, *words, f"out={out}", f"root={tmp_path}", "seed=1")
    assert code == 2 and "needle.jsonl: holds the samples of another evaluation, which differs in seed" in err
    assert (out / "scores.json").read_bytes() == before and (out / "evaluation.json").read_bytes() == about


def test_killed_and_gone_on(words, tmp_path, capsys, monkeypatch):
    off = "tracking.enabled=false"
    assert run(capsys, *words, off, f"out={tmp_path / 'whole'}")[0] == 0
    add, added = Samples.add, []

    def killed(self, key, record):
        if len(added) == 14:
            raise KeyboardInterrupt
        added.append(key)
        add(self, key, record)

    with monkeypatch.context() as patch:
        patch.setattr(Samples, "add", killed)
        code, _, err = run(capsys, *words, off, f"out={tmp_path / 'cut'}")
    assert code == 130 and "goes on where it was" in err and not (tmp_path / "cut" / "scores.json").exists()
    rest = []
    monkeypatch.setattr(Samples, "add", lambda self, key, record: (rest.append(key), add(self, key, record)))
    assert run(capsys, *words, off, f"out={tmp_path / 'cut'}")[0] == 0
    assert len(added) + len(rest) == 6 + 3 + 4 + 6  # each sample once
    assert (tmp_path / "cut" / "scores.json").read_bytes() == (tmp_path / "whole" / "scores.json").read_bytes()
    assert not (tmp_path / "mlflow").exists()


def test_four_lengths_have_a_law(words, tmp_path, capsys):
    more = ("tasks=[perplexity]", "lengths=[64,128,256,512]", "tracking.enabled=false", f"out={tmp_path}")
    code, printed, err = run(capsys, *(word for word in words if not word.startswith(("tasks", "lengths"))), *more)
    assert code == 0 and "scaling law, text: L(c) = (α/c)^β + γ, α " in printed, err
    laws = {row["metric"] for row in json.loads((tmp_path / "scores.json").read_text()) if row["task"] == "scaling_law"}
    assert laws == {"law_alpha", "law_beta", "law_gamma", "law_r2"}
    assert (tmp_path / "scaling_law.png").is_file() and "scaling_law.png" in (tmp_path / "scores.md").read_text()


def test_a_stage_reads_its_own_held_out_documents(store, tmp_path, capsys):
    stage = store.folder.parent / "train-evaluated"
    stage.mkdir()
    position = {"scheme": "abf", "base": 500_000.0}
    write_stage(stage, "identity", plain(StageConfig(model=SHAPE, position=position, context=512)), store.folder, None)
    words = (f"checkpoint={stage}", "lengths=[256]", "samples=2", "depths=2", "tracking.enabled=false", f"out={tmp_path}")
    code, _, err = run(capsys, *words)
    assert code == 2 and "so the stage has not ended" in err
    save_weights(small(SHAPE, **position), stage / WEIGHTS)
    code, printed, err = run(capsys, *words)
    assert code == 0 and "first sentence" in printed and "k_max: " in printed, err
    rows = json.loads((tmp_path / "scores.json").read_text())
    assert {row["data"] for row in rows if row["task"] == "perplexity"} == {store.manifest["digest"][:16]}
    assert {row["domain"] for row in rows if row["task"] == "perplexity"} == {"code", "docs"}
    point = stage / "checkpoints" / "step-1.ckpt"
    code, _, err = run(capsys, f"checkpoint={point}", *words[1:])
    assert code == 2 and "is a resume point; export it first" in err
    code, _, err = run(capsys, *words, "lengths=[1k]")
    assert code == 2 and "1,024 tokens are beyond context=512" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["suite=quik"], "suite=quik: there is no such suite; did you mean 'quick'?"),
        (["lengths=[4k]"], "perplexity: 4,096 tokens are beyond context=2,048"),
        (
            ["lengths=[300,512]"],
            "300 does not divide the longest length, 512, so the two could not be measured on the same tokens. Choose",
        ),
        (["lengths=[64]", "tasks=[needle]"], "needle: a length of 64 tokens leaves no room"),
        (["lengths=[64]", "tasks=[passkey]"], "at least 128 tokens, not 64. Choose other lengths=[…] or tasks=[…]"),
        (["stride=600"], "stride=600 must be at least 1 and at most the window of 512 tokens"),
        (["samples=-1"], "samples must be at least 0"),
        (["sampels=3"], "unknown key 'sampels'; did you mean 'samples'?"),
        (["text=/nowhere"], "/nowhere"),
        (["checkpoint=/nowhere"], "lies in no stage folder"),
        (["model.init=/nowhere"], "model.init=/nowhere: there is no such file or folder"),
    ],
)
def test_bad_input_is_told_before_anything_is_measured(words, more, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(EvaluatedModel, "nats", None), monkeypatch.setattr(EvaluatedModel, "write", None)
    kept = [word for word in words if word.split("=")[0] not in [each.split("=")[0] for each in more]]
    if any(each.startswith("checkpoint") for each in more):
        kept = [word for word in kept if not word.startswith("model")]
    code, out, err = run(capsys, *kept, *more, f"out={tmp_path}", "tracking.enabled=false")
    lines = [line for line in err.splitlines() if not line.startswith("reading ")]
    assert (code, out, len(lines)) == (2, "", 1) and message in lines[0], err
    assert not re.search(r"evaluation\.", lines[0])  # a sweep's keys


def test_out_is_needed(capsys):
    code, _, err = run(capsys, "model=smollm2-135m")
    assert code == 2 and "out=FOLDER is missing" in err


def test_lengths_of_the_suite_beyond_the_range_are_told(words, tmp_path, capsys):
    more = ("tasks=[perplexity]", "context=600", "samples=1", "tracking.enabled=false", f"out={tmp_path}")
    code, _, err = run(capsys, *words[:2], *more)
    assert code == 0 and "left out: lengths beyond context=600, the model's range: 1,024, 2,048" in err
    assert {row["length"] for row in json.loads((tmp_path / "scores.json").read_text()) if row["metric"] == "nats"} == {256, 512}
    code, _, err = run(capsys, *words[:2], *more, "context=200")
    assert code == 2 and "suite=quick: its shortest length, 256, is beyond context=200" in err


def test_texts_that_are_too_short(words, folder, tmp_path, capsys):
    (tmp_path / "short.txt").write_text("A short text.")
    more = (f"model.init={folder}", f"text={tmp_path}/short.txt", "tasks=[perplexity]", "lengths=[512]", f"out={tmp_path}/o")
    code, _, err = run(capsys, *more, "tracking.enabled=false")
    assert code == 2 and "no held-out document has the 513 tokens" in err and "the longest has 14" in err
    needle = ("tasks=[needle]", "depths=2")  # which joins short texts, and repeats them
    code, printed, err = run(capsys, *more[:2], *needle, "lengths=[512]", f"out={tmp_path}/n", "tracking.enabled=false")
    assert code == 0 and "needle" in printed, err
    (tmp_path / "short.txt").write_text("  \n")
    code, _, err = run(capsys, *more, "tracking.enabled=false")
    assert code == 2 and "there is no text in it" in err


def test_a_tokenizer_of_another_model(words, folder, tmp_path, capsys):
    """Its ids would reach beyond the embedding."""
    other = bytes_folder(tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"of another": 256, "and more": 257}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    code, _, err = run(capsys, f"model.init={other}", *words[1:], "tracking.enabled=false", f"out={tmp_path}/o")
    assert code == 2 and "do not belong together" in err


def test_giraffe_on_built_questions(words, tmp_path, capsys):
    more = ("suite=giraffe", "samples=2", "lengths=[1024]", "tracking.enabled=false", f"out={tmp_path}")
    code, printed, err = run(capsys, *words[:2], *more)
    assert code == 0 and "FreeFormQA" in printed and "AltNumericQA" in printed and printed.count(" built ") == 2, err
    assert {row["task"] for row in json.loads((tmp_path / "scores.json").read_text())} == {
        "longchat_lines",
        "free_form_qa",
        "altered_numeric_qa",
    }
    code, _, err = run(capsys, *words[:2], *more, f"qa={tmp_path}")
    assert code == 2 and "holds no file of free_form_qa" in err


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ((0.612, 0.034, 0.5, 0.7), "61.2 ± 3.4"),
        ((1.0, 0.0, 0.51, 1.0), "100 (≥51)"),
        ((0.0, 0.0, 0.0, 0.49), "0 (≤49)"),
        ((1.0, 0.0, 1.0, 1.0), "100.0"),
        ((1.0, None, None, None), "100.0"),
        (None, "—"),
    ],
)
def test_cells_do_not_claim_certainty(numbers, shown):
    row = numbers and Measurement("accuracy", "docs", 256, *numbers)
    assert value(row, share=True) == shown
