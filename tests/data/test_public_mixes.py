"""The mixtures over public data, from rows in their schemas to batches. The data sets themselves cannot be had here."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from lit_long.config import StageConfig, UserError
from lit_long.config.compose import compose_data, parse_data_words
from lit_long.data.datamodule import LongContextDataModule
from lit_long.data.prepare import prepare
from lit_long.data.sampling import EpochSampler
from lit_long.data.token_store import open_store
from tests.data.public import PUBLIC, stand_ins

CONTEXT, PER_UPDATE, UPDATES = 128, 8192, 12


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return tmp_path_factory.mktemp("public")


def data_of(name, places, *words):
    def pretrained(init):
        raise AssertionError(init)

    said = parse_data_words([f"data={name}", *stand_ins(name, places), "data.corpus.vocab_size=400", *words], StageConfig)
    return compose_data(said, pretrained).data


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_mix_becomes_batches_of_its_shares(name, places, tmp_path):
    data = data_of(name, places)
    prepare(data.corpus, tmp_path, sources=data.sources, builtin=False, processes=1)
    store = open_store(tmp_path)
    module = LongContextDataModule(
        store,
        weights=data.weights,
        context=CONTEXT,
        tokens_per_update=PER_UPDATE,
        updates=UPDATES,
        mask_documents=data.mask_documents,
        packing=data.packing,
        sampling=data.sampling,
    )
    taken = dict.fromkeys(module.mixed, 0)
    for batch in module.train_dataloader():
        for row in batch.account:
            taken[module.mixed[int(row[0])]] += int(row[1])
    total = sum(taken.values())
    for source, weight in data.weights.items():
        share = weight / sum(data.weights.values())
        assert taken[source] / total == pytest.approx(share, abs=1.5 * CONTEXT / total + 0.01), source
    assert set(store.domains) == set(data.weights)


SHARES = {  # in %, as published; LLaMA's (Touvron et al. 2023a, Table 1), ProLong's (Gao et al. 2024, Table 5)
    "base_mix": {"cc": 67, "c4": 15, "github": 4.5, "wikipedia": 4.5, "books": 4.5, "arxiv": 2.5, "stackexchange": 2},
    "prolong": {"repositories": 30, "gutenberg": 30, "textbooks": 3, "fineweb_edu": 10, "fineweb": 10, "wikipedia": 4}
    | {"stackexchange": 4, "instructions": 3, "openwebmath": 3, "arxiv": 3},
}


@pytest.mark.parametrize("name", SHARES)
def test_a_public_mix_has_the_published_shares(name, places):
    data = data_of(name, places)
    assert data.weights == SHARES[name] and set(data.sources) == set(SHARES[name])


def test_each_source_holds_the_rows_of_its_own_set_only(places, tmp_path):
    data = data_of("base_mix", places)
    prepare(data.corpus, tmp_path, sources=data.sources, builtin=False, processes=1)
    store = open_store(tmp_path)
    for source, begins in {"cc": "CommonCrawl ", "arxiv": "ArXiv ", "books": "Book "}.items():
        documents = store.documents(source, "train")
        texts = [store.tokenizer.decode(documents[i][1:].tolist()) for i in range(len(documents))]
        assert 28 <= len(texts) <= 30 and all(text.startswith(begins) for text in texts)


def test_removing_and_upsampling_long_text_moves_no_weight():
    def read(name):
        with open(f"configs/data/{name}.yaml") as file:
            return yaml.safe_load(file)

    for name in ("no_long", "fu_upsample", "upsample_long"):
        assert "weights" not in read(name)


def test_long_documents_have_their_share_of_a_source(places, tmp_path):
    names = ("cc", "c4", "github", "wikipedia", "books", "arxiv", "stackexchange")
    data = data_of("fu_upsample", places, *(f"data.sampling.{name}.long_tokens=400" for name in names))
    prepare(data.corpus, tmp_path, sources=data.sources, builtin=False, processes=1)
    store = open_store(tmp_path)
    for name in names:
        lengths = np.asarray(store.documents(name, "train").lengths)
        assert lengths[lengths > 400].sum() / lengths.sum() > 0.8  # before
        sampler = EpochSampler(store.documents(name, "train"), name, 0, data.sampling[name])
        drawn = lengths[np.concatenate([sampler.epoch(number).block(0)[0] for number in range(60)])]
        assert drawn[drawn > 400].sum() / drawn.sum() == pytest.approx(0.7, abs=0.07)  # a single epoch has few long documents


@pytest.mark.parametrize(
    "text, message",
    [
        ("{question", "is no template"),
        ("{}", "names no field"),
        ("{body}", "has no field 'body'"),
        ("{id}", "field 'id' holds int instead of text"),
    ],
)
def test_a_template_that_does_not_fit(text, message, places, tmp_path):
    data = data_of("long_mix", places)
    source = data.sources["gutenberg"]
    source.text = text
    with pytest.raises(UserError, match=message) as caught:
        prepare(data.corpus, tmp_path, sources={"gutenberg": source}, builtin=False, processes=1)
    assert "data.sources.gutenberg" in str(caught.value)


def test_a_field_to_choose_by_that_is_not_there(places, tmp_path):
    data = data_of("base_mix", places)
    source = data.sources["cc"]
    source.where = {"meta.language": "en"}
    with pytest.raises(
        UserError, match=r"data\.sources\.cc.*has no field 'meta.language', but 'redpajama_set_name'.*data\.sources\.cc\.where"
    ):
        prepare(data.corpus, tmp_path, sources={"cc": source}, builtin=False, processes=1)


def test_options_that_stand_on_each_other_in_a_circle(tmp_path, monkeypatch):
    (tmp_path / "configs" / "data").mkdir(parents=True)
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / "configs" / "data" / f"{name}.yaml").write_text(f"option: {other}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the options a → b → a stand on each other"):
        compose_data(parse_data_words(["data=a"], StageConfig), lambda init: None)
