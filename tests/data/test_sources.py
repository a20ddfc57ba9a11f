from __future__ import annotations

import gzip
import json
import os

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_long.config import SourceConfig, UserError
from lit_long.data import hub, sources
from lit_long.data.inspect import describe_left_out
from lit_long.data.prepare import prepare
from lit_long.data.readers import read_part
from lit_long.data.sources import find_files, list_parts, resolve_source
from lit_long.data.store_tokenizer import sample_texts
from lit_long.data.token_store import open_store
from tests.data.own import (
    CORPUS,
    TEXTS,
    all_texts,
    decoded,
    rows,
    store_of,
    write_gz,
    write_jsonl,
    write_parquet,
    write_text,
    write_zst,
)


def write_two_files(folder):
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", TEXTS[:25])
    write_gz(folder / "b.jsonl.gz", TEXTS[25:])
    (folder / "README.md").write_text("No document.")
    return f"{folder}/*.jsonl*"


def write_saved(folder):
    import datasets

    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(folder)
    return f"hf:{folder}"


def write_loadable(folder):
    folder.mkdir()
    write_parquet(folder / "train-00000.parquet")
    return f"hf:{folder}"


KINDS = {
    "text": lambda tmp: write_text(tmp / "in"),
    "jsonl": lambda tmp: write_jsonl(tmp / "in.jsonl"),
    "gz": lambda tmp: write_gz(tmp / "in.jsonl.gz"),
    "zst": lambda tmp: write_zst(tmp / "in.jsonl.zst"),
    "glob": lambda tmp: write_two_files(tmp / "in"),
    "parquet": lambda tmp: write_parquet(tmp / "in.parquet"),
    "saved": lambda tmp: write_saved(tmp / "in"),
    "loadable": lambda tmp: write_loadable(tmp / "in"),
}


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back_to_the_letter(kind, tmp_path):
    store = store_of(tmp_path / "store", KINDS[kind](tmp_path))
    assert all_texts(store) == sorted(TEXTS)
    account = store.sources["mine"]
    assert account["read"] == 60 and account["duplicates"] == 0 and store.held_out_domains == ["mine"]


def test_streaming_reads_the_same(tmp_path):
    place = write_loadable(tmp_path / "in")
    store = store_of(tmp_path / "store", place, streaming=True)
    assert all_texts(store) == sorted(TEXTS)


