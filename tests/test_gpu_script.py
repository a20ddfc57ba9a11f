"""What `make gpu` can be asked without a GPU, and its rehearsal."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import subprocess
import sys
import weakref

import pytest

from lit_long.planning.hardware import GPUS, usable
from lit_long.planning.memory import peak
from tests.benchmarks.bench_train_step import ours
from tests.gpu import __main__ as script
from tests.gpu.__main__ import PACKAGES_MEASURED, PARTS, Bench, has_result, missing, run_part, version_of
from tests.integration.mini import REPOSITORY
from tests.planning.jobs import job


def rehearse(folder, *words, environment=None, timeout=800):
    command = [sys.executable, "-m", "tests.gpu", "small=true", *words, f"out={folder}"]
    own = {"OMP_NUM_THREADS": "1"} | (environment or {})
    return subprocess.run(command, cwd=REPOSITORY, env=os.environ | own, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def no_mlflow(tmp_path):
    """Processes in this environment find no mlflow."""
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "mlflow.py").write_text("raise ModuleNotFoundError(\"No module named 'mlflow'\", name='mlflow')\n")
    return {"PYTHONPATH": f"{tmp_path / 'none'}{os.pathsep}{REPOSITORY}"}


def test_a_rehearsal_and_what_has_its_result(tmp_path):
    (tmp_path / "growth.json").write_text('{"part": "growth", "ended": "well", "rows": []}')
    done = rehearse(tmp_path, "quick=true", "only=growth,loss")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "growth: has its result" in done.stdout and '"rows": []' in (tmp_path / "growth.json").read_text()
    result = json.loads((tmp_path / "loss.json").read_text())
    assert result["ended"] == "well" and "H100" in result["machine"]
    found = {row["who"]: row["nats_a_token"] for row in result["rows"] if "nats_a_token" in row}
    assert found["ours"] == pytest.approx(found["torch"], rel=1e-2)


@pytest.mark.slow
def test_a_rehearsal_of_attention(tmp_path):
    """Attention's tests and our blocks as on Hopper, by FlashAttention 3 and 2, varlen_attn and SDPA."""
    done = rehearse(tmp_path, "quick=true", "only=numerics")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "numerics.json").read_text())
    assert result["ended"] == "well" and "H100" in result["machine"]
    ran = {row["which"]: row["kernels"] for row in result["rows"] if "right" in row}
    assert {"varlen", "sdpa"} <= set(ran) and "varlen_fwd" in ran["varlen"] and not ran["sdpa"]
    if "stays open" not in done.stdout:  # FlashAttention's source distribution could be downloaded
        assert "varlen_fwd" in ran["FlashAttention 3"] and "flash_attn_2_cuda" in ran["FlashAttention 2"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_rehearsal_without_mlflow(tmp_path, no_mlflow):
    done = rehearse(tmp_path, environment=no_mlflow, timeout=3500)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert all(has_result(tmp_path / f"{part}.json") for part in PARTS)
    for part in ("ablation", "ranks"):
        (row,) = json.loads((tmp_path / f"{part}.json").read_text())["rows"]
        assert row["exit_code"] == 0 and row["stages"] == 5 and row["table"]
    assert (
        "uses of a GPU in lit_long" in done.stdout and "lit_long/model/flash.py" not in done.stdout.partition("uses of a GPU")[2]
    )


def test_everything_but_the_tracker_imports_without_mlflow(no_mlflow):
    code = """
import importlib, pkgutil, lit_long
from lit_long.surroundings import hide_from_torchmetrics
hide_from_torchmetrics()
for module in pkgutil.walk_packages(lit_long.__path__, "lit_long."):
    if not module.name.startswith("lit_long.tracking.mlflow") and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
try:
    import mlflow
except ModuleNotFoundError:
    print("all imported")
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | no_mlflow, capture_output=True, text=True)
    assert done.stdout == "all imported\n", done.stderr


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_does_not_outlive_its_case(fails, tmp_path):
    """Blocks that are checkpointed are in a reference cycle; two models of 7B do not fit a GPU."""
    blocks = []

    def measure():
        model = ours(script.TINY, checkpointing="full")
        blocks.append(weakref.ref(model.layers[0]))
        if fails:
            raise RuntimeError("no kernel")
        return {"parameters": sum(x.numel() for x in model.parameters())}

    gc.disable()  # nothing else collects
    try:
        Bench(tmp_path / "steps.json").tried(measure, name="step")
        assert blocks[0]() is None
    finally:
        gc.enable()


def test_what_is_measured_fits_an_h100():
    """By the plan, at the moment of the most memory. At 32,768 tokens 7B with selective checkpointing does not."""
    cases = [(script.LLAMA_7B, 2 if length == 4096 else 1, length, "full") for length in script.TARGETS]
    cases += [(shape, rows, length, way) for _, shape, rows, length, way, _ in script.STEPS]
    room = usable(GPUS["H100"])

    def need(shape, rows, length, way):
        how = dict(context=length, rows=rows, sequences=rows, checkpointing=way, precision="bf16-true")
        return peak(job(shape, **how)).total

    assert {case[1:]: need(*case) / room for case in cases if need(*case) > room} == {}
    assert need(script.LLAMA_7B, 1, 32_768, "selective") > room


def test_a_part_that_fails_says_why_and_is_no_result(tmp_path, monkeypatch):
    def fail(bench):
        bench.add(name="first", seconds=1.0)
        raise ValueError("no such kernel")

    monkeypatch.setitem(PARTS, "fail", fail)
    assert run_part("fail", tmp_path / "fail.json", {}) == 1 and not has_result(tmp_path / "fail.json")
    result = json.loads((tmp_path / "fail.json").read_text())
    assert result["ended"] == "ValueError: no such kernel" and result["rows"] == [{"name": "first", "seconds": 1.0}]
    monkeypatch.setitem(PARTS, "fail", lambda bench: None)
    assert run_part("fail", tmp_path / "fail.json", {}) == 0 and has_result(tmp_path / "fail.json")


def test_what_is_missing_is_said_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "version_of", lambda name: None if name in ("mlflow", "grain") else version_of(name))
    said = missing({"weights": str(tmp_path / "none.gguf")})
    assert len(said) < 30 and all(len(line) < 200 for line in said)
    (grain,), (mlflow,) = ([line for line in said if f"package {name}" in line] for name in ("grain", "mlflow"))
    assert "not installed" in grain and mlflow.endswith("no part needs it")
    assert f"weights: there is no file {tmp_path / 'none.gguf'}" in said


def test_versions_are_asked_of_distributions(tmp_path, monkeypatch):
    """liger-kernel has no __version__, and flash_attn.cute imports without being FlashAttention 4."""
    (tmp_path / "liger_kernel").mkdir()
    (tmp_path / "liger_kernel" / "__init__.py").write_text("raise RuntimeError('not to be imported')\n")
    (tmp_path / "liger_kernel-0.6.4.dist-info").mkdir()
    (tmp_path / "liger_kernel-0.6.4.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: liger-kernel\nVersion: 0.6.4\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = {name: version_of(name) for name in PACKAGES_MEASURED}
    assert found["liger-kernel"] == "0.6.4" and found["torch"] == importlib.metadata.version("torch")
    assert found["flash-attn-4"] is None
