"""What a path holds: files of every name, compression and mixture; links, pointers and what is no text; what is seen of it at planning."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile

import numpy as np
import pyarrow
import pytest

from lit_long.config import InstructConfig, SourceConfig, UserError, read_command
from lit_long.data.paths import Listing, describe_left_out, files_below, list_files
from lit_long.data.readers import json_values
from lit_long.data.sources import find_files, resolve_source
from lit_long.stages.plan import make_plan
from tests.data.own import TEXTS, all_texts, rows, store_of, write_jsonl, write_parquet, write_text, write_zst

ARRAY = json.dumps([{"text": text} for text in TEXTS])
LINES = rows(TEXTS)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 12345\n"


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", LINES),
        ("a.JSONL", LINES),
        ("a.json", LINES),
        ("a.Json", LINES),
        ("a.ndjson", LINES),
        ("a.jsonlines", LINES),
        ("a.jl", LINES),
        ("part-00000", LINES),
        ("c4-train.00000-of-00001.json.gz", gzip.compress(LINES)),
        ("A.JSONL.GZ", gzip.compress(LINES)),
        ("a.jsonl", gzip.compress(LINES)),  # compressed, and its name does not say it
        ("a.jsonl.gz", LINES),  # and the other way round: some clients decompress while they download
        ("a.json.bz2", bz2.compress(LINES)),
        ("a.jsonl.XZ", lzma.compress(LINES)),
        ("a.json", ARRAY.encode()),
        ("a.json", json.dumps(json.loads(ARRAY), indent=2).encode()),
        ("a.json.gz", gzip.compress(ARRAY.encode())),
        ("a.jsonl", ARRAY.encode()),
        ("a.json", b"\xef\xbb\xbf \n" + ARRAY.encode()),
        ("a.json", "\n".join(json.dumps({"text": text}, indent=1) for text in TEXTS).encode()),
        ("a.json", b"\xef\xbb\xbf\r\n\n" + LINES.replace(b"\n", b"\r\n")),
    ],
)
def test_rows_under_any_name(name, content, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    for number, path in enumerate((tmp_path / "in", tmp_path / "in" / name, f"{tmp_path}/in/*")):
        store = store_of(tmp_path / f"store{number}", path)
        assert all_texts(store) == sorted(TEXTS) and store.sources["mine"]["kind"] == "jsonl"
        assert "files_left_out" not in store.sources["mine"]


def test_zstd_by_its_first_bytes(tmp_path):
    write_zst(tmp_path / "in.json")
    assert all_texts(store_of(tmp_path / "store", tmp_path / "in.json")) == sorted(TEXTS)


def test_a_zstd_window_of_2_gib_is_told_apart_from_damage(tmp_path):
    """A frame's header that asks for 2^31 bytes, as `zstd --long=31` writes it (RFC 8878, 3.1.1.1.2), and a raw block."""
    frame = b"\x28\xb5\x2f\xfd" + bytes([0x00, (31 - 10) << 3])
    block = LINES[: LINES.index(b"\n") + 1]
    content = frame + (len(block) << 3 | 1).to_bytes(3, "little") + block
    (tmp_path / "in.jsonl.zst").write_bytes(content)
    with pytest.raises(UserError, match=r"in\.jsonl\.zst: .*window of more than 128 MiB .*zstd -dc --long=31"):
        resolve_source("mine", SourceConfig(path=str(tmp_path / "in.jsonl.zst")))


def mixed(folder):
    folder.mkdir()
    write_jsonl(folder / "b.jsonl", TEXTS[:10])
    (folder / "c.json").write_text(json.dumps([{"text": text} for text in TEXTS[10:20]]))
    write_parquet(folder / "d.parquet", TEXTS[20:40])
    write_text(folder / "texts", TEXTS[40:])
    return folder


