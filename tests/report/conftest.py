"""Builds sweep folders on disk, as lit_long.sweep leaves them, from plain numbers (the fixture ``make``)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

PAPER = {
    "rope": {"Books": 6.548, "CC": 6.816, "Wikipedia": 3.802},
    "pi": {"Books": 6.341, "CC": 6.786, "Wikipedia": 3.775},
    "abf": {"Books": 6.323, "CC": 6.780, "Wikipedia": 3.771},
    "xpos_abf": {"Books": 6.331, "CC": 6.780, "Wikipedia": 3.771},
}
Measurement = tuple[str, str, int, float | None]  # metric, domain, length, value


def stage(runs: Path, name: str, result: dict[str, Any] | None, done: bool = True) -> str:
    """Writes a stage folder and returns its path as sweep.json has it. No result: the folder is there, unfinished."""
    folder = runs / "stages" / name
    folder.mkdir(parents=True, exist_ok=True)
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
        if done:
            (folder / "DONE").touch()
    return f"../../stages/{name}"


def train(context: int, tokens: int, **more: Any) -> dict[str, Any]:
    fixed = {"precision": "bf16-mixed", "machine": "AMD EPYC, 2 cores", "parameters": 2_400_000, "seconds": 80.0}
    return {"kind": "train", "context": context, "tokens": tokens, "validation": {"code": 3.2}} | fixed | more


def evaluate(measurements: list[Measurement]) -> dict[str, Any]:
    keys = ("metric", "domain", "length", "value")
    entries = [dict(zip(keys, each, strict=True)) | {"tokens": 131_072} for each in measurements]
    return {"kind": "evaluate", "measurements": entries}


def sweep(
    root: Path,
    measured: dict[tuple[str, int], list[Measurement] | None],
    base: dict[int, list[Measurement]] | None = None,
    experiment: str = "position_tiny",
    report: dict[str, Any] | None = None,
    settings: dict[str, dict[str, Any]] | None = None,
) -> Path:
    """A sweep of base → extend → evaluate per (variant, seed), with evaluate_base shared per seed. None: not finished.
    ``settings``: of each variant's evaluate stages."""
    runs = root / "runs"
    folder = runs / experiment / "k1"
    folder.mkdir(parents=True)
    trials = []
    for (variant, seed), measurements in measured.items():
        stages = {
            "corpus": stage(runs, "corpus-0", {"kind": "data", "digest": "sha256:abcd", "tokens": {"code": 5}}),
            "base": stage(runs, f"base-s{seed}", train(256, 400_000)),
            "extend": stage(runs, f"extend-{variant}-s{seed}", train(2048, 200_000)),
        }
        result = None if measurements is None else evaluate(measurements)
        stages["evaluate"] = stage(runs, f"evaluate-{variant}-s{seed}", result)
        if base is not None:
            stages["evaluate_base"] = stage(runs, f"evaluate_base-s{seed}", evaluate(base[seed]))
        trials.append({"variant": variant, "seed": seed, "stages": stages})
    shown = {
        "title": "Positions, small",
        "rows": "evaluate",
        "reference": "evaluate_base" if base is not None else None,
    }
    shown |= {
        "paper_source": "Xiong et al. 2023, Table 5",
        "paper_length": 32_768,
        "paper": PAPER,
        "notes": ["A note."],
    }
    config = {
        "experiment": experiment,
        "description": "Which encoder extends best",
        "report": shown | (report or {}),
    }
    config["stages"] = {"evaluate_base": {"kind": "evaluate", "parent": "base"}}
    for variant, seed in measured:
        found = {"kind": "evaluate", "identity": f"{variant}-s{seed}"} | (settings or {}).get(variant, {})
        config["stages"][f"evaluate {variant} s{seed}"] = found
    (folder / "sweep.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "sweep.json").write_text(json.dumps({"experiment": experiment, "key": "k1", "trials": trials}))
    (folder.parent / "latest").symlink_to("k1")
    return folder


def perplexities(code: float, docs: float = 30.0) -> list[Measurement]:
    """At 2,048 tokens as given; at 256 one more."""
    at = {("code", 2048): code, ("docs", 2048): docs, ("code", 256): code + 1, ("docs", 256): docs + 1}
    return [("perplexity", domain, length, value) for (domain, length), value in at.items()]


def everything(code: float = 20.0) -> list[Measurement]:
    """All four metrics, enough for both figures."""
    retrieval = [(m, "docs", n, v) for n in (256, 512, 2048) for m, v in (("retrieval_accuracy", 0.7), ("retrieval_nats", 0.9))]
    loss = [("loss_by_position", domain, edge, 3 - edge / 4096) for domain in ("code", "docs") for edge in range(128, 2049, 128)]
    return [*perplexities(code), *retrieval, *loss]


@pytest.fixture
def make() -> SimpleNamespace:
    return SimpleNamespace(
        sweep=sweep,
        stage=stage,
        train=train,
        evaluate=evaluate,
        perplexities=perplexities,
        everything=everything,
        paper=PAPER,
    )
