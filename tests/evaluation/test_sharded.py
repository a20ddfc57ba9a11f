"""An evaluate stage whose model two ranks share: the scores of one process, the same answers, and half of the weights on each."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from lit_long.config import EvaluationConfig, LayerGroupConfig, LayersConfig, StageConfig, TrainerConfig, UserError, plain
from lit_long.config.mesh import evaluation_ranks
from lit_long.evaluation.run import joined, load_model
from lit_long.generation.cache import KeyValueCache
from lit_long.launch.local import count_processes, make_command, make_environment
from lit_long.pretrained.weights import WEIGHTS, save_weights
from lit_long.stages.folder import is_done, read_result, write_stage
from lit_long.stages.identity import RELEVANT
from lit_long.stages.run import run_stage
from tests.evaluation.test_retrieval import POSITIONS, SHAPE, model_with

OWN = ["perplexity", "sliding_perplexity", "needle", "longchat_lines", "attention"]
EVALUATION = EvaluationConfig(
    domains=["code"],
    lengths=[64, 128],
    sequences=4,
    retrieval_lengths=[256],
    passkey_lengths=[256],
    retrieval_examples=3,
    tasks=OWN,
    task_lengths=[256],
    task_samples=2,
)


def stage(tasks=OWN, **trainer):
    return StageConfig(
        kind="evaluate",
        model=SHAPE,
        position=POSITIONS[0],
        evaluation=replace(EVALUATION, tasks=tasks),
        trainer=TrainerConfig(precision="32-true", threads=2, **trainer),
    )


def evaluated(config: StageConfig, folder: Path) -> Path:
    """The finished stage, as a launcher starts it."""
    folder.mkdir(exist_ok=True)
    settings = {name: plain(getattr(config, name)) for name in ("kind", "parent", *RELEVANT["evaluate"])}
    write_stage(folder, folder.name, settings, folder.parent / "store", folder.parent / "parent")
    if count_processes(config) == 1:
        run_stage(folder, lambda message, done: None)
    else:
        words = make_command(folder, config, watched=False)
        done = subprocess.run(words, env=make_environment(config, 1), capture_output=True, text=True, timeout=800)
        assert done.returncode == 0, done.stdout + done.stderr
    assert is_done(folder)
    return folder


def samples(folder: Path) -> dict[str, list]:
    """Of each task, in the order of their keys, without the name of the stage."""
    found = {file.stem: file.read_text().splitlines() for file in sorted((folder / "samples").iterdir())}
    return {
        name: sorted(map(json.loads, rows[1:]), key=lambda row: (row["length"], row["index"])) for name, rows in found.items()
    }


def close(found, expected):
    """Numbers within rounding, all else the same: texts that were written, counts and what was hit."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            close(found[key], value)
    elif isinstance(expected, list):
        for pair in zip(found, expected, strict=True):
            close(*pair)
    else:
        assert found == expected


@pytest.fixture
def place(store, tmp_path) -> Path:
    """Where stages lie, with the data and the model that they are given."""
    (tmp_path / "store").symlink_to(store.folder)
    (tmp_path / "parent").mkdir()
    save_weights(model_with(POSITIONS[0]), tmp_path / "parent" / WEIGHTS)
    return tmp_path


# One of each kind that is cut, or not, for another family
SWITCHES = {"qk_norm": "layer", "norm": "post", "activation": "relu2", "qkv_bias": True, "o_bias": True, "mlp_bias": True}


@pytest.mark.slow
def test_two_ranks_measure_what_one_does_of_another_family(place):
    """Biases of sums are added once, and one vector of all heads is normalised as a whole."""
    shape = replace(SHAPE, **SWITCHES)
    model = model_with(POSITIONS[0], shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(len(parameter), generator=torch.Generator().manual_seed(len(name))))
    save_weights(model, place / "parent" / WEIGHTS)
    alone, shared = (replace(stage([], **keys), model=shape) for keys in ({}, {"strategy": "fsdp", "devices": 2}))
    alone, shared = (
        replace(config, evaluation=replace(config.evaluation, lengths=[64], retrieval_lengths=[], passkey_lengths=[]))
        for config in (alone, shared)
    )
    one, two = (read_result(evaluated(config, place / name)) for name, config in (("one", alone), ("two", shared)))
    assert one["measurements"]
    close(two["measurements"], one["measurements"])


