"""The main job end to end, in miniature: real corpus, real training, a real MLflow store."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import mlflow
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.integration.mini import MINI, REPOSITORY, command, losses, run, stages, table

VARIANTS = ["rope", "abf"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def finished(root):
    """A sweep of two variants."""
    return run("lit_long.sweep", *MINI, "grid.position=[rope,abf]", f"root={root}")


@pytest.fixture(scope="module")
def client(root, finished):
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow/mlflow.db")


def runs(client, filter_string=""):
    experiment = client.get_experiment_by_name("position_tiny")
    return client.search_runs([experiment.experiment_id], filter_string)


def parent_and_children(client, key):
    (parent,) = runs(client, f"tags.`lit_long.sweep` = '{key}'")
    return parent, {r.info.run_name: r for r in runs(client, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")}


def test_it_ends_well_and_says_where_to_look(finished, root):
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "Validation perplexity" in finished.stdout
    assert "report.md" in finished.stdout and "mlflow.db" in finished.stdout
    assert "[7/7]" in finished.stdout  # corpus, base, 2 × extend, base's evaluation, 2 × evaluation
    latest = root / "runs" / "position_tiny" / "latest"
    for name in ("report.md", "table.csv", "sweep.yaml", "figures/retrieval.png", "figures/loss_by_position.png"):
        assert (latest / name).stat().st_size > 200, name


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
    from lit_long.data.store import open_store
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
    expected = {"corpus", "base", "evaluate_base", "extend rope", "extend abf", "evaluate rope", "evaluate abf"}
    assert set(children) == expected
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    artifacts = {a.path for a in client.list_artifacts(parent.info.run_id)}
    assert {"table.csv", "report.md", "sweep.yaml", "figures"} <= artifacts
    base = children["base"]
    history = client.get_metric_history(base.info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, 13))
    assert [point.value for point in history] == pytest.approx(losses(stages(root)["base rope"]))
    assert base.data.params["model.d_model"] == "48" and base.data.params["position.scheme"] == "rope"
    assert base.inputs.dataset_inputs[0].dataset.digest
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", base.data.tags["git.commit"])
    for name in ("perf/tokens_per_second_per_device", "perf/mfu", "perf/mfu_causal", "val/code/loss", "train/grad_norm"):
        assert name in base.data.metrics
    assert "eval/perplexity/code/256" in children["evaluate abf"].data.metrics


def test_again_nothing_is_computed(finished, client, root):
    before = {path: path.stat().st_mtime_ns for path in (root / "runs" / "stages").rglob("weights.safetensors")}
    points = len(client.get_metric_history(runs(client, "attributes.run_name = 'base'")[0].info.run_id, "train/loss"))
    again = run("lit_long.sweep", *MINI, "grid.position=[rope,abf]", f"root={root}")
    assert again.returncode == 0 and again.stdout.count("done before") == 7 and "Validation perplexity" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (root / "runs" / "stages").rglob("weights.safetensors")}
    assert len(runs(client)) == 8  # no second parent, no second children
    assert len(client.get_metric_history(runs(client, "attributes.run_name = 'base'")[0].info.run_id, "train/loss")) == points


def test_another_sweep_shares_stages_as_light_children(finished, client, root):
    other = run("lit_long.sweep", *MINI, "position=rope", f"root={root}")
    assert other.returncode == 0 and other.stdout.count("done before") == 5, other.stdout + other.stderr
    key = (root / "runs" / "position_tiny" / "latest").resolve().name
    _, children = parent_and_children(client, key)
    base = children["base"]
    assert base.data.tags["cached"] == "true" and base.data.tags["lit_long.source_run"] != base.info.run_id
    assert not client.get_metric_history(base.info.run_id, "train/loss")
    run("lit_long.sweep", *MINI, "grid.position=[rope,abf]", f"root={root}")  # `latest` back to the first, for other tests


def test_the_report_is_made_again_without_torch(finished, root):
    folder = (root / "runs" / "position_tiny" / "latest").resolve()
    before = (folder / "table.csv").read_bytes()
    (folder / "report.md").unlink()
    again = run("lit_long.report", "experiment=position_tiny", f"root={root}")
    assert again.returncode == 0 and "Validation perplexity" in again.stdout
    assert (folder / "report.md").exists() and (folder / "table.csv").read_bytes() == before


def test_a_lost_record_is_written_again(finished, root, tmp_path):
    os.rename(root / "mlflow", tmp_path / "mlflow")
    try:
        again = run("lit_long.sweep", *MINI, "grid.position=[rope,abf]", f"root={root}")
        # Another spelling of the URI: mlflow keeps its connection to the file that was moved away.
        fresh = mlflow.MlflowClient(tracking_uri=f"sqlite:///{root}/./mlflow/mlflow.db")
        assert again.returncode == 0
        history = fresh.get_metric_history(runs(fresh, "attributes.run_name = 'base'")[0].info.run_id, "train/loss")
        assert [point.value for point in history] == pytest.approx(losses(stages(root)["base rope"]))
    finally:
        subprocess.run(["rm", "-rf", str(root / "mlflow")], check=True)
        os.rename(tmp_path / "mlflow", root / "mlflow")


def test_weights_that_do_not_fit_are_refused(finished, root):
    """A stage whose parent has another shape: one message, exit code 2, nothing half-written."""
    found = stages(root)
    folder = found["extend rope"].with_name("train-misfit")
    folder.mkdir()
    content = yaml.safe_load((found["extend rope"] / "stage.yaml").read_text())
    content["settings"]["model"]["d_ffn"] = 128
    (folder / "stage.yaml").write_text(yaml.safe_dump(content))
    failed = run("lit_long.stage", str(folder))
    assert failed.returncode == 2
    assert "do not fit the model" in failed.stderr and "[96, 48] in the file and [128, 48] in the model" in failed.stderr
    assert not (folder / "DONE").exists() and not (folder / "result.json").exists()
    subprocess.run(["rm", "-rf", str(folder)], check=True)


# ------------------------------------------------------------------------------------------------- interruptions


def wait_for(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def update_of(root: Path, minimum: int):
    """Whether some training stage has written ``minimum`` updates."""
    return any(len(f.read_text().splitlines()) >= minimum for f in (root / "runs" / "stages").glob("train-*/metrics.jsonl"))


def copy_corpus(source: Path, target: Path) -> None:
    """The prepared corpus and nothing else, to save its preparation."""
    (target / "runs" / "stages").mkdir(parents=True)
    corpus = stages(source)["corpus rope"]
    subprocess.run(["cp", "-r", str(corpus), str(target / "runs" / "stages")], check=True)


@pytest.mark.parametrize("trainer", ["cpu", "fsdp"])
def test_killed_is_uninterrupted(finished, root, tmp_path, trainer):
    """kill -9 of the sweep at some update; the next command resumes: same token order, same losses to the last bit."""
    words = [*MINI, "position=rope", "trainer.threads=2", f"trainer={trainer}"]
    reference, killed = tmp_path / "reference", tmp_path / "killed"
    for folder in (reference, killed):
        copy_corpus(root, folder)
    straight = run("lit_long.sweep", *words, f"root={reference}")
    assert straight.returncode == 0, straight.stdout + straight.stderr

    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    sweep = subprocess.Popen(
        command("lit_long.sweep", *words, f"root={killed}"), cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: update_of(killed, 5))
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    store = mlflow.MlflowClient(tracking_uri=f"sqlite:///{killed}/mlflow/mlflow.db")
    assert "RUNNING" in {r.info.status for r in runs(store)}  # nobody could say otherwise

    resumed = run("lit_long.sweep", *words, f"root={killed}")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    for stage in ("base rope", "extend rope"):
        assert losses(stages(killed)[stage]) == losses(stages(reference)[stage])
        ours, theirs = (load_file(stages(r)[stage] / "weights.safetensors") for r in (killed, reference))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {r.info.status for r in runs(store)} == {"FINISHED"}
    (base,) = [r for r in runs(store) if r.info.run_name == "base"]
    steps = [point.step for point in store.get_metric_history(base.info.run_id, "train/loss")]
    assert steps == list(range(1, 13))  # resumed into the same run, no point twice


def test_fsdp_on_two_ranks_gives_the_same_losses(finished, root, tmp_path):
    copy_corpus(root, tmp_path)
    sharded = run("lit_long.sweep", *MINI, "position=rope", "trainer=fsdp", f"root={tmp_path}")
    assert sharded.returncode == 0, sharded.stdout + sharded.stderr
    for stage in ("base rope", "extend rope"):
        assert losses(stages(tmp_path)[stage]) == pytest.approx(losses(stages(root)[stage]), abs=1e-5)
    # Devices are not identity: the same stages, the same folders.
    assert stages(tmp_path)["extend rope"].name == stages(root)["extend rope"].name


def test_ctrl_c_ends_in_good_order(finished, root, tmp_path):
    copy_corpus(root, tmp_path)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    words = [*MINI, "stages.base.tokens=512k", "position=rope", f"root={tmp_path}"]
    sweep = subprocess.Popen(
        command("lit_long.sweep", *words), cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
    )
    wait_for(lambda: update_of(tmp_path, 2))
    sweep.send_signal(signal.SIGINT)
    output, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 130 and "the same command goes on" in output
    store = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    assert {r.info.run_name: r.info.status for r in runs(store)}["base"] == "KILLED"
    plan = run("lit_long.sweep", *words, "dry_run=true")
    assert "to resume" in plan.stdout or "to run     base" in plan.stdout


def test_a_failed_stage_is_told_and_the_others_go_on(finished, root, tmp_path):
    """One variant's encoder breaks while training: exit code 1, its reason shown, the other variant in the table."""
    copy_corpus(root, tmp_path)
    work = tmp_path / "work"
    (work / "configs" / "position").mkdir(parents=True)
    (work / "broken.py").write_text(
        "from dataclasses import dataclass\n"
        "from lit_long.positions.schemes import RoPE\n\n"
        "@dataclass(frozen=True)\n"
        "class Broken(RoPE):\n"
        "    def rotation(self, positions, length):\n"
        "        raise RuntimeError('the encoder broke at length ' + str(length))\n"
    )
    (work / "configs" / "position" / "broken.yaml").write_text("scheme: broken:Broken\nbase: 625\n")
    sweep = run("lit_long.sweep", *MINI, "grid.position=[broken,rope]", f"root={tmp_path}", cwd=work)
    assert sweep.returncode == 1, sweep.stdout + sweep.stderr
    assert "extend broken: FAILED: RuntimeError: the encoder broke at length 256" in sweep.stdout
    assert "evaluate broken: skipped" in sweep.stdout and "evaluate rope: done" in sweep.stdout
    assert [row for row in table(tmp_path) if row["variant"] == "rope" and row["metric"] == "perplexity"]
    assert "Traceback" not in sweep.stdout + sweep.stderr
    store = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    assert {r.info.run_name: r.info.status for r in runs(store)}["extend broken"] == "FAILED"


def test_user_corpus_settings_are_checked_before_anything_is_written(tmp_path):
    failed = run("lit_long.sweep", "data.corpus.packages=[no_such_package]", f"root={tmp_path}/new")
    assert failed.returncode == 2 and "data.corpus.packages" in failed.stderr and "Traceback" not in failed.stderr
    assert not (tmp_path / "new").exists()
