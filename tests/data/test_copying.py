from __future__ import annotations

import numpy as np
import pytest

from lit_long.config import UserError
from lit_long.data.curriculum import Phase
from lit_long.data.mixture import Recipe, make_mixtures
from lit_long.data.synthetic import SPAN, CopyDocuments


def whole(sequence):
    """The tokens [T + 1] of a sequence."""
    np.testing.assert_array_equal(sequence["tokens"][1:], sequence["targets"][:-1])
    return np.append(sequence["tokens"], sequence["targets"][-1])


def spans_of(tokens):
    """(start, size, start of the copy) of the spans that the first half is cut into: the longest ones that come again, from the left."""
    half = len(tokens) // 2
    found, at = [], 1
    later = tokens[half:].tolist()
    while at < half:
        for size in reversed(SPAN):
            span = tokens[at : at + size].tolist()
            starts = [i for i in range(len(later) - size + 1) if later[i : i + size] == span]
            if starts:
                found.append((at, size, half + starts[0]))
                break
        else:
            return found
        at += found[-1][1]
    return found


@pytest.mark.parametrize("context", [64, 255, 1024])
def test_spans_come_again_in_another_order(store, context):
    source = CopyDocuments(store, context, seed=1)
    training = store.documents("docs", "train").tokens.tolist()
    text = " ".join(map(str, training)) + " "
    distances, of_one = set(), []
    for i in range(20):
        tokens = whole(source[i])
        assert len(tokens) == context + 1 and tokens[0] == store.separator
        assert source[i]["account"].tolist() == [context, 1, 0, 0] and (source[i]["targets"] >= 0).all()
        first = tokens[1 : 1 + min(SPAN)]
        assert " ".join(map(str, first.tolist())) + " " in text
        of_one.append({again - at for at, _, again in spans_of(tokens)})
        distances |= of_one[-1]
    assert len(distances) > 10  # a head that looks a fixed distance back does not solve it
    assert context < 1024 or np.mean([len(each) for each in of_one]) > 6  # not even within a sequence


def test_most_of_the_second_half_is_in_the_first(store):
    copied = []
    for i in range(20):
        tokens = whole(CopyDocuments(store, 512, seed=3)[i])
        half = len(tokens) // 2
        pairs = set(zip(tokens[:half].tolist(), tokens[1 : half + 1].tolist(), strict=True))
        copied.append(
            np.mean([pair in pairs for pair in zip(tokens[half + 20 : -1].tolist(), tokens[half + 21 :].tolist(), strict=True)])
        )
    assert np.mean(copied) > 0.85  # where a span ends, another follows


def test_sequences_are_functions_of_seed_and_index(store):
    source = CopyDocuments(store, 128, seed=1)
    np.testing.assert_array_equal(source[7]["tokens"], CopyDocuments(store, 128, seed=1)[7]["tokens"])
    assert not np.array_equal(source[7]["tokens"], source[8]["tokens"])
    assert not np.array_equal(source[7]["tokens"], CopyDocuments(store, 128, seed=2)[7]["tokens"])
    source.first = 5
    np.testing.assert_array_equal(source[2]["tokens"], CopyDocuments(store, 128, seed=1)[7]["tokens"])


def test_it_is_a_domain_of_the_mixture(store):
    (mixture,) = make_mixtures(store, Recipe({"docs": 0.5, "copying": 0.5}), [Phase(0, 4, 128)], 1024)
    assert isinstance(mixture.sources["copying"], CopyDocuments)
    with pytest.raises(UserError, match=r"data\.repeats\.copying: there is no pass over"):
        mixture.tokens_per_epoch("copying")