def test_a_mixed_folder_is_read_each_file_by_what_it_is_and_the_rest_is_named(tmp_path):
    folder = mixed(tmp_path / "in")
    bare = store_of(tmp_path / "bare", folder)
    assert all_texts(bare) == sorted(TEXTS) and bare.sources["mine"]["kind"] == "mixed"
    (folder / "README.md").write_text("About these data.")
    (folder / "LICENSE").write_text("Apache-2.0")
    (folder / "_SUCCESS").write_bytes(b"")
    (folder / ".gitattributes").write_text("*.parquet filter=lfs")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("[core]")
    (folder / "cover.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (folder / "weights.bin").write_bytes(np.arange(400, dtype="f4").tobytes())
    (folder / "dataset_infos.json").write_text(json.dumps({"default": {"features": {}}}, indent=1))
    store = store_of(tmp_path / "store", folder)
    assert all_texts(store) == sorted(TEXTS) and store.manifest["digest"] == bare.manifest["digest"]
    assert store.sources["mine"]["files_left_out"] == (
        "8 files left out: 2 hidden (.git, .gitattributes), 2 no text (cover.png, weights.bin), "
        "4 about the data (LICENSE, README.md, _SUCCESS, dataset_infos.json)"
    )
    again = resolve_source("mine", SourceConfig(path=str(folder)))
    assert resolve_source("mine", again) == again  # what a stage's process does


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
@pytest.mark.parametrize("pattern", ["", "/**/*"])
def test_of_one_kind_the_rest_is_named_too(kind, pattern, tmp_path):
    folder = tmp_path / "in"
    if kind == "text":
        write_text(folder)
    else:
        folder.mkdir()
        write_jsonl(folder / "a.json") if kind == "jsonl" else write_parquet(folder / "a.PARQUET")
        (folder / "README.md").write_text("About.")
    (folder / "cover.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    store = store_of(tmp_path / "store", f"{folder}{pattern}")
    about = "" if kind == "text" else "1 about the data (README.md), "
    count = "1 file" if kind == "text" else "2 files"
    assert all_texts(store) == sorted(TEXTS) and store.sources["mine"]["kind"] == kind
    assert store.sources["mine"]["files_left_out"] == f"{count} left out: {about}1 no text (cover.png)"


def test_a_folder_of_text_is_all_text(tmp_path):
    """Its README and its licence are texts like the others, as they always were."""
    folder = write_text(tmp_path / "in")
    (folder / "README.md").write_text("[1] begins with a bracket, {and} has others.")
    (folder / "b.md").write_text("[![badge](a.svg)](b)\n")
    (folder / "c.py").write_text("[1, 2]\n\n{}\n")
    (folder / "d.txt").write_text('{"so it begins", and is no JSON}')
    (folder / "e.txt").write_text('"I say!" \0 and a NUL')
    store = store_of(tmp_path / "store", folder)
    assert store.sources["mine"]["kind"] == "text" and store.sources["mine"]["read"] == 65


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.txt", LINES),
        ("a.md", ARRAY.encode()),
        ("a.txt", b'\n {"text" : "x"}'),
        ("a.txt", b'["one", "two"]'),
        ("a.txt", b"[[1, 2, 3], [4, 5]]"),
        ("a.txt.gz", gzip.compress(LINES)),
        ("a.txt", b'{"text": "cut o'),
    ],
)
def test_a_text_that_looks_like_json_is_no_prose(name, content, tmp_path):
    folder = write_text(tmp_path / "in")
    (folder / name).write_bytes(content)
    with pytest.raises(
        UserError, match=rf"{name}: looks like JSON.*data\.sources\.mine\.kind=jsonl.*data\.sources\.mine\.kind=text"
    ):
        resolve_source("mine", SourceConfig(path=str(folder)))
    assert resolve_source("mine", SourceConfig(path=str(folder), kind="text")).kind == "text"


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.json", "a.txt", "a", "cover.png"])
@pytest.mark.parametrize("settings", [{}, {"kind": "text"}, {"kind": "jsonl"}])
def test_pointers_of_git_lfs_name_the_remedy(name, settings, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(12):
        (tmp_path / "in" / f"{i}-{name}").write_bytes(POINTER)
    for path in (tmp_path / "in", tmp_path / "in" / f"0-{name}"):
        with pytest.raises(UserError, match=rf"0-{name}: is a pointer of Git LFS .*git lfs pull"):
            resolve_source("mine", SourceConfig(path=str(path), **settings))
    with pytest.raises(UserError, match="git lfs pull"):
        resolve_source("mine", SourceConfig(path=f"hf:{tmp_path}/in"))


def test_archives_and_arrow_files_are_not_passed_over(tmp_path):
    folder = write_text(tmp_path / "in")
    with tarfile.open(folder / "more.tar.gz", "w:gz") as archive:
        archive.add(folder / "0")
    with pytest.raises(UserError, match=r"more\.tar\.gz: is an archive.*Unpack it"):
        resolve_source("mine", SourceConfig(path=str(folder)))
    (folder / "more.tar.gz").unlink()
    with pyarrow.OSFile(str(folder / "a.arrow"), "wb") as file, pyarrow.ipc.new_file(file, pyarrow.schema([])):
        pass
    with pytest.raises(UserError, match=rf"a\.arrow: is an Arrow file.*path=hf:{folder}"):
        resolve_source("mine", SourceConfig(path=str(folder)))


def test_linked_folders_are_followed_and_loops_are_not(tmp_path):
    write_text(tmp_path / "elsewhere", TEXTS[12:24])
    folder = write_text(tmp_path / "in", TEXTS[:12])
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "0" / "up").symlink_to("..")
    (folder / "0" / "above").symlink_to(tmp_path)
    for number, path in enumerate((folder, f"{folder}/**/*.txt")):
        store = store_of(tmp_path / f"store{number}", path)
        assert all_texts(store) == sorted(TEXTS[:24]) and store.sources["mine"]["read"] == 24
    listing = list_files("data.sources.mine", str(folder))
    assert describe_left_out(listing.left_out) == "2 files left out: 2 a link back to a folder that it lies in (0/above, 0/up)"
    links = tmp_path / "links"  # as in the hub's cache
    links.mkdir()
    for i in range(24):
        source = tmp_path / ("in" if i < 12 else "elsewhere") / "0" / f"{i % 12:03}.txt"
        (links / f"{i:03}.txt").symlink_to(source)
    assert all_texts(store_of(tmp_path / "files", links)) == sorted(TEXTS[:24])


