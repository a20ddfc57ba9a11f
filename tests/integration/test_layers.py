"""Layers that differ, end to end: trained, extended, measured and continued."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.integration.mini import MINI, run


@pytest.mark.slow
def test_a_sweep_over_layers(tmp_path):
    """Each pattern is a variant with a base of its own; a stage's model generates with the layers that it was trained with."""
    axes = ["grid.layers=[uniform,swan,rnope_swa]", "position=abf", "seed=0", "model.n_layers=4"]
    ended = run("lit_long.sweep", *MINI, *axes, "base=train", "tracking.enabled=false", f"root={tmp_path}", timeout=900)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    trained = {}
    for folder in (tmp_path / "runs" / "stages").glob("train-*"):
        layers = yaml.safe_load((folder / "stage.yaml").read_text())["settings"]["layers"]
        loss = json.loads((folder / "result.json").read_text())["train_loss"]
        trained.setdefault(tuple(layers["pattern"]), []).append((loss, folder))
    assert sorted(map(len, trained.values())) == [2, 2, 2]
    assert len({loss for both in trained.values() for loss, _ in both}) == 6
    report = (tmp_path / "runs" / "position_tiny" / "latest" / "report.md").read_text()
    assert all(name in report for name in ("uniform", "swan", "rnope_swa"))
    _, folder = trained["global", "local", "local", "local"][0]
    written = run("lit_long.generate", f"stage={folder}", "prompt=def f(x):", "max_new_tokens=40")
    assert written.returncode == 0, written.stderr
