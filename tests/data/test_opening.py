"""Opening a store reads no index and no token, however many documents there are."""

from __future__ import annotations

import pytest

from tests.data.synthetic import opening, synthetic_store

DOCUMENTS = 2_000_000


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """What opening took, of a small store and of a large one; the latter's indices have 56 MB."""
    place = tmp_path_factory.mktemp("opening")
    return [opening(synthetic_store(place / str(count), count)) for count in (10_000, DOCUMENTS)]


def test_memory_does_not_grow_with_the_documents(opened):
    small, large = opened
    assert large["documents"] == DOCUMENTS * 49 // 50
    assert large["bytes"] - small["bytes"] < 2 * 2**20  # the shards' checksums in the manifest, and nothing for a document


def test_it_is_quick_and_needs_no_torch(opened):
    for found in opened:
        assert found["open_s"] < 1 and not found["torch"]
    assert opened[1]["read_1000_s"] < 2  # documents from all over it, each in a file that was not open yet