@pytest.mark.parametrize("target", ["gone.txt", "gone/", "itself"])
@pytest.mark.parametrize("pattern", ["", "/*", "/**/*.txt", "/itself"])
def test_a_link_that_leads_nowhere_is_an_error(target, pattern, tmp_path):
    folder = write_text(tmp_path / "in")
    name = "itself.txt" if pattern.endswith(".txt") else "itself"
    (folder / name).symlink_to(name if target == "itself" else target)
    with pytest.raises(UserError, match=rf"{name}: is a link to .*, which is not there"):
        resolve_source("mine", SourceConfig(path=f"{folder}{pattern}"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_column_named_with_a_dot(name, tmp_path):
    content = [{"doc.text": text, "doc": {"id": str(i), "b.c": str(i % 2)}} for i, text in enumerate(TEXTS)]
    if name == "a.jsonl":
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), tmp_path / name)
    assert all_texts(store_of(tmp_path / "one", tmp_path / name, text="doc.text")) == sorted(TEXTS)
    templated = store_of(tmp_path / "two", tmp_path / name, text="{doc.text} {doc.id}", where={"doc.b.c": "1"})
    assert all_texts(templated) == sorted(f"{text} {i}" for i, text in enumerate(TEXTS) if i % 2)
    with pytest.raises(UserError, match=r"has no (field|column) 'doc\.body', but "):
        resolve_source("mine", SourceConfig(path=str(tmp_path / name), text="doc.body"))


@pytest.mark.parametrize(
    "write, settings, message",
    [
        (
            write_jsonl,
            {"text": "body"},
            r"line 1 \(byte 0\): has no field 'body', but 'id', 'text'. Set data\.sources\.mine\.text",
        ),
        (write_parquet, {"text": "body"}, r"has no column 'body', but 'id', 'text'"),
        (write_jsonl, {"where": {"lang": "en"}}, r"has no field 'lang'"),
        (lambda file: file.write_bytes(b"no json\n" + LINES), {"kind": "jsonl"}, r"line 1 .*is not valid JSON"),
        (lambda file: file.write_bytes(LINES.replace(b'"text"', b'"body"')), {}, r"has no field 'text', but 'id', 'body'"),
        (lambda file: file.write_text('[{"text": "cut o'), {}, r"row 0: is not valid JSON: Unterminated"),
        (lambda file: file.write_text('[{"text": 3}]'), {}, r"row 0: field 'text' holds int"),
        (lambda file: file.write_text('["a"]'), {"kind": "jsonl"}, r"must hold an object"),
        (lambda file: file.write_bytes(gzip.compress(LINES)[:200]), {}, r"is damaged or was cut off"),
        (lambda file: file.write_bytes(lzma.compress(LINES)[:200]), {}, r"is damaged or was cut off"),
        (lambda file: file.write_bytes(bz2.compress(LINES)[:200]), {}, r"is damaged or was cut off"),
        (lambda file: file.write_bytes(b"caf\xe9 " * 10), {}, r"byte 3 \(0xe9\) is not utf-8 text"),
        (lambda file: file.write_bytes(b"%PDF-1.7\n"), {}, r"is no utf-8 text"),
        (
            lambda file: file.write_bytes(LINES.decode().encode("utf-16")),
            {"encoding": "utf-16"},
            "JSON lines in utf-16 cannot be cut at line ends",
        ),
        (write_jsonl, {"instruct": {"schema": "messages"}}, r"has no field 'messages'"),
        (
            lambda file: file.write_bytes(b'{"lang": "fr", "body": "a"}\n{"lang": "en", "body": "b"}\n'),
            {"where": {"lang": "en"}},  # which leaves the first row out
            r"line 2 .*has no field 'text', but 'lang', 'body'",
        ),
        (
            lambda file: file.write_bytes(b'{"messages": []}\n{"messages": [{"rolle": "user", "content": "a"}]}\n'),
            {"instruct": {"schema": "messages"}},
            r"line 2 .*'rolle'",
        ),
    ],
)
def test_what_cannot_be_read_is_found_at_planning(write, settings, message, tmp_path):
    """In the first file or in the last; between them it is found when the data are prepared."""
    settings = settings | ({"instruct": InstructConfig(**settings["instruct"])} if "instruct" in settings else {})
    write(tmp_path / "b")
    with pytest.raises(UserError, match=message):
        resolve_source("mine", SourceConfig(path=str(tmp_path / "b"), **settings))


