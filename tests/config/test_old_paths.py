"""The import path that docs/evaluation.md of 0.1 named works until 0.3, and says where its names are now."""

from __future__ import annotations

import importlib
import sys

import pytest

from lit_long import config


def test_an_old_path_says_where_its_names_are_now():
    sys.modules.pop("lit_long.config.one_model", None)
    with pytest.warns(DeprecationWarning, match=r"lit_long\.config\.one_model goes with 0\.3: .* from lit_long\.config"):
        old = importlib.import_module("lit_long.config.one_model")
    assert old.parse_model_words is config.parse_model_words and old.compose_model is config.compose_model
