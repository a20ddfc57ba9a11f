"""One small but real corpus for all tests: the standard library and omegaconf."""

from __future__ import annotations

import os
import shutil
import tempfile

import hypothesis
import pytest

from lit_long.config import CorpusConfig
from lit_long.data.prepare import prepare
from lit_long.data.token_store import open_store
from lit_long.processor import take_mkl_fast_path

take_mkl_fast_path()  # tests compute as stages do, to the bit


def pytest_configure(config):
    """Converted weights and digests lie in a cache of this run, which all its processes share; never in the user's own."""
    if not hasattr(config, "workerinput"):  # a worker of xdist inherits it
        os.environ["LIT_LONG_CACHE"] = folder = tempfile.mkdtemp(prefix="lit-long-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("untimed")


LONG = ("integration", "training", "planning", "generation", "instruct")  # rooms with files that take longest, the longest first


def pytest_collection_modifyitems(items):
    """Long files come first: `make test` gives whole files to two processes (in this order: --no-loadscope-reorder), and a long last one would leave
    the other waiting."""
    items.sort(key=lambda item: next((place for place, room in enumerate(LONG) if room in item.path.parts), len(LONG)))


@pytest.fixture(scope="session")
def corpus():
    return CorpusConfig(packages=["omegaconf"], validation=["argparse", "asyncio", "email", "json", "typing"], vocab_size=1024)


@pytest.fixture(scope="session")
def reports():
    """What `prepare` reported for the session's store."""
    return []


@pytest.fixture(scope="session")
def store(corpus, reports, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    prepare(corpus, folder, lambda message, done: reports.append((message, done)))
    return open_store(folder)