@pytest.mark.parametrize("name", ["bücher", "my source", "1st", "a/b"])
def test_names_that_no_metric_can_have(name, tmp_path):
    write_jsonl(tmp_path / "in.jsonl")
    with pytest.raises(
        UserError, match=f"data.sources.{name}: a source's name begins with a letter and is made of ASCII letters"
    ):
        resolve_source(name, SourceConfig(path=str(tmp_path / "in.jsonl")))


def test_the_last_file_of_each_kind_is_looked_at_too(tmp_path):
    folder = mixed(tmp_path / "in")
    write_parquet(folder / "z.parquet", field="body")
    with pytest.raises(UserError, match=r"z\.parquet: has no column 'text'"):
        resolve_source("mine", SourceConfig(path=str(folder)))


def test_data_come_first_and_every_store_of_a_trial_is_in_the_plan(tmp_path):
    """The second store is that of a later stage; before, nothing prepared it, and what was wrong with it came after the base."""
    for name in "ab":
        write_jsonl(tmp_path / f"{name}.jsonl", [f"{name}: {text}" for text in TEXTS])
    (tmp_path / "two.yaml").write_text(
        f"""
model: mini
data: &a
  corpus: {{tokenizer: {os.getcwd()}/experiments/bases/mini-s0}}
  sources: {{a: {{path: {tmp_path}/a.jsonl}}}}
trainer: {{option: cpu}}
stages:
  base: {{context: 64, tokens: 4k, tokens_per_update: 1k}}
  extend: {{parent: base, context: 128, tokens: 4k, tokens_per_update: 1k, data: {{sources: {{b: {{path: {tmp_path}/b.jsonl}}}}}}}}
  evaluate: {{kind: evaluate, parent: extend}}
evaluation: {{lengths: [64], domains: [a]}}
report: {{rows: evaluate, reference: evaluate}}
"""
    )
    plan = make_plan(read_command([f"experiment={tmp_path}/two.yaml", f"root={tmp_path}"]))
    assert [plan.label(stage) for stage in plan.stages] == ["corpus", "corpus_extend", "base", "extend", "evaluate"]
    folders = {stage.folder for stage in plan.stages}
    assert all(folder in folders for stage in plan.stages for folder in stage.inputs)
    write_jsonl(tmp_path / "b.jsonl", field="body")
    with pytest.raises(UserError, match=r"b\.jsonl, line 1 .*has no field 'text'"):
        make_plan(read_command([f"experiment={tmp_path}/two.yaml", f"root={tmp_path}"]))


@pytest.mark.parametrize("size", [1, 7, 64, 2**20])
def test_values_of_an_array_however_it_is_read(size, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_long.data.readers._READ_BYTES", size)
    values = [{"text": 'a "quoted" \\ brace } and \u2028 é', "n": [1, {"a": None}]}, {}, {"text": "x" * 300}]
    for content in (json.dumps(values), json.dumps(values, indent=3, ensure_ascii=False), "\n".join(map(json.dumps, values))):
        assert list(json_values(io.BytesIO(content.encode()), "utf-8")) == values
    for broken in ("[{}", "[{}, {", "[{}] x", '[{"a": tru'):
        with pytest.raises(ValueError):
            list(json_values(io.BytesIO(broken.encode()), "utf-8"))


def test_a_folder_that_cannot_be_entered(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may enter any folder")
    (tmp_path / "in").mkdir(mode=0)
    with pytest.raises(UserError, match="cannot be read"):
        files_below("data.sources.mine", Listing(tmp_path))


def test_names_do_not_depend_on_how_the_folder_is_written(tmp_path, monkeypatch):
    folder = mixed(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    names = {
        find_files("mine", resolve_source("mine", SourceConfig(path=path))).names for path in (str(folder), "in", "in/", "./in")
    }
    assert len(names) == 1
