"""One small but real corpus for all tests: the standard library and omegaconf."""

from __future__ import annotations

import os
import shutil
import tempfile

import hypothesis
import pytest

from lit_long.config import CorpusConfig
from lit_long.data.token_store import open_store
from lit_long.processor import take_mkl_fast_path
from lit_long.surroundings import hide_from_torchmetrics
from tests.integration.mini import SMALL, prepared_corpus

# Tests start, and compute to the bit, as stages do.
hide_from_torchmetrics()
take_mkl_fast_path()


def pytest_configure(config):
    """Converted weights and digests lie in a cache of this run, which all its processes share; never in the user's own."""
    if not hasattr(config, "workerinput"):  # a worker of xdist inherits it
        os.environ["LIT_LONG_CACHE"] = folder = tempfile.mkdtemp(prefix="lit-long-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


# The same examples each time, so that what passed once passes again; `make test-all` draws new ones. No deadline: a busy machine is no fault.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.register_profile("new", deadline=None)
hypothesis.settings.load_profile("same")


# Files that take longest, the longest first.
LONG = [
    "test_archived_sweep",
    "test_sweep",
    "test_launchers",
    "test_sweep_from_weights",
    "test_mesh",
    "test_gpu_script",
    "test_stage_processes",
    "test_resume",
    "test_interruptions",
    "test_faults",
    "test_failed_stage",
    "test_readme",
    "test_gguf",
    "test_sharded",
    "test_fork_server",
    "test_prepare",
    "test_own_data",
    "test_shards",
    "test_mlflow",
    "test_tracker",
    "test_generate",
    "test_parallel",
    "test_killed_across_a_switch",
    "test_csv_tracker",
]


def pytest_collection_modifyitems(items):
    """Long files come first: `make test` gives whole files to two processes (in this order: --no-loadscope-reorder), and a long last one would leave
    the other waiting."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def corpus():
    return CorpusConfig(**SMALL)


@pytest.fixture(scope="session")
def store():
    """That corpus, prepared once for all processes of a run."""
    return open_store(prepared_corpus())