def test_two_ranks_measure_what_one_does(place):
    configs = {"one": stage(), "two": stage(strategy="fsdp", devices=2)}
    assert [count_processes(config) for config in configs.values()] == [1, 2]
    one, two = (evaluated(config, place / name) for name, config in configs.items())
    results = [read_result(folder) for folder in (one, two)]
    for result in results:
        assert result.pop("seconds") > 0
    assert {row["metric"] for row in results[0]["measurements"]} >= {
        "perplexity",
        "retrieval_rouge_l",
        "passkey_accuracy",
        "needle.score",
    }
    close(results[1], results[0])
    close(samples(two), samples(one))
    assert set(samples(one)) == set(OWN)


TASK = """\
task: {name}
output_type: {kind}
test_split: train
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
num_fewshot: 0
"""
CHOICE = """\
doc_to_choice: "{{options}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITTEN = """\
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.slow
def test_tasks_of_lm_evals_and_an_evaluation_that_goes_on(place):
    """Likelihoods and texts through lm-eval, of a model with local layers, whose prompts share a beginning that is read once; the sharded stage is
    interrupted, and goes on with the samples that are missing."""
    text = "Of all these items, which are many, and each has a colour, item {} is"
    rows = [{"text": text.format(n), "options": ["red", "blue as the sky"], "answer": n % 2} for n in range(6)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = []
    for name, kind, rest in (("chosen", "multiple_choice", CHOICE), ("written", "generate_until", WRITTEN)):
        (place / f"{name}.yaml").write_text(TASK.format(name=name, kind=kind, data=place / "rows.jsonl") + rest)
        tasks.append(str(place / f"{name}.yaml"))
    local = LayersConfig({"local": LayerGroupConfig(window=16), "whole": LayerGroupConfig()}, ["local", "whole"])
    configs = {"one": replace(stage(tasks), layers=local), "two": replace(stage(tasks, strategy="fsdp", devices=2), layers=local)}
    one, two = (evaluated(config, place / name) for name, config in configs.items())
    results = [read_result(folder) for folder in (one, two)]
    for result in results:
        assert result.pop("seconds") > 0
    close(results[1], results[0])
    close(samples(two), samples(one))
    before = (two / "samples" / "chosen.jsonl").read_text()
    (two / "samples" / "chosen.jsonl").write_text("".join(before.splitlines(keepends=True)[:3]) + '{"half a li')
    (two / "samples" / "written.jsonl").unlink()
    (two / "DONE").unlink()
    again = read_result(evaluated(configs["two"], two))
    assert again.pop("seconds") > 0
    close(again, results[0])
    assert (two / "samples" / "chosen.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("trainer", "shape", "ranks"),
    [
        ({"strategy": "single"}, {}, 1),
        ({"strategy": "fsdp", "devices": 8}, {}, 2),  # it has two key-value heads
        (
            {"strategy": "fsdp", "devices": 8, "nodes": 32, "context_parallel": 2},
            {"n_kv_heads": 8, "n_heads": 64},
            8,
        ),  # of one machine
        ({"strategy": "fsdp", "devices": 3}, {"n_kv_heads": 3, "n_heads": 9, "d_ffn": 96, "vocab_size": 1023}, 3),
    ],
)
def test_as_many_ranks_as_can_share_the_model(trainer, shape, ranks):
    config = stage(**trainer)
    config = replace(config, model=replace(config.model, **shape))
    assert evaluation_ranks(config) == count_processes(config) == ranks
    if ranks > 1:
        assert f"--nproc_per_node={ranks}" in make_command(Path("folder"), config)
        with pytest.raises(UserError, match=f"{ranks} processes share this model, and 1 were started"), joined(config):
            pass


def test_a_rank_holds_its_part_of_the_weights_and_of_the_cache(place):
    """The first of two ranks, of which the other need not exist; its rows of a matrix are the first half."""
    whole = dict(model_with(POSITIONS[0]).named_parameters())
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = DeviceMesh.from_group(dist.group.WORLD, "cpu")
        model = load_model(stage(), place / "parent", torch.device("cpu"), mesh)
        cache = KeyValueCache(model, [5, 3], 4, rotated=[True], chunk=8)
    finally:
        dist.destroy_process_group()
    parts = dict(model.named_parameters())
    assert parts.keys() == whole.keys() and not any(isinstance(part, DTensor) for part in parts.values())
    for name, part in parts.items():
        cut = 1 if part.ndim == 1 else 2
        assert part.numel() * cut == whole[name].numel(), name
    torch.testing.assert_close(parts["layers.1.mlp.down_proj.weight"], whole["layers.1.mlp.down_proj.weight"][:, :48])
    assert [kept.shape for kept in cache.keys_and_values] == [(2, 2, 1, 9, 16)] * 2
