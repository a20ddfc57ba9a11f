"""Paths that the README of 0.1 names work until 0.3, with a notice."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("module", "datamodule", "LongContextDataModule"),
        ("store", "prepare", "prepare"),
        ("store", "token_store", "open_store"),
        ("store", "token_store", "Store"),
    ],
)
def test_old_paths(old, new, name):
    sys.modules.pop(f"lit_long.data.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"lit_long\.data\.{old} goes with 0\.3.*{name}.* from lit_long\.data\.{new}"):
        found = importlib.import_module(f"lit_long.data.{old}")
    assert getattr(found, name) is getattr(importlib.import_module(f"lit_long.data.{new}"), name)
