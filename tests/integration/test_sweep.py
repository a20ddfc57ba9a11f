"""The main job end to end, in miniature: real corpus, real training, a real MLflow store."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess

import mlflow
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_long.data.held_out import held_out_sequences
from lit_long.data.token_store import open_store
from lit_long.export import main as export
from lit_long.processor import intel_check
from lit_long.report.__main__ import main as report
from lit_long.stages.folder import read_result
from lit_long.surroundings import NOT_NEEDED
from tests.data.own import write_text
from tests.integration.mini import MINI, TASKS, losses, reference, run, run_here, runs, stages, table, with_stages

VARIANTS = ["rope", "abf"]


@pytest.fixture(scope="module")
def root():
    return reference()[0]


@pytest.fixture(scope="module")
def finished():
    """A sweep of two variants, which also asks its models for passkeys, as python -m lit_long.evaluate does."""
    return reference()[1]


@pytest.fixture(scope="module")
def client(root, finished):
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow/mlflow.db")


def parent_and_children(client, key):
    (parent,) = runs(client, f"tags.`lit_long.sweep` = '{key}'")
    return parent, {r.info.run_name: r for r in runs(client, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")}


def test_it_ends_well_and_says_where_to_look(finished, root):
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "Validation perplexity" in finished.stdout
    assert "report.md" in finished.stdout and f"make ui ROOT={root}" in finished.stdout
    assert (
        "[7/7]" in finished.stdout and "corpus: done before" in finished.stdout
    )  # corpus, base, 2 × extend, base's evaluation, 2 × evaluation
    latest = root / "runs" / "position_tiny" / "latest"
    for name in (
        "report.md",
        "report.html",
        "tables.tex",
        "table.csv",
        "sweep.yaml",
        "figures/retrieval.png",
        "figures/loss_by_position.png",
    ):
        assert (latest / name).stat().st_size > 200, name


def test_no_stage_starts_with_what_it_does_not_need(finished, root, tmp_path):
    """Packages that a stage imports are most of its start. The first one that trains tells what was imported before it was forked; an evaluation is
    started alone."""
    with_stages(tmp_path, "corpus rope", "extend rope", "evaluate rope")
    folder = tmp_path / "runs" / "stages" / stages(root)["evaluate rope"].name
    (folder / "DONE").unlink()
    alone = run("lit_long.stage", str(folder), PYTHONPROFILEIMPORTTIME="1")
    assert alone.returncode == 0, alone.stderr
    write_text(tmp_path / "texts")
    prepared = run(
        "lit_long.data",
        "prepare",
        f"data.sources.mine.path={tmp_path}/texts",
        "data.corpus.vocab_size=300",
        f"root={tmp_path}/own",
    )
    (data,) = (tmp_path / "own" / "runs" / "stages").iterdir()
    (data / "DONE").unlink()
    said = {
        "data": run("lit_long.stage", str(data), PYTHONPROFILEIMPORTTIME="1").stderr,
        "base rope": (stages(root)["base rope"] / "log.txt").read_text(),
    }
    assert prepared.returncode == 0 and (data / "DONE").is_file()
    unwanted = {
        "data": {"torch", "mlflow"},
        "base rope": {*NOT_NEEDED, "mlflow"},
        "evaluate rope": {*NOT_NEEDED, "lightning", "mlflow"},
    }
    for name, log in (said | {"evaluate rope": alone.stderr}).items():
        imported = {line.rpartition("|")[2].strip() for line in log.splitlines() if line.startswith("import time:")}
        assert len(imported) > 100 and not unwanted[name] & imported, name


def test_tasks_are_measured_and_their_outputs_kept(finished, root):
    folder = stages(root)["evaluate abf"]
    rows = json.loads((folder / "result.json").read_text())["measurements"]
    (accuracy,) = [row for row in rows if (row["metric"], row["length"]) == ("passkey.accuracy", 256)]
    assert accuracy["domain"] == "docs" and 0 <= accuracy["value"] <= 1 and (accuracy["n"], accuracy["unit"]) == (2, "examples")
    _, *samples = (folder / "samples" / "passkey.jsonl").read_text().splitlines()
    assert [json.loads(line)["length"] for line in samples] == [256, 256]


def test_what_was_measured_can_be_kept(finished, root, tmp_path):
    kept = tmp_path / "kept" / "tiny.json"
    words = ["experiment=position_tiny", f"root={root}", f"keep={kept}", f"archive={tmp_path}/archive"]
    assert report(words) == 0
    found = json.loads(kept.read_text())
    values = {(row, *m[:3]): m[3] for one in found["runs"] for row in one["rows"] for m in one["measurements"]}
    for row in filter(lambda row: row["mean"], table(root)):  # others hold the paper's numbers
        key = (row["variant"], row["metric"], row["domain"], int(row["length"]))
        assert values[key] == pytest.approx(float(row["mean"])), key
    assert {key[0] for key in values} == {"rope", "abf", "base"} and found["machine"] and found["versions"]["torch"]
    (base,) = [one for one in found["training"] if one["stage"] == "base"]
    assert (
        len(base["loss_by_fifths"]) == 5
        and base["loss_by_fifths"][0] > base["loss_by_fifths"][-1]
        and base["tokens"] == 12 * 1024
    )
    assert base["seeds"] == [0] and base["variants"] == ["rope", "abf"]
    assert "unfinished" not in found and len(list((tmp_path / "archive").glob("*/DONE"))) == len(set(stages(root).values()))


def test_the_base_is_shared_and_the_variants_see_the_same_data(finished, root):
    found = stages(root)
    assert found["base rope"] == found["base abf"]
    assert found["extend rope"] != found["extend abf"]
    assert len(losses(found["base rope"])) == 12 and len(losses(found["extend abf"])) == 4
    # Same weights, tokens and order: the first loss differs only by the encoder, and both start near the base's level.
    first = {variant: losses(found[f"extend {variant}"])[0] for variant in VARIANTS}
    assert first["rope"] != first["abf"] and abs(first["rope"] - first["abf"]) < 1
    assert losses(found["base rope"])[-1] < losses(found["base rope"])[0] - 0.3


def test_the_table_is_what_was_measured(finished, root):
    rows = table(root)
    assert list(rows[0]) == ["variant", "metric", "domain", "length", "mean", "sd", "seeds", "paper"]
    for variant in VARIANTS:
        result = json.loads((stages(root)[f"evaluate {variant}"] / "result.json").read_text())
        measured = {(m["metric"], m["domain"], m["length"]): m["value"] for m in result["measurements"]}
        mine = [row for row in rows if row["variant"] == variant and not row["paper"]]
        assert {(r["metric"], r["domain"], int(r["length"])): float(r["mean"]) for r in mine} == pytest.approx(measured)
        assert {row["seeds"] for row in mine} == {"1"} and {row["sd"] for row in mine} == {""}
    (paper,) = [r for r in rows if r["variant"] == "abf" and r["domain"] == "Books"]
    assert (paper["paper"], paper["length"], paper["mean"]) == ("6.323", "32768", "")


def test_perplexity_is_recomputed_independently(finished, root):
    """Weights from the folder, tokens from the store's raw file, torch's own loss on full logits."""
    from lit_long.config import ModelConfig
    from lit_long.data.held_out import held_out_sequences
    from lit_long.data.token_store import open_store
    from lit_long.model.llama import Llama
    from lit_long.positions import build

    found = stages(root)
    settings = yaml.safe_load((found["evaluate abf"] / "stage.yaml").read_text())["settings"]
    model = Llama(ModelConfig(**settings["model"]), build(settings["position"], settings["model"]["head_dim"]))
    model.load_state_dict(load_file(found["extend abf"] / "weights.safetensors"))
    batch = held_out_sequences(open_store(found["corpus abf"]), "docs", 256, 4, 256)
    with torch.no_grad():
        mean = torch.nn.functional.cross_entropy(model.logits(batch).flatten(0, 1), batch.targets.flatten())
    (row,) = [
        r for r in table(root) if (r["variant"], r["metric"], r["domain"], r["length"]) == ("abf", "perplexity", "docs", "256")
    ]
    assert float(row["mean"]) == pytest.approx(math.exp(float(mean)), rel=1e-4)
    assert settings["position"]["base"] == pytest.approx(50 * 625)


def test_mlflow_has_the_tree(client, root):
    key = (root / "runs" / "position_tiny" / "latest").resolve().name
    parent, children = parent_and_children(client, key)
    expected = {"corpus", "base 128 | seed 0", "evaluate_base 256 | seed 0"}
    expected |= {f"{variant} | {stage} 256 | seed 0" for variant in VARIANTS for stage in ("extend", "evaluate")}
    assert parent.info.run_name == "position_tiny | 2 variants, 1 seed"
    assert set(children) == expected
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    artifacts = {a.path for a in client.list_artifacts(parent.info.run_id)}
    assert {"table.csv", "report.md", "report.html", "tables.tex", "sweep.yaml", "figures"} <= artifacts
    assert {run.data.tags["paper.table"] for run in [parent, *children.values()]} == {"5"}
    base = children["base 128 | seed 0"]
    assert (base.data.tags["lit_long.variant"], children["abf | extend 256 | seed 0"].data.tags["lit_long.variant"]) == (
        "rope, abf",
        "abf",
    )
    history = client.get_metric_history(base.info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, 13))
    assert [point.value for point in history] == pytest.approx(losses(stages(root)["base rope"]))
    assert base.data.params["model.d_model"] == "48" and base.data.params["position.scheme"] == "rope"
    assert base.inputs.dataset_inputs[0].dataset.digest
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", base.data.tags["git.commit"])
    for child, stage in (
        (base, "base rope"),
        (children["abf | evaluate 256 | seed 0"], "evaluate abf"),
    ):  # what ran, to be read afterwards
        assert child.data.tags["lit_long.attention"] == "torch's SDPA" == read_result(stages(root)[stage])["attention"]
        log = (stages(root)[stage] / "log.txt").read_text()
        assert "attention: torch's SDPA\n" in log and ("MKL: its fast path" in log) == (intel_check() is not None)
    for name in ("perf/tokens_per_second_per_device", "perf/mfu", "perf/mfu_causal", "val/code/loss", "train/grad_norm"):
        assert name in base.data.metrics
    assert "eval/perplexity/code/256" in children["abf | evaluate 256 | seed 0"].data.metrics


def test_the_report_from_mlflow_alone_is_the_same(client, finished, root, tmp_path, capsys):
    written = (root / "runs" / "position_tiny" / "latest").resolve()
    uri = f"sqlite:///{root}/mlflow/mlflow.db"
    again = run_here("lit_long.report", "experiment=position_tiny", f"key={written.name}", f"uri={uri}", f"out={tmp_path}")
    assert again.returncode == 0, again.stderr
    folder = tmp_path / "runs" / "position_tiny" / written.name
    for name in ("report.md", "report.html", "table.csv", "tables.tex", "figures/loss_by_position.svg"):
        assert (folder / name).read_bytes() == (written / name).read_bytes(), name
    for words, message in (
        ([], "out=FOLDER is missing"),
        ([f"out={tmp_path}", "experiment=nothing"], "has no experiment 'nothing'"),
    ):
        assert report([f"uri={uri}", *words]) == 2 and message in capsys.readouterr().err


def test_again_nothing_is_computed(finished, client, root):
    before = {path: path.stat().st_mtime_ns for path in (root / "runs" / "stages").rglob("weights.safetensors")}
    points = len(
        client.get_metric_history(runs(client, "attributes.run_name = 'base 128 | seed 0'")[0].info.run_id, "train/loss")
    )
    before_it = len(runs(client))
    ends = {each.info.run_id: each.info.end_time for each in runs(client) if "mlflow.parentRunId" in each.data.tags}
    again = run_here("lit_long.sweep", *MINI, *TASKS, "grid.position=[rope,abf]", f"root={root}")
    assert ends == {run_id: client.get_run(run_id).info.end_time for run_id in ends}  # nor is it recorded again
    assert again.returncode == 0 and again.stdout.count("done before") == 7 and "Validation perplexity" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (root / "runs" / "stages").rglob("weights.safetensors")}
    assert len(runs(client)) == before_it >= 8  # no second parent, no second children
    assert (
        len(client.get_metric_history(runs(client, "attributes.run_name = 'base 128 | seed 0'")[0].info.run_id, "train/loss"))
        == points
    )


def test_another_sweep_shares_stages_as_light_children(finished, client, root):
    latest = root / "runs" / "position_tiny" / "latest"
    first = os.readlink(latest)
    other = run_here("lit_long.sweep", *MINI, *TASKS, "position=rope", f"root={root}")
    key = os.readlink(latest)
    latest.unlink()
    latest.symlink_to(first)  # for other tests
    assert other.returncode == 0 and other.stdout.count("done before") == 5, other.stdout + other.stderr
    _, children = parent_and_children(client, key)
    base = children["rope | base 128 | seed 0"]
    assert base.data.tags["cached"] == "true" and base.data.tags["lit_long.source_run"] != base.info.run_id
    assert not client.get_metric_history(base.info.run_id, "train/loss")


def test_the_report_is_made_again_without_torch(finished, root):
    folder = (root / "runs" / "position_tiny" / "latest").resolve()
    before = (folder / "table.csv").read_bytes()
    (folder / "report.md").unlink()
    again = run_here("lit_long.report", "experiment=position_tiny", f"root={root}")
    assert again.returncode == 0 and "Validation perplexity" in again.stdout
    assert (folder / "report.md").exists() and (folder / "table.csv").read_bytes() == before


def test_a_lost_record_is_written_again(finished, root, tmp_path):
    os.rename(root / "mlflow", tmp_path / "mlflow")
    try:
        again = run("lit_long.sweep", *MINI, *TASKS, "grid.position=[rope,abf]", f"root={root}")
        # Another spelling of the URI: mlflow keeps its connection to the file that was moved away.
        fresh = mlflow.MlflowClient(tracking_uri=f"sqlite:///{root}/./mlflow/mlflow.db")
        assert again.returncode == 0
        history = fresh.get_metric_history(runs(fresh, "attributes.run_name = 'base 128 | seed 0'")[0].info.run_id, "train/loss")
        assert [point.value for point in history] == pytest.approx(losses(stages(root)["base rope"]))
    finally:
        subprocess.run(["rm", "-rf", str(root / "mlflow")], check=True)
        os.rename(tmp_path / "mlflow", root / "mlflow")


def test_weights_that_do_not_fit_are_refused(finished, root):
    """A stage whose parent has another shape: one message, of the first tensor (its down_proj), exit code 2, nothing half-written."""
    found = stages(root)
    folder = found["extend rope"].with_name("train-misfit")
    folder.mkdir()
    content = yaml.safe_load((found["extend rope"] / "stage.yaml").read_text())
    content["settings"]["model"]["d_ffn"] = 128
    (folder / "stage.yaml").write_text(yaml.safe_dump(content))
    failed = run("lit_long.stage", str(folder))
    assert failed.returncode == 2
    assert "do not fit the model" in failed.stderr and "[48, 96] in the file and [48, 128] in the model" in failed.stderr
    assert not (folder / "DONE").exists() and not (folder / "result.json").exists()
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_user_corpus_settings_are_checked_before_anything_is_written(tmp_path):
    failed = run("lit_long.sweep", "data.corpus.packages=[no_such_package]", f"root={tmp_path}/new")
    assert failed.returncode == 2 and "data.corpus.packages" in failed.stderr and "Traceback" not in failed.stderr
    assert not (tmp_path / "new").exists()


def test_exported_it_is_the_same_model_to_transformers(finished, root, tmp_path):
    stage = stages(root)["extend abf"]
    done = run("lit_long.export", f"checkpoint={stage}/weights.safetensors", f"out={tmp_path}/out")
    assert done.returncode == 0 and done.stdout == f"written  {tmp_path}/out\n", done.stderr
    hf, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert hf.config.rope_parameters["rope_theta"] == 31_250 and hf.config.max_position_embeddings == 256
    store = open_store(stages(root)["corpus abf"])
    text = "def naïve(x):\n    return x  # 🦙\n"
    assert tokenizer(text).input_ids == [store.separator, *store.tokenizer.encode(text).ids]
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    batch = held_out_sequences(store, "code", 256, 4, 256)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(hf(batch.tokens).logits.flatten(0, 1), batch.targets.flatten())
    result = json.loads((stages(root)["evaluate abf"] / "result.json").read_text())["measurements"]
    (measured,) = [m["value"] for m in result if (m["metric"], m["domain"], m["length"]) == ("perplexity", "code", 256)]
    assert float(loss) == pytest.approx(math.log(measured), abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkpoint={xpos}"], "position.scheme=xpos_abf cannot be exported to Hugging Face: .*position=abf"),
        (["checkpoint={evaluate}"], "a stage of kind evaluate holds no model"),
        (["checkpoint={abf}", "dtype=int8"], "dtype=int8: must be one of auto, float32"),
        (["checkpoint={abf}/checkpoints"], "checkpoints: cannot be read as a checkpoint"),
        (["checkpoint={abf}/nothing.ckpt"], "nothing.ckpt: is not there|no such file"),
        (["checkpoint={broken}"], "broken.ckpt: cannot be read as a checkpoint of lit-long"),
        (["chekpoint={abf}"], "unknown key 'chekpoint'; did you mean 'checkpoint'"),
        ([], "checkpoint=… is missing"),
    ],
)
def test_exports_that_are_refused_leave_nothing(finished, root, tmp_path_factory, tmp_path, capsys, words, message):
    found, copy = stages(root), tmp_path_factory.mktemp("copy") / "stage"
    shutil.copytree(found["extend abf"], copy)  # the same stage, had it been trained under xPos
    settings = yaml.safe_load((copy / "stage.yaml").read_text())
    if words == ["checkpoint={xpos}"]:
        settings["settings"]["position"] = {"scheme": "xpos_abf", "base": 31_250.0, "scale_base": 4.0}
    settings["inputs"] = {"store": str(found["corpus abf"]), "parent": str(found["base abf"])}
    (copy / "stage.yaml").write_text(yaml.safe_dump(settings))
    broken = copy / "broken.ckpt"
    broken.write_bytes(b"not a checkpoint")
    places = {"xpos": copy, "abf": found["extend abf"], "evaluate": found["evaluate abf"], "broken": broken}
    code, said = export([*(word.format(**places) for word in words), f"out={tmp_path}/out"]), capsys.readouterr().err
    assert code == 2 and said.startswith("error: ") and re.search(message, said), said
    assert list(tmp_path.iterdir()) == []
