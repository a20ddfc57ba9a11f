"""`python -m lit_long.plan`: what it prints, what it refuses, and the page that it wrote."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from lit_long.config.mesh import ROUNDED_UPDATES
from lit_long.plan import main
from lit_long.sweep import main as sweep
from tests.integration.mini import REPOSITORY


def said(capsys, *words: str) -> tuple[int, str]:
    code = main(list(words))
    found = capsys.readouterr()
    return code, found.out + found.err


def test_a_run_is_planned(capsys):
    code, text = said(capsys, "model=llama2-70b", "context=16k", "gpus=256", "tokens_per_update=4M")
    assert code == 0
    for part in ("parameters", "gradients", "optimizer", "activations", "logits", "gathered", "communication", "total"):
        assert re.search(rf"{part} +[\d.]+", text), part
    assert "68,976,648,192 parameters, bf16-mixed" in text and "fits: " in text and "GPU-hours" in text
    assert "all-gather of parameters (FSDP)" in text


def test_the_parts_are_the_total(capsys):
    _, text = said(capsys, "model=llama2-7b", "gpus=8")
    sizes = [
        float(found)
        for found in re.findall(
            r"^ *(?:parameters|gradients|optimizer|activations|logits|gathered|communication) +([\d.]+)", text, re.M
        )
    ]
    total = float(re.search(r"total +([\d.]+)", text)[1])
    assert len(sizes) == 7 and sum(sizes) == pytest.approx(total, abs=0.05)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_a_plan_says_that_bf16_true_rounds_weights(capsys, precision):
    code, text = said(capsys, "model=llama2-7b", "gpus=8", f"precision={precision}")
    assert code == 0 and (ROUNDED_UPDATES in text) == (precision == "bf16-true")


def test_what_does_not_fit_gets_a_remedy(capsys):
    code, text = said(capsys, "model=llama2-70b", "context=16k", "gpus=8", "tokens_per_update=1M")
    assert code == 1 and "does not fit" in text and "the cheapest remedy: " in text and "gpus=" in text


def test_a_context_that_is_given_does_not_fix_the_ranks_that_share_it(capsys):
    code, text = said(capsys, "model=llama2-70b", "context=256k", "gpus=64", "tokens_per_update=4M")
    assert code == 0 and "context 16" in text and "(micro_batch_tokens=16384)" in text, text


def test_a_plan_is_run_without_data(capsys):
    code, text = said(
        capsys, "model.n_layers=2", "model.d_model=64", "model.head_dim=16", "model.n_heads=4", "model.n_kv_heads=4", "model.d_ffn=128",
        "model.vocab_size=512", "context=256", "gpus=4", "tokens_per_update=4k", "tokens=1M", "trace=true",
    )  # fmt: skip
    formula, traced = re.search(r"([\d.]+) GiB by formula, ([\d.]+) GiB by running", text).groups()
    assert code == 0 and float(formula) == pytest.approx(float(traced), abs=0.011)


@pytest.mark.parametrize("trainer", [[], ["stages.evaluate.trainer=gpu"]], ids=["its own", "one GPU"])
def test_an_evaluation_that_does_not_fit_one_gpu(trainer, capsys):
    """70B in bf16: the GPUs of a machine share it; on one it does not fit, with the figure and the keys that help."""
    code, text = said(capsys, "experiment=main_results", "grid.size=[70b]", *trainer)
    gpus, gib, fits = re.search(r"evaluate +[\d.e+]+ +(\d+) +([\d.]+) +(yes|no)", text).groups()
    if not trainer:
        assert (code, gpus, fits) == (0, "8", "yes") and float(gib) == pytest.approx(128.5 / 8 + 10 / 8 + 1.4, abs=0.2)
    else:
        assert (code, gpus, fits) == (1, "1", "no") and float(gib) == pytest.approx(128.5 + 10 + 1.4, abs=0.1)
        keys = "stages.evaluate.trainer.strategy=fsdp stages.evaluate.trainer.devices=2"
        assert f"takes {gib} GiB on one GPU (weights 128.5, cache 10.0, activations 1.4)" in text and keys in text


def test_a_sweep_refuses_what_the_gpu_cannot_hold(tmp_path, monkeypatch, capsys):
    """By the memory that nvidia-smi names, before anything is written; ``dry_run`` only says so."""
    (tmp_path / "bin").mkdir()
    driver = tmp_path / "bin" / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{driver.parent}{os.pathsep}{os.environ['PATH']}")
    words = ["trainer=gpu", "grid.position=[rope]", f"root={tmp_path / 'work'}", "tracking.enabled=false"]
    for memory, codes in (("10, toy", (2, 0)), ("81559, NVIDIA H100 80GB HBM3", (None, 0))):
        driver.write_text(f"#!/bin/sh\necho '{memory}'\n")
        driver.chmod(0o755)
        for dry, code in zip(("false", "true"), codes, strict=True):
            if code is not None:
                assert sweep([*words, f"dry_run={dry}"]) == code
                found = capsys.readouterr()
                refused = re.findall(
                    r"(\w+)[^:\n]*: (?:takes|weights,).* GiB on .*one toy has 0.0 for tensors", found.out + found.err
                )
                assert set(refused) == ({"extend", "evaluate", "evaluate_base"} if "toy" in memory else set())
    assert not (tmp_path / "work").exists()


def test_an_experiments_stages(capsys):
    code, text = said(capsys, "experiment=position_tiny")
    assert code == 0 and "Stages on H100s" in text
    for name in ("base", "extend rope", "extend abf", "evaluate abf"):
        assert name in text


def test_bad_words_are_told(capsys):
    for words, message in (
        (["gpu=h10"], "did you mean 'H100'"),
        (["checkpointing=selectiv"], "did you mean 'selective'"),
        (["tensor_paralel=2"], "did you mean 'tensor_parallel'"),
        (["model=llama2-7"], "did you mean 'llama2-7b'"),
        (["efficiency=40"], "efficiency must be at least 0 and at most 1"),
        (["gpus=0"], "gpus must be at least 1"),
        (["model=llama2-7b", "tensor_parallel=3", "gpus=9"], "no multiple of tensor_parallel=3"),
        (
            ["model=llama2-7b", "context=32000", "gpus=7"],
            "error: command line: tokens_per_update=4194304 (the default) must be a multiple of context=32000, whole sequences; take "
            "tokens_per_update=4192000 or context=32k",
        ),
        (["model=llama2-7b", "context=3000", "tokens_per_update=4096"], "=4096 must be a multiple of context=3000"),
        (["model=llama2-7b", "gpus=7"], "no layout of 7 GPUs"),
        (["gpus"], "not of the form key=value"),
    ):
        code, text = said(capsys, *words)
        assert code == 2 and message in text, text


def test_the_page_has_what_the_command_prints():
    """docs/planning.md; and the command needs no torch."""
    code = "import sys; from lit_long.plan import main; code = main(['paper=true']); assert 'torch' not in sys.modules; sys.exit(code)"
    finished = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    page = (REPOSITORY / "docs" / "planning.md").read_text()
    for table in finished.stdout.strip().split("\n\n"):
        assert table in page
