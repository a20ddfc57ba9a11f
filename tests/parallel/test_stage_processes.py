"""Training stages with phases, in processes of their own: on two ranks what one process counts."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lit_long.config import (
    AdapterConfig,
    CorpusConfig,
    CurriculumConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    SourceConfig,
    StageConfig,
    TrainerConfig,
    plain,
)
from lit_long.config.schema import PhaseConfig, ValidationConfig
from lit_long.data.prepare import prepare
from lit_long.launch.local import make_command
from lit_long.stages.folder import is_done, write_stage
from lit_long.stages.run import run_stage
from tests.data.own import TEXTS, write_text
from tests.integration.mini import REPOSITORY
from tests.test_surroundings import OF_OTHERS

UPDATES, SWITCH, PER_UPDATE, EVERY = 48, 24, 1024, 20
DOMAINS = ("long", "short")


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A folder with the prepared store ``store``: of few documents, so that a run passes them more than once."""
    folder = tmp_path_factory.mktemp("stages")
    texts = {"long": [text for text in TEXTS if len(text) > 500][:6], "short": [text for text in TEXTS if len(text) < 500][:12]}
    sources = {name: SourceConfig(path=str(write_text(folder / name, texts[name])), validation_share=0.1) for name in DOMAINS}
    prepare(CorpusConfig(vocab_size=300), folder / "store", sources=sources, builtin=False, processes=1)
    return folder


def stage(strategy="single"):
    return StageConfig(
        context=64,
        tokens=UPDATES * PER_UPDATE,
        tokens_per_update=PER_UPDATE,
        model=ModelConfig(vocab_size=300, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, d_ffn=64, context=64),
        position={"scheme": "rope", "base": 10_000.0},
        data=DataConfig(weights={"long": 0.7, "short": 0.3}, packing="best_fit"),
        curriculum=CurriculumConfig([PhaseConfig(until=0.5, scale=0.25), PhaseConfig(until=1.0)]),
        optim=OptimConfig(lr=1e-2),
        validation=ValidationConfig(times=0),
        trainer=TrainerConfig(
            precision="32-true", strategy=strategy, devices=2 if strategy == "fsdp" else 1, checkpoint_every=EVERY
        ),
    )


def start(folder: Path, config: StageConfig, parent: Path | None = None, **more: str) -> subprocess.Popen:
    """The stage in the folder, as a sweep starts it: with a pipe that it watches. Its output lies in log.txt. ``more``: of its environment."""
    folder.mkdir(exist_ok=True)
    write_stage(folder, folder.name, plain(config), folder.parent / "store", parent)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | more
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            make_command(folder, config), cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log
        )


def end(process: subprocess.Popen, folder: Path) -> None:
    assert process.wait(600) == 0 and is_done(folder), (folder / "log.txt").read_text()


def rows(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True) if (folder / "metrics.jsonl").exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def counts(folder: Path) -> list[dict]:
    """What does not depend on the time: the step, the loss, and what was consumed so far."""
    return [{k: v for k, v in row.items() if k == "step" or k.startswith(("train/", "data/"))} for row in rows(folder)]


@pytest.fixture(scope="module")
def straight(stages):
    """The folder of an uninterrupted run, in this process."""
    folder = stages / "straight"
    folder.mkdir()
    write_stage(folder, folder.name, plain(stage()), stages / "store", None)
    run_stage(folder, lambda message, share: None)
    return folder


@pytest.mark.parametrize("context_parallel", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_two_ranks_count_what_one_process_counts(stages, straight, context_parallel):
    """FSDP2 over gloo, two domains, best-fit, two phases: the same counts to the last document, the same losses to rounding. The ranks have
    half of the rows each, or of each row; and variables that say which ranks of others they are change nothing."""
    folder, config = stages / f"ranks-{context_parallel}", stage("fsdp")
    config.trainer.context_parallel = context_parallel
    end(start(folder, config, **(OF_OTHERS)), folder)
    ours, theirs = (
        [{k: v for k, v in row.items() if not k.startswith("train/")} for row in counts(place)] for place in (folder, straight)
    )
    assert ours == theirs and len(ours) == UPDATES
    last = ours[-1]
    assert all(last[f"data/{name}/{what}"] > 0 for name in DOMAINS for what in ("tokens", "documents", "cut"))
    losses = [[row["train/loss"] for row in rows(place)] for place in (folder, straight)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)
    assert losses[0] != losses[1], "sums of two ranks are rounded otherwise: was it one?"
    for row in rows(folder):
        assert row["perf/tokens_per_second_per_device"] * row["perf/seconds"] == pytest.approx(PER_UPDATE / 2)


@pytest.mark.slow
def test_two_ranks_train_an_adapter_as_one_process_does(stages, straight):
    """FSDP2 over parameters of which some are frozen: LongLoRA's part of the model of ``straight``, in bytes of its own optimizer."""
    found = {}
    for strategy in ("single", "fsdp"):
        folder = stages / f"train-adapter-{strategy}"
        config = stage(strategy)
        config = replace(config, tokens=8 * PER_UPDATE, adapter=AdapterConfig(rank=4, train_embeddings_and_norms=True))
        config.trainer.checkpoint_every = 3
        end(start(folder, config, straight), folder)
        found[strategy] = [row["train/loss"] for row in rows(folder)], load_file(folder / "weights.safetensors")
    (one, weights), (two, others) = found.values()
    assert two == pytest.approx(one, abs=2e-5) and len(one) == 8
    assert weights.keys() == others.keys() == load_file(straight / "weights.safetensors").keys()
    assert all((weights[name] - others[name]).abs().max() < 1e-4 for name in weights)