def test_a_data_set_is_read_in_ranges_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "PART_ROWS", 13)
    store = store_of(tmp_path / "store", write_saved(tmp_path / "in"))
    assert all_texts(store) == sorted(TEXTS) and len(store.sources["mine"]["shards"]) == 5


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(1, 4000))
def test_however_the_reading_is_cut_every_document_is_read_once(kind, size, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    source = resolve_source("mine", SourceConfig(path=str(KINDS[kind](folder))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PART_BYTES", size)
        found = [text.text for part in list_parts("mine", source) for text in read_part("data.sources.mine", source, part)]
    assert found == TEXTS


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(max_size=30), min_size=1, max_size=12),
    size=st.integers(1, 60),
    end=st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
    last=st.booleans(),
)
def test_json_lines_of_any_text_cut_anywhere(texts, size, end, last, tmp_path_factory):
    file = tmp_path_factory.mktemp("cut") / "in.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts]
    file.write_bytes(end.join(lines) + (end if last else b""))
    source = resolve_source("mine", SourceConfig(path=str(file)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PART_BYTES", size)
        found = [text.text for part in list_parts("mine", source) for text in read_part("data.sources.mine", source, part)]
    assert found == texts


def test_names_say_where_a_document_is(tmp_path):
    texts = store_of(tmp_path / "one", write_text(tmp_path / "in"))
    documents = texts.documents("mine", "train")
    for i in range(len(documents)):
        text = (tmp_path / "in" / documents.name(i)).read_text()
        assert texts.tokenizer.decode(documents[i].tolist()) == text
    lines = store_of(tmp_path / "two", write_jsonl(tmp_path / "in.jsonl"))
    documents = lines.documents("mine", "train")
    file, place = documents.name(5).split(":")
    with (tmp_path / file).open("rb") as opened:
        opened.seek(int(place))
        assert json.loads(opened.readline())["text"] == lines.tokenizer.decode(documents[5].tolist())


def test_filters_duplicates_and_sampling_are_accounted_for(tmp_path):
    file = write_jsonl(tmp_path / "in.jsonl", ["", "short", *TEXTS, *TEXTS[10:20], "x" * 5000])
    store = store_of(tmp_path / "store", file, min_characters=6, max_characters=4000)
    account = store.sources["mine"]
    assert [account[name] for name in ("read", "too_short", "too_long", "duplicates")] == [73, 2, 1, 10]
    assert all_texts(store) == sorted(TEXTS)
    assert len(all_texts(store_of(tmp_path / "twice", file, min_characters=6, max_characters=4000, dedup=False))) == 70
    half = store_of(tmp_path / "half", file, min_characters=6, max_characters=4000, keep=0.5)
    assert 15 < len(all_texts(half)) < 45 and set(all_texts(half)) < set(TEXTS)
    assert half.sources["mine"]["not_kept"] + len(all_texts(half)) + half.sources["mine"]["duplicates"] == 70


@pytest.mark.parametrize("share, expected", [(0.0, 0), (1e-9, 1), (0.5, None)])
def test_whole_documents_are_held_out_by_their_content(share, expected, tmp_path):
    one = store_of(tmp_path / "one", write_jsonl(tmp_path / "in.jsonl"), validation_share=share)
    held = decoded(one, "validation")
    assert len(held) == expected if expected is not None else 18 < len(held) < 42
    assert not set(held) & set(decoded(one, "train")) and one.held_out_domains == (["mine"] if share else [])
    # The same documents whatever the order and the kind of file.
    other = store_of(tmp_path / "two", write_parquet(tmp_path / "in.parquet", TEXTS[::-1]), validation_share=share)
    assert sorted(decoded(other, "validation")) == sorted(held)


def test_what_one_source_holds_out_no_other_trains_on(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    write_jsonl(tmp_path / "b.jsonl", TEXTS + [f"Another one, number {i}." for i in range(40)])
    both = {"a": SourceConfig(f"{tmp_path}/a.jsonl", validation_share=0.5), "b": SourceConfig(f"{tmp_path}/b.jsonl")}
    prepare(CORPUS, tmp_path / "store", sources=both, builtin=False)
    store = open_store(tmp_path / "store")
    assert not set(decoded(store, "validation", "a")) & set(decoded(store, "train", "b"))
    held = len(decoded(store, "validation", "a"))
    assert 0 < store.sources["b"]["held_out_elsewhere"] <= held


def test_rows_left_out_are_accounted_for(tmp_path):
    rows = [{"text": text, "lang": ("en", "fr", "de")[i % 3]} for i, text in enumerate(TEXTS)]
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    account = store_of(tmp_path / "store", file, where={"lang": "en"}).sources["mine"]
    assert (account["read"], account["where"]) == (60, 40) and "left out: 40 left out by where" in describe_left_out(account)
    with pytest.raises(UserError, match=r"none of the 60 documents in .* is left \(60 left out by where\)\. Change where"):
        store_of(tmp_path / "none", file, where={"lang": "EN"})


def test_a_text_on_both_sides_of_the_split_is_held_out_once(tmp_path):
    """By authors, of whom each has a text that all have."""
    (tmp_path / "in").mkdir()
    for number in range(12):
        (tmp_path / "in" / f"Author {number} - Common.txt").write_text("The same preface, by nobody in particular.")
        (tmp_path / "in" / f"Author {number} - Own.txt").write_text(TEXTS[number])
    store = store_of(tmp_path / "store", tmp_path / "in", split_by="(.*) - ", validation_share=0.4)
    held, train = decoded(store, "validation"), decoded(store, "train")
    assert held.count("The same preface, by nobody in particular.") == 1 and sorted(held + train) == sorted({*held, *train})
    assert {*TEXTS[:12]} < {*held, *train} and 1 < len(held) < 13
    assert (store.sources["mine"]["duplicates"], store.sources["mine"]["held_out_elsewhere"]) == (11, 0)


def test_the_split_is_by_author(tmp_path):
    """All books of an author lie on one side, whatever their texts; of the tokenizer's sample, too."""
    authors = {f"Author {number}": TEXTS[number * 4 : number * 4 + 4] for number in range(12)}
    (tmp_path / "in").mkdir()
    for author, texts in authors.items():
        for number, text in enumerate(texts):
            (tmp_path / "in" / f"{author} - {number}.txt").write_text(text)
    settings = {"split_by": "(.*) - ", "validation_share": 0.4, "dedup": False}
    store = store_of(tmp_path / "store", tmp_path / "in", **settings)
    train, held = decoded(store, "train"), decoded(store, "validation")
    sides = {
        author: {text in held for text in texts} | {text not in train for text in texts} for author, texts in authors.items()
    }
    assert all(len(each) == 1 for each in sides.values()) and {each.pop() for each in sides.values()} == {False, True}
    assert sorted(train + held) == sorted(text for texts in authors.values() for text in texts)
    source = resolve_source("mine", SourceConfig(path=str(tmp_path / "in"), **settings))
    assert set(sample_texts({"mine": source}, 10**6)) == set(train)
    assert store_of(tmp_path / "one", tmp_path / "in", split_by="(.*) - ", validation_share=1e-9).held_out_domains == ["mine"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split_by": "by (.*)"}, r"data\.sources\.mine: split_by=by \(\.\*\) is not found in the file's name 0/000\.txt"),
        ({"split_by": "("}, r"split_by=\( is no pattern: missing \)"),
        ({"split_by": r"\.txt"}, "finds the same in all names, so all documents would be held out"),
    ],
)
def test_a_pattern_that_splits_nothing(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        resolve_source("mine", SourceConfig(path=str(write_text(tmp_path / "in")), **settings))
    with pytest.raises(UserError, match=r"split_by is for text files, whose names it looks at; .*in\.jsonl holds jsonl"):
        resolve_source("mine", SourceConfig(path=str(write_jsonl(tmp_path / "in.jsonl")), **settings))


def test_content_is_names_and_bytes_not_place(tmp_path):
    one = resolve_source("mine", SourceConfig(path=str(write_text(tmp_path / "a" / "in"))))
    two = resolve_source("mine", SourceConfig(path=str(write_text(tmp_path / "b"))))
    assert one.content == two.content and one.kind == "text" and os.path.isabs(one.path)
    (tmp_path / "b" / "0" / "000.txt").write_text("changed")
    changed = resolve_source("mine", SourceConfig(path=str(tmp_path / "b")))
    assert changed.content != one.content
    with pytest.raises(UserError, match=r"data\.sources\.mine: what is in .*/b now is not what was planned with"):
        resolve_source("mine", SourceConfig(path=str(tmp_path / "b"), content=one.content))


def bad_line(line, before=TEXTS[:3]):
    return lambda file: file.write_bytes(rows(before) + line)


def cut_off(write, count):
    def cut(file):
        write(file)
        file.write_bytes(file.read_bytes()[:-count])

    return cut


def flip(write):
    def flipped(file):
        write(file)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)

    return flipped


@pytest.mark.parametrize(
    "name, write, message",
    [
        ("in.jsonl", bad_line(b'{"text": "cut o'), r"in\.jsonl, line 4 \(byte \d+\): is not valid JSON: .*cut off"),
        ("in.jsonl", bad_line(b'{"body": "x"}\n'), r"line 4 .*has no field 'text', but 'body'. Set data\.sources\.mine\.text"),
        ("in.jsonl", bad_line(b'{"text": null}\n'), r"line 4 .*holds nothing \(null\) instead of text"),
        ("in.jsonl", bad_line(b'{"text": 3}\n'), r"line 4 .*holds int instead of text"),
        ("in.jsonl", bad_line(b'["text"]\n'), r"line 4 .*must hold an object .*not list"),
        ("in.jsonl", bad_line(b'{"text": "caf\xe9"}\n'), r"line 4 .*byte 13 \(0xe9\) is not utf-8 .*encoding=latin-1"),
        ("in.jsonl", bad_line(b'{"text": "\\ud800"}\n'), r"line 4 .*half of a surrogate pair"),
        ("in.jsonl", bad_line(b"[" * 200_000 + b"\n"), r"line 4 .*nested too deeply"),
        ("in.jsonl.gz", cut_off(write_gz, 60), r"in\.jsonl\.gz: is damaged or was cut off"),
        ("in.jsonl.gz", flip(write_gz), r"in\.jsonl\.gz.*"),
        ("in.jsonl.zst", cut_off(write_zst, 60), r"in\.jsonl\.zst: cannot be read: Truncated"),
        ("in.jsonl.gz", lambda file: file.write_bytes(b"no gzip"), r"in\.jsonl\.gz, line 1 .*is not valid JSON"),
        ("in.parquet", cut_off(write_parquet, 60), r"in\.parquet: cannot be read as parquet"),
        ("in.parquet", flip(write_parquet), r"in\.parquet: cannot be read as parquet"),
        ("in.parquet", lambda file: write_parquet(file, field="body"), r"in\.parquet: has no column 'text', but 'id', 'body'"),
        ("in.parquet", lambda file: write_parquet(file, [*TEXTS[:9], None]), r"in\.parquet, row 9: .*nothing \(null\)"),
        ("in.txt", lambda file: file.write_bytes(b"one\ntwo\xff"), r"in\.txt, line 2: byte 7 \(0xff\) is not utf-8"),
        ("in.jsonl", lambda file: file.write_bytes(b""), r"data\.sources\.mine is empty: there is no document in"),
        ("in.jsonl", lambda file: write_jsonl(file, ["", ""]), r"none of the 2 documents .* is left \(2 too short\)"),
        ("in.jsonl", lambda file: write_jsonl(file, TEXTS[:1]), r"all its 1 documents are held out"),
    ],
)
def test_bad_input_is_named_and_nothing_counts_as_prepared(name, write, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(UserError, match=message):
        store_of(tmp_path / "store", tmp_path / name)
    assert not (tmp_path / "store" / "manifest.json").exists()


def test_other_encodings_and_byte_order_marks(tmp_path):
    (tmp_path / "a.txt").write_bytes("naïve café".encode("latin-1"))
    (tmp_path / "b.txt").write_bytes("une crêpe".encode("latin-1"))
    assert all_texts(store_of(tmp_path / "one", tmp_path / "*.txt", encoding="latin-1")) == ["naïve café", "une crêpe"]
    (tmp_path / "in.jsonl").write_bytes(b"\xef\xbb\xbf" + rows(TEXTS))
    assert all_texts(store_of(tmp_path / "two", tmp_path / "in.jsonl")) == sorted(TEXTS)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"path": ""}, r"data\.sources\.mine\.path is missing"),
        ({"path": "nowhere"}, r"path=nowhere: there is no such file or folder"),
        ({"path": "nothing*.txt"}, r"path=nothing\*\.txt: there is no file"),
        ({"kind": "jsnl"}, r"kind: unknown kind 'jsnl'; did you mean 'jsonl'"),
        ({"min_characters": 10, "max_characters": 5}, r"leave no document"),
        ({"encoding": "utf-9"}, r"no encoding 'utf-9'"),
    ],
)
def test_settings_that_make_no_sense(changes, message, tmp_path):
    place = write_jsonl(tmp_path / "in.jsonl")
    with pytest.raises(UserError, match=message):
        resolve_source("mine", SourceConfig(**{"path": str(place)} | changes))


