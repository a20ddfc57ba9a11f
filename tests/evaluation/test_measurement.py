"""One type of measurement: what it writes it reads, and what version 0.1 wrote it reads, too."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from lit_long.evaluation.measurement import Measurement


def test_a_row_is_read_as_it_was_written():
    alone = Measurement("perplexity", "docs", 2048, 8.5)
    whole = Measurement("score", "docs", 512, 0.5, 0.1, 0.3, 0.7, 12, "examples", 900, "needle", {"depth": 50.0, "seed": 3})
    for each in (alone, whole):
        row = json.loads(json.dumps(each.to_row()))
        assert Measurement.from_row(row) == each
    assert "task" not in alone.to_row() and whole.to_row()["depth"] == 50.0


def test_rows_of_0_1_are_read():
    """As evaluation/perplexity.py, retrieval.py and run.py of 0.1 wrote them."""
    rows = [
        {"metric": "perplexity", "domain": "code", "length": 256, "value": 20.5, "nats": 3.02, "tokens": 8192},
        {"metric": "retrieval_accuracy", "value": 0.25, "domain": "docs", "length": 256, "tokens": 640, "examples": 32},
        {"metric": "passkey.accuracy", "domain": "docs", "length": 256, "value": None, "tokens": 2},
    ]
    read, retrieval, diverged = map(Measurement.from_row, rows)
    assert (read.metric, read.value, read.tokens, read.n, read.stderr) == ("perplexity", 20.5, 8192, 0, None)
    assert (retrieval.n, retrieval.tokens, retrieval.domain) == (32, 640, "docs") and not retrieval.settings
    assert math.isnan(diverged.value)
    with pytest.raises(KeyError):
        Measurement.from_row({"metric": "perplexity", "value": 1.0})


def test_it_needs_no_torch():
    code = "import sys, lit_long.evaluation.measurement; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
