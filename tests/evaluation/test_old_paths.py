"""Paths that docs/evaluation.md of 0.1 names work until 0.3, with a notice."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("old", "former", "new", "name"),
    [("harness", "Harness", "lm_eval", "Harness"), ("subject", "Subject", "evaluated_model", "EvaluatedModel")],
)
def test_old_paths(old, former, new, name):
    sys.modules.pop(f"lit_long.evaluation.{old}", None)
    notice = rf"lit_long\.evaluation\.{old} goes with 0\.3: take {name} from lit_long\.evaluation\.{new}"
    with pytest.warns(DeprecationWarning, match=notice):
        found = importlib.import_module(f"lit_long.evaluation.{old}")
    assert getattr(found, former) is getattr(importlib.import_module(f"lit_long.evaluation.{new}"), name)
