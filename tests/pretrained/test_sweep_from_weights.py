"""Pretrained weights, through the whole suite: measured as they are, trained on, exported, and read by others' tools."""

from __future__ import annotations

import csv
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_long.batch import Batch
from lit_long.data.held_out import held_out_sequences
from lit_long.data.token_store import open_store
from lit_long.data.tokenizer import train_tokenizer
from lit_long.export import main as export
from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.weights import load_weights
from lit_long.stages.folder import read_stage
from tests.data.own import write_text
from tests.integration.mini import MINI, REPOSITORY, run, run_here
from tests.pretrained.llamas import random_llama, save
from tests.pretrained.test_families import CASES, random_model
from tests.ranks import run_ranks

EXPERIMENT = """
data:
  sources: {program: {path: program, validation_share: 0.3}, pages: {path: pages, validation_share: 0.3}}
grid: {position: [pretrained, yarn]}
stages:
  before: {kind: evaluate}
  extend: {context: 256, tokens: 2k, tokens_per_update: 512, optim: {lr: 1e-3}}
  after: {kind: evaluate, parent: extend}
evaluation: {domains: [program, pages], lengths: [128, 256], sequences: 4, passkey_lengths: [256], retrieval_domain: pages, retrieval_examples: 2}
report: {rows: after}
"""
OWN = [word for word in MINI if word.startswith(("trainer.", "validation."))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An experiment of the user's own on texts of one's own, and a Hugging Face folder: a random Llama 3.1 with a small tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("external")
    (folder / "experiments").mkdir()
    (folder / "experiments" / "mine.yaml").write_text(EXPERIMENT)
    for name, files in (("program", (REPOSITORY / "lit_long").glob("*/*.py")), ("pages", (REPOSITORY / "docs").glob("*.md"))):
        write_text(folder / name, [file.read_text(encoding="utf-8") for file in sorted(files)[:40]])
    scaling = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {"rope_theta": 10_000.0, "original_max_position_embeddings": 64} | scaling
    save(random_llama(vocab=600, rope=rope, context=256), folder / "llama")
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    train_tokenizer([text], 600).save(str(folder / "llama" / "tokenizer.json"))
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    template = {"chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"}
    (folder / "llama" / "tokenizer_config.json").write_text(json.dumps(special | template))
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    return run_here("lit_long.sweep", "experiment=mine", f"model.init={folder}/llama", *OWN, f"root={folder}", cwd=folder)


@pytest.fixture(scope="module")
def trial(folder, finished):
    """Stage folders of the first trial, by name."""
    assert finished.returncode == 0, finished.stdout + finished.stderr
    latest = (folder / "runs" / "mine" / "latest").resolve()
    trials = json.loads((latest / "sweep.json").read_text())["trials"]
    assert [found["variant"] for found in trials] == ["pretrained", "yarn"]
    return {name: (latest / path).resolve() for name, path in trials[0]["stages"].items()}


def measurements(stage):
    return {
        (m["metric"], m["domain"], m["length"]): m["value"]
        for m in json.loads((stage / "result.json").read_text())["measurements"]
    }


@torch.no_grad()
def losses(model, store, domain):
    """transformers' own mean loss on the held-out sequences of 256 tokens."""
    batch = held_out_sequences(open_store(store), domain, 256, 4, 256)
    logits = model(batch.tokens).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()))


def test_measured_as_it_is(folder, trial):
    theirs = AutoModelForCausalLM.from_pretrained(folder / "llama")
    found = measurements(trial["before"])
    for domain in ("program", "pages"):
        assert math.log(found["perplexity", domain, 256]) == pytest.approx(losses(theirs, trial["corpus"], domain), abs=1e-5)
    assert 0 <= found["passkey_accuracy", "pages", 256] <= 1
    store = open_store(trial["corpus"])
    assert store.manifest["vocab_size"] == open_pretrained(str(folder / "llama")).shape.vocab_size == 600


def test_training_starts_from_its_weights_and_its_encoder(folder, trial):
    settings = json.loads(json.dumps((trial["extend"] / "stage.yaml").read_text()))
    assert "scheme: llama3" in settings and "low_freq_factor: 1.0" in settings
    first = json.loads((trial["extend"] / "metrics.jsonl").read_text().splitlines()[0])["train/loss"]
    before, after = (math.log(measurements(trial[name])["perplexity", "program", 256]) for name in ("before", "after"))
    assert abs(first - before) < 0.5 and after < before - 0.1


def test_exported_it_is_the_same_model_to_transformers(folder, trial):
    out = folder / "exported"
    done = run_here("lit_long.export", f"checkpoint={trial['extend']}", f"out={out}")
    assert done.returncode == 0, done.stderr
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    after = measurements(trial["after"])
    for domain in ("program", "pages"):
        assert losses(theirs, trial["corpus"], domain) == pytest.approx(math.log(after["perplexity", domain, 256]), abs=1e-5)
    assert tokenizer("def main():").input_ids == open_pretrained(str(folder / "llama")).tokenizer().encode("def main():")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "user: hi\n"
    card = (out / "README.md").read_text()
    digest = open_store(trial["corpus"]).manifest["digest"]
    pointer = json.loads((trial["extend"] / "mlflow.json").read_text())
    assert digest[:16] in card and pointer["run"] in card and trial["extend"].name in card and "AdamW, peak 0.001" in card
    assert open_pretrained(str(out)).position == open_pretrained(str(folder / "llama")).position