def test_of_a_folder_the_files_of_a_kind_and_a_saved_data_set_asks_what_is_meant(tmp_path):
    write_two_files(tmp_path / "in")
    found = find_files("mine", resolve_source("mine", SourceConfig(path=str(tmp_path / "in"), kind="jsonl")))
    assert found.names == ("a.jsonl", "b.jsonl.gz")
    saved = write_saved(tmp_path / "saved")
    with pytest.raises(UserError, match="write path=hf:"):
        resolve_source("mine", SourceConfig(path=saved.removeprefix("hf:")))


def test_data_sets_that_cannot_be_loaded(tmp_path):
    place = write_loadable(tmp_path / "in")
    with pytest.raises(UserError, match="cannot load split 'test'"):
        store_of(tmp_path / "one", place, split="test")
    with pytest.raises(UserError, match="has no field 'body', but 'id', 'text'"):
        store_of(tmp_path / "two", place, text="body")


def test_lengths_are_views_and_the_vocabulary_chooses_the_type(tmp_path):
    store = store_of(tmp_path / "store", write_jsonl(tmp_path / "in.jsonl"))
    documents = store.documents("mine", "train")
    assert isinstance(documents.lengths.base, np.memmap | np.ndarray) and documents[3].dtype == np.uint16
    assert documents.token_count == documents.lengths.sum() == store.manifest["domains"]["mine"]["train"]["tokens"]
    with pytest.raises(IndexError):
        documents[len(documents)]


def test_rows_of_parquet_in_nested_folders(tmp_path):
    for i in range(3):
        (tmp_path / "in" / f"year={i}").mkdir(parents=True)
        write_parquet(tmp_path / "in" / f"year={i}" / "part.parquet", TEXTS[i::3])
    (tmp_path / "in" / "_SUCCESS").write_bytes(b"")
    assert pyarrow.parquet.ParquetFile(tmp_path / "in" / "year=0" / "part.parquet").metadata.num_row_groups == 3
    store = store_of(tmp_path / "store", tmp_path / "in", kind="parquet")
    assert all_texts(store) == sorted(TEXTS)


def test_several_gzip_members_are_all_read(tmp_path):
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(rows(TEXTS[:30])) + gzip.compress(rows(TEXTS[30:])))
    assert all_texts(store_of(tmp_path / "store", tmp_path / "in.jsonl.gz")) == sorted(TEXTS)
