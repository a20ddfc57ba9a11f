"""The helper that runs ranks for tests: what a rank says is there, and one that fails is heard."""

from __future__ import annotations

import time

import pytest

from tests.ranks import run_ranks

PROGRAM = """
import os, sys, time
print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], *sys.argv[1:], flush=True)
if os.environ["RANK"] == sys.argv[1]:
    raise RuntimeError("this one broke")
if sys.argv[1] != "none":
    time.sleep(600)
"""


def test_a_rank_that_fails_ends_the_others_and_is_told(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    assert sorted(run_ranks(2, program, "none").splitlines()) == ["rank 0 of 2 none", "rank 1 of 2 none"]
    begin = time.monotonic()
    with pytest.raises(AssertionError, match="this one broke"):
        run_ranks(2, program, 1)
    with pytest.raises(AssertionError, match=r"exit codes \[None, None\]"):
        run_ranks(2, program, "both", seconds=0.5)
    assert time.monotonic() - begin < 300
