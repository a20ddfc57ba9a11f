"""The search for LongRoPE's factors: its operators alone, and the whole of it on a tiny model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import yaml

from lit_long.config import ModelConfig, StageConfig, UserError, plain
from lit_long.evaluation.longrope_search import (
    SearchConfig,
    cross,
    evolve,
    mutate,
    search_factors,
    start_candidates,
    training_windows,
)
from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.pretrained.weights import WEIGHTS, save_weights
from lit_long.stages.folder import read_stage, write_stage
from lit_long.theory import main

MODEL = ModelConfig(vocab_size=1024, d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=16, d_ffn=64, context=64)
POSITION = {"scheme": "rope", "base": 10_000.0}
BUDGET = ["population=6", "iterations=2", "parents=3", "mutations=3", "crossovers=2", "sequences=1"]


def is_valid(factors, scale):
    return factors[0] >= 100 and factors[-1] <= 125 * scale and all(a <= b for a, b in itertools.pairwise(factors))


@pytest.fixture(scope="module")
def stage(store, tmp_path_factory):
    """A "trained" stage beside its store, with random weights large enough for positions to matter."""
    runs = tmp_path_factory.mktemp("stages")
    (runs / "data-x").symlink_to(store.folder)
    config = StageConfig(kind="train", context=64, model=MODEL, position=POSITION)
    folder = runs / "train-x"
    settings = {name: plain(getattr(config, name)) for name in ("kind", "parent", "context", "model", "position")}
    write_stage(folder, "x", settings, runs / "data-x", None)
    model = Llama(MODEL, build(POSITION, 16))
    model.init_weights(0)
    for parameter in model.parameters():
        parameter.data *= 8 if parameter.ndim == 2 else 1
    save_weights(model, folder / WEIGHTS)
    return folder


def test_start_candidates():
    starts = start_candidates(128, 1e4, 8.0, 4096)
    assert set(starts["pi"]) == {800}
    assert starts["ntk"][0] == 100 and starts["ntk"][-1] == 800
    assert starts["ntk"][32] == round(100 * 8 ** (64 / 126))
    assert starts["yarn"][:21] == (100,) * 21 and set(starts["yarn"][46:]) == {800}
    assert all(is_valid(factors, 8.0) for factors in starts.values())


def test_operators_keep_order_and_range():
    random = np.random.default_rng(0)
    candidates = list(start_candidates(32, 1e4, 4.0, 256).values())
    for _ in range(300):
        low, high = random.integers(len(candidates), size=2)
        candidates += [mutate(candidates[low], 4.0, random), cross(candidates[low], candidates[high], random)]
    assert all(is_valid(factors, 4.0) for factors in candidates)
    assert len(set(candidates)) > 300
    assert min(f[0] for f in candidates) == 100 and max(f[-1] for f in candidates) > 400


def test_evolution_approaches_a_known_optimum():
    target = np.linspace(100, 400, 16)
    starts = start_candidates(32, 1e4, 4.0, 256)

    def fitness(factors):
        return float(np.abs(np.array(factors) - target).mean())

    config = SearchConfig(stage="x", iterations=60)
    best, seen = evolve(fitness, starts, 4.0, config, lambda line: None)
    assert seen[best] == min(seen.values()) < 0.4 * min(map(fitness, starts.values()))


def test_broken_candidates_lose():
    """A perplexity that is not a number is never the best."""
    starts = start_candidates(32, 1e4, 4.0, 256)
    best, _ = evolve(
        lambda f: float("nan") if f == starts["pi"] else 1.0 + f[0], starts, 4.0, SearchConfig(stage="x"), lambda line: None
    )
    assert best != starts["pi"]


def test_search_on_a_model(stage, tmp_path, capsys):
    words = ["search=longrope", f"stage={stage}", "length=256"]
    assert main([*words, *BUDGET, f"out={tmp_path / 'a'}"]) == 0
    printed = capsys.readouterr().out
    assert main([*words, *BUDGET, f"out={tmp_path / 'b'}"]) == 0
    text = (tmp_path / "a" / "longrope.yaml").read_text()
    assert text == (tmp_path / "b" / "longrope.yaml").read_text()  # the same seed, the same factors
    option = yaml.safe_load(text)
    assert option["scheme"] == "longrope" and option["factor"] == 4 and option["original"] == 64
    assert option["short_factors"] == [1.0] * 8 and len(option["long_factors"]) == 8
    assert is_valid([round(100 * factor) for factor in option["long_factors"]], 4)
    build(option, 16)
    assert "before" in printed and "generation 2 of 2" in printed


def test_no_worse_than_its_starts(stage):
    trained, folder, _ = read_stage(stage)
    config = SearchConfig(stage=str(stage), length=128, population=5, iterations=1, sequences=1)
    found = search_factors(config, trained, folder, stage, lambda line: None)
    assert found.perplexity <= min(found.starts.values())
    assert set(found.starts) == {"pi", "ntk", "yarn"} and len(set(found.starts.values())) == 3
    assert np.isfinite(found.before)


def test_fitness_reads_training_documents_only(store):
    batch = training_windows(store, SearchConfig(stage="x", length=128, sequences=3))
    assert batch.tokens.shape == (3 * len(store.domains), 128)
    assert batch.tokens[:, 1:].equal(batch.targets[:, :-1])
    documents = [store.documents(domain, "train") for domain in store.domains]
    beginnings = {tuple(each[i][:128].tolist()) for each in documents for i in range(len(each))}
    assert all(tuple(row) in beginnings for row in batch.tokens.tolist())


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"length": 64}, "must be above"), ({"length": 10**7}, "No training document"), ({"domains": ["books"]}, "books")],
)
def test_refusals(stage, change, expected):
    trained, folder, _ = read_stage(stage)
    with pytest.raises(UserError, match=expected):
        search_factors(SearchConfig(**{"stage": "x", "length": 128} | change), trained, folder, stage, lambda line: None)
    trained.position = {"scheme": "nope"}
    with pytest.raises(UserError, match="rescales rope or abf"):
        search_factors(SearchConfig(stage="x"), trained, folder, stage, lambda line: None)