@pytest.mark.slow
@pytest.mark.parametrize("case", ["qwen3-windows", "smollm3-windows", "olmo3"])
def test_another_family_is_measured_trained_and_exported(folder, case):
    """Before and after training its class in transformers has the losses that were measured."""
    family, fields = CASES[case]
    save(random_model(family, **fields | {"vocab_size": 600}), folder / case)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "llama" / file, folder / case)
    root = folder / f"{case}-root"
    words = ["experiment=mine", f"model.init={folder / case}", "grid.position=pretrained", *OWN, f"root={root}"]
    done = run("lit_long.sweep", *words, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    latest = (root / "runs" / "mine" / "latest").resolve()
    (found,) = json.loads((latest / "sweep.json").read_text())["trials"]
    stages = {name: (latest / path).resolve() for name, path in found["stages"].items()}
    done = run_here("lit_long.export", f"checkpoint={stages['extend']}", f"out={root}/out")
    assert done.returncode == 0, done.stderr
    for name, place in (("before", folder / case), ("after", root / "out")):
        theirs = AutoModelForCausalLM.from_pretrained(place)
        assert theirs.config.model_type == family
        measured = math.log(measurements(stages[name])["perplexity", "program", 256])
        assert measured == pytest.approx(losses(theirs, stages["corpus"], "program"), abs=1e-5)
    answer = run("lit_long.generate", f"model.init={root}/out", "prompt=def main", "max_new_tokens=4")
    assert answer.returncode == 0, answer.stderr


def test_a_folder_in_use_is_left_alone(folder, trial, capsys):
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("mine")
    assert export([f"checkpoint={trial['extend']}", f"out={folder}/mine"]) == 2 and "not empty" in capsys.readouterr().err
    assert [file.name for file in (folder / "mine").iterdir()] == ["notes.txt"]


def test_resume_points_are_exported(folder, trial):
    point = max((trial["extend"] / "checkpoints").glob("*.ckpt"))
    assert export([f"checkpoint={point}", f"out={folder}/resume_point", "dtype=bfloat16"]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(folder / "resume_point").state_dict()
    for name, tensor in torch.load(point, weights_only=True)["state_dict"].items():
        assert theirs[name.replace("model.lm_head", "lm_head")].equal(tensor.bfloat16()), name


def test_sharded_checkpoints_are_exported(folder, trial):
    """Written by Lightning on two ranks, which had streamed the weights into their shards; exported on one process."""
    point = trial["extend"] / "checkpoints" / "step-00000099.ckpt"
    run_ranks(2, REPOSITORY / "tests/pretrained/sharded.py", trial["corpus"], folder / "llama", point)
    assert {file.suffix for file in point.iterdir()} >= {".distcp"}
    assert export([f"checkpoint={point}", f"out={folder}/from_shards"]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(folder / "from_shards").state_dict()
    before = AutoModelForCausalLM.from_pretrained(folder / "llama").state_dict()
    for name, tensor in load_file(f"{point}.safetensors").items():
        found = theirs[name if name.startswith("lm_head") else f"model.{name}"]
        assert found.equal(tensor) and not found.equal(before[name if name.startswith("lm_head") else f"model.{name}"]), name


def test_weights_that_changed_are_another_stage(folder, finished):
    same = run_here(
        "lit_long.sweep", "experiment=mine", f"model.init={folder}/llama", *OWN, "dry_run=true", f"root={folder}", cwd=folder
    )
    assert "to run" not in same.stdout and same.stdout.count("cached") == 7
    shutil.copytree(folder / "llama", folder / "moved")
    moved = run_here(
        "lit_long.sweep", "experiment=mine", f"model.init={folder}/moved", *OWN, "dry_run=true", f"root={folder}", cwd=folder
    )
    assert "to run" not in moved.stdout  # known by their content, not by their place
    save(random_llama(seed=1, vocab=600, context=256), folder / "moved")
    other = run_here(
        "lit_long.sweep", "experiment=mine", f"model.init={folder}/moved", *OWN, "dry_run=true", f"root={folder}", cwd=folder
    )
    assert other.stdout.count("to run") == 6 and other.stdout.count("cached") == 1  # the corpus alone is the same


def test_table_of_before_and_after(folder, finished):
    with (folder / "runs" / "mine" / "latest" / "table.csv").open() as file:
        assert {row["variant"] for row in csv.DictReader(file)} == {"pretrained", "yarn"}


def test_lm_eval_gives_the_same_likelihoods(folder, trial):
    """The exported folder under lm-eval's own HFLM, and the stage's weights under ours."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    out = folder / "for_lm_eval"
    assert export([f"checkpoint={trial['extend']}", f"out={out}"]) == 0
    pairs = [
        ("def main(", "argv):\n    return 0"),
        ("The first sentence", " is this one."),
        ("x = [1, 2", ", 3]"),
        ("import", " os"),
    ]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    theirs = HFLM(pretrained=str(out), device="cpu", dtype="float32", batch_size=2).loglikelihood(requests)

    config, _, _ = read_stage(trial["extend"])
    ours = Llama(config.model, build(config.position, config.model.head_dim))
    load_weights(ours, trial["extend"] / "weights.safetensors")
    words = open_pretrained(str(folder / "llama")).tokenizer()
    for (context, continuation), (likelihood, greedy) in zip(pairs, theirs, strict=True):
        start, ids = len(words.tokenizer.encode(context).ids), torch.tensor([words.tokenizer.encode(context + continuation).ids])
        batch = Batch(ids[:, :-1], ids[:, 1:], torch.zeros_like(ids[:, 1:]), torch.arange(ids.shape[1] - 1)[None], False)
        nats, hits = ours(batch, per_token=True)
        assert -float(nats[0, start - 1 :].sum()) == pytest.approx(likelihood, abs=1e-3)
        assert bool(hits[0, start - 1 :].all()) is greedy
