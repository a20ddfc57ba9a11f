"""Attention on the first token and its entropy, against the probabilities that transformers' eager attention returns."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lit_long.evaluation.attention import METRICS, AttentionSpread, spread
from tests.evaluation.models import evaluated_of
from tests.pretrained.llamas import batch_of, read, save
from tests.pretrained.test_families import FULL, SIZES, SLIDING

WINDOW, LENGTH = 40, 300  # tokens; several blocks of queries


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A Qwen3 of transformers with local layers, sharpened so that attention is far from even, and ours of its folder."""
    torch.manual_seed(0)
    windows = {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": [FULL, SLIDING, FULL, SLIDING]}
    config = CONFIG_MAPPING["qwen3"](**SIZES | windows | {"max_position_embeddings": 512, "head_dim": 32})
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for layer in theirs.model.layers:
        layer.self_attn.q_norm.weight.data.mul_(8)
    return theirs, read(save(theirs, tmp_path_factory.mktemp("qwen3")))


def test_as_transformers_has_it(pair):
    theirs, ours = pair
    tokens = torch.randint(3, 160, (1, LENGTH))
    with torch.no_grad():
        attentions = theirs(tokens, output_attentions=True).attentions
    found = spread(ours, batch_of(tokens))
    sees = [LENGTH, WINDOW, LENGTH, WINDOW]  # the first queries, which see the first token
    sinks = [float(each[:, :, 1:stop, 0].mean()) for each, stop in zip(attentions, sees, strict=True)]
    entropies = [float(torch.special.entr(each.double())[:, :, 1:].sum(-1).mean()) for each in attentions]
    assert found["sink_mass"] == pytest.approx(sinks, rel=1e-4) and found["entropy"] == pytest.approx(entropies, rel=1e-4)
    assert found["full"] == [True, False, True, False]
    assert spread(ours, batch_of(tokens[:, :WINDOW]))["full"] == [True] * 4, "at that length no window hides anything"
    assert max(entropies) < 0.9 * float(torch.arange(2, LENGTH + 1).log().mean()), "is it sharper than even attention?"


def test_of_documents(store):
    """Means over documents, of all layers and of each; at a shorter length the documents' beginnings."""
    evaluated = evaluated_of(store)
    task = AttentionSpread(store, "d", ["code", "docs"], [64, 192], sequences=2)
    samples = [
        key._asdict() | record
        for domain in task.domains
        for length in task.lengths
        for key, record in task.measure(evaluated, [key for key in task.keys() if (key.domain, key.length) == (domain, length)])
    ]
    rows = task.scores(samples)
    whole = [row for row in rows if row.is_whole]
    assert [(row.metric, row.domain, row.length, row.n) for row in whole] == [
        (metric, domain, length, 2)
        for domain in ("code", "docs")
        for length in (64, 192)
        for each in METRICS
        for metric in (each, f"{each}_full")
    ]
    assert whole[-1].value == whole[-2].value, "there are no windows"
    layers = [
        row for row in rows if not row.is_whole and (row.domain, row.length) == ("docs", 192) and row.metric == "entropy_of_layer"
    ]
    assert [row.settings["layer"] for row in layers] == [0, 1]
    assert sum(row.value for row in layers) / 2 == pytest.approx(whole[-1].value)
    for hidden, expected in (([True, False], layers[0]), ([False, False], None)):
        local = [sample | {"full": hidden} for sample in samples]
        of_full = [row for row in task.scores(local) if (row.metric, row.domain, row.length) == ("entropy_full", "docs", 192)]
        assert [row.value for row in of_full] == ([expected.value] if expected else [])
    one = task.documents("docs").rows(1, 2)
    again = spread(evaluated.model, batch_of(one.tokens[:, :64]))
    assert again["entropy"] == next(s["entropy"] for s in samples if (s["domain"], s["length"], s["index"]) == ("docs", 64, 1))
