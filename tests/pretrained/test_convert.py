"""Foreign weights: converted once, bit by bit, into a folder that transformers loads, too. What each format says: test_gguf, test_meta, test_huggingface."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_long.config import UserError
from lit_long.export import main as export_command
from lit_long.pretrained import convert, export, open_pretrained
from lit_long.pretrained.convert import Converted
from tests.integration.mini import REPOSITORY, run, run_here
from tests.pretrained import gguf_files, test_huggingface, test_meta
from tests.pretrained.llamas import assert_same, edit_config, random_llama, read, save
from tests.pretrained.test_families import random_model
from tests.tokenizers.texts import trained


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of this test's own; the folder of its conversions."""
    monkeypatch.setenv("LIT_LONG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "converted"


def conversions(cache: Path) -> list[str]:
    return [file.name for file in cache.iterdir() if not file.name.startswith(".")] if cache.is_dir() else []


def leftovers(cache: Path) -> list[str]:
    return [file.name for file in cache.iterdir() if file.name.endswith(".writing")]


SCALED = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
SCALED |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 64}


def bin_folder(folder: Path, model=None, **options) -> Path:
    test_huggingface.to_bin(save(model or random_llama(vocab=600, tied=True), folder), **options)
    PreTrainedTokenizerFast(tokenizer_object=trained("llama-bpe", ("<s>",)), bos_token="<s>").save_pretrained(folder)
    return folder


def meta_folder(folder: Path, **options) -> Path:
    folder.mkdir()
    return test_meta.write(
        random_llama(rope=SCALED, heads=4, kv=4).bfloat16(), folder, rope_theta=5e5, use_scaled_rope=True, **options
    )


def gguf_file(file: Path, kind: str, **options) -> Path:
    return gguf_files.write(random_llama(vocab=600, head_dim=32), file, kind, words=gguf_files.tokens_of(600), **options)


SOURCES = {
    "gguf, quantised": lambda folder: gguf_file(folder / "x.gguf", "Q4_0"),
    "gguf, two types": lambda folder: gguf_file(folder / "x.gguf", "BF16"),
    "gguf, linear": lambda folder: gguf_file(folder / "x.gguf", "F16", rope__scaling__type="linear", rope__scaling__factor=4.0),
    "gguf, yarn": lambda folder: gguf_file(folder / "x.gguf", "F16", **YARN),
    "gguf, divisors": lambda folder: gguf_file(folder / "x.gguf", "F32", tensors={"rope_freqs.weight": torch.arange(1.0, 17.0)}),
    "bin": lambda folder: bin_folder(folder / "bin"),
    "bin, three files": lambda folder: bin_folder(folder / "bin", shards=3),
    "bin, of before torch 1.6": lambda folder: bin_folder(folder / "bin", new=False),
    "bin, fused": lambda folder: bin_folder(folder / "bin", random_model("phi3", vocab_size=600, sliding_window=12)),
    "meta": lambda folder: meta_folder(folder / "meta"),
    "meta, two parts": lambda folder: meta_folder(folder / "meta", parts=2),
}


@pytest.mark.parametrize("part", [60_000, 5 * 10**9])
@pytest.mark.parametrize("name", SOURCES)
def test_bits_stay_whatever_the_format(tmp_path, cache, monkeypatch, name, part):
    """What is read after conversion is what the source's own files hold: names, precision, bits. The folder describes the same model."""
    monkeypatch.setattr(export, "PART_BYTES", part)
    pretrained = open_pretrained(str(SOURCES[name](tmp_path)))
    expected, found = dict(pretrained.source.tensors()), dict(pretrained.tensors())
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype and found[key].equal(tensor), key
    [folder] = conversions(cache)
    again = open_pretrained(str(cache / folder))
    assert (again.shape, again.layers) == (pretrained.shape, pretrained.layers)
    assert (cache / folder / "model.safetensors.index.json").exists() == (part < 10**6)
    assert again.position.keys() == pretrained.position.keys()
    assert_same(
        AutoModelForCausalLM.from_pretrained(cache / folder, dtype=torch.float32), read(pretrained), 40
    )  # within every original context
    assert str(pretrained.path) in (cache / folder / "README.md").read_text()


def test_smollm2_is_converted_bit_by_bit(smollm2):
    expected = dict(smollm2.source.tensors())
    for name, tensor in smollm2.tensors():
        assert tensor.dtype == torch.float32 and tensor.equal(expected.pop(name)), name
    assert not expected


def test_smollm2_for_transformers(smollm2):
    """The folder has the tokenizer, too."""
    dict(smollm2.tensors())
    tokenizer = AutoTokenizer.from_pretrained(smollm2.folder)
    text = "The tide had gone out, 12 times."
    assert (
        tokenizer(text).input_ids
        == smollm2.tokenizer().encode(text)
        == open_pretrained(str(smollm2.folder)).tokenizer().encode(text)
    )


def test_once_and_by_content(tmp_path, cache, capsys):
    """The same file elsewhere is not converted again; other content, or another tokenizer beside it, is. One line says it."""
    file = gguf_file(tmp_path / "x.gguf", "Q4_0")
    weights = open_pretrained(str(file))
    assert str(file) in weights.pending and str(weights.folder) in weights.pending and not conversions(cache)
    dict(weights.tensors())
    assert capsys.readouterr().err.splitlines() == [f"{file}: is converted once, into {weights.folder} (0.0 GB) …"]
    shutil.move(file, tmp_path / "y.gguf")
    moved = open_pretrained(str(tmp_path / "y.gguf"))
    dict(moved.tensors())
    assert (moved.folder, moved.pending, moved.digest) == (weights.folder, "", weights.digest) and not capsys.readouterr().err
    dict(open_pretrained(str(gguf_file(tmp_path / "x.gguf", "Q8_0"))).tensors())
    assert len(conversions(cache)) == 2
    folder = bin_folder(tmp_path / "bin")
    for count in (3, 4):
        dict(open_pretrained(str(folder)).tensors())
        assert len(conversions(cache)) == count
        edit_config(folder, lambda config: config | {"_name_or_path": "a remark"})
        dict(open_pretrained(str(folder)).tensors())
        assert len(conversions(cache)) == count
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": "another"}))


def test_shape_encoder_and_tokenizer_need_no_conversion(tmp_path, cache):
    """Planning asks for them, and preparing data for the tokenizer."""
    weights = open_pretrained(str(gguf_file(tmp_path / "x.gguf", "Q4_0")))
    assert (
        weights.shape.d_model == 128 and weights.position["scheme"] == "rope" and weights.tokenizer().bos == 1 and weights.digest
    )
    assert not cache.exists()


def test_safetensors_come_first(tmp_path, cache):
    """Where a repository has both, nothing is converted."""
    folder = save(random_llama(), tmp_path / "both")
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    read(folder)
    assert not cache.exists()


def test_a_tokenizer_that_cannot_be_read_is_no_obstacle(tmp_path, cache):
    """As of Llama 3's own folders, whose tokenizer.model is not SentencePiece's."""
    folder = meta_folder(tmp_path / "meta")
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\n")
    read(folder)
    with pytest.raises(UserError, match="not a SentencePiece model"):
        open_pretrained(str(folder)).tokenizer()
    assert not list((cache / conversions(cache)[0]).glob("tokenizer*"))


CONVERT = """
import sys, time
from lit_long.pretrained import open_pretrained
source = open_pretrained(sys.argv[1])
tensors = source.source.tensors
def slowly():
    print("reads the source", file=sys.stderr)
    for entry in tensors():
        time.sleep(float(sys.argv[2]))
        yield entry
source.source.tensors = slowly
print(sum(tensor.double().sum().item() for _, tensor in source.tensors()))
"""


def start(file: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CONVERT, file, str(seconds)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_come_at_once_convert_it_once(tmp_path, cache):
    """As the ranks of a job: one converts, the others wait for it, all read the same."""
    file = gguf_file(tmp_path / "x.gguf", "Q4_0")
    found = [process.communicate(timeout=120) for process in [start(file, 0.05) for _ in range(2)]]
    assert [sum(text in errors for _, errors in found) for text in ("is converted once", "reads the source")] == [1, 1], found
    assert len({out for out, _ in found}) == 1 and found[0][0].strip()
    assert len(conversions(cache)) == 1 and not leftovers(cache)


@pytest.mark.parametrize("locks", [True, False])
def test_whoever_is_killed_leaves_nothing_that_is_read(tmp_path, cache, monkeypatch, locks):
    """The next one converts, and clears away what was left; also where the file system has no locks."""
    file = gguf_file(tmp_path / "x.gguf", "Q4_0")
    process = start(file, 0.2)
    while not (cache.is_dir() and leftovers(cache)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert leftovers(cache) and not conversions(cache)
    if not locks:

        def refuse(*_):
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr("fcntl.flock", refuse)
    weights = open_pretrained(str(file))
    expected = dict(weights.source.tensors())
    assert all(tensor.equal(expected[name]) for name, tensor in weights.tensors())
    assert len(conversions(cache)) == 1 and bool(leftovers(cache)) is not locks


def test_another_that_was_faster(tmp_path, cache, monkeypatch):
    """Where there are no locks two may convert at once: the second finds the first one's folder, and reads that."""
    weights = open_pretrained(str(gguf_file(tmp_path / "x.gguf", "Q4_0")))
    tensors = weights.source.tensors

    def overtaken():
        yield from tensors()
        weights.folder.mkdir()
        (weights.folder / "config.json").write_text("the other's")

    monkeypatch.setattr(weights.source, "tensors", overtaken)
    weights.convert()
    assert (weights.folder / "config.json").read_text() == "the other's" and not leftovers(cache)


def test_disk_space_is_looked_at_first(tmp_path, cache, monkeypatch):
    file = gguf_file(tmp_path / "x.gguf", "Q4_0")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 0, 2**24))
    with pytest.raises(UserError, match=r"x.gguf: converted it takes .* GB, and the disk of .* has 0.0 GB free.*LIT_LONG_CACHE"):
        dict(open_pretrained(str(file)).tensors())
    assert not conversions(cache) and not leftovers(cache)


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    file = gguf_file(tmp_path / "x.gguf", "Q4_0")
    monkeypatch.setenv("LIT_LONG_CACHE", str(file))  # below a file there is no folder
    with pytest.raises(UserError, match=r"x.gguf: cannot be converted into .*: Not a directory; LIT_LONG_CACHE=FOLDER"):
        dict(open_pretrained(str(file)).tensors())


def test_what_is_wrong_with_the_source_leaves_nothing(tmp_path, cache):
    file = gguf_files.write(random_llama(), tmp_path / "x.gguf", tensors={"blk.1.ffn_down.weight": None})
    with pytest.raises(UserError, match=r"x.gguf: these weights do not fit the model: layers.1.mlp.down_proj.weight is missing"):
        dict(open_pretrained(str(file)).tensors())
    assert not conversions(cache) and not leftovers(cache)


def test_where_the_cache_lies(tmp_path, monkeypatch):
    weights = open_pretrained(str(gguf_file(tmp_path / "x.gguf", "Q4_0")))
    places = []
    for variables in ({}, {"XDG_CACHE_HOME": "/x"}, {"XDG_CACHE_HOME": "/x", "LIT_LONG_CACHE": "~/y"}):
        for name in ("XDG_CACHE_HOME", "LIT_LONG_CACHE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"HOME": "/home/me", **variables}.items():
            monkeypatch.setenv(name, value)
        places.append(str(Converted(weights.source).folder.parent))
    assert places == ["/home/me/.cache/lit-long/converted", "/x/lit-long/converted", "/home/me/y/converted"]


def test_a_newer_lit_long_converts_anew(tmp_path, cache, monkeypatch):
    file = str(gguf_file(tmp_path / "x.gguf", "Q4_0"))
    read(file)
    monkeypatch.setattr(convert, "VERSION", convert.VERSION + 1)
    read(file)
    assert len(conversions(cache)) == 2


def test_tensors_of_two_precisions_lie_aligned(tmp_path):
    """A file has no gaps; where an odd number of two-byte numbers precedes four-byte ones, another part begins."""
    tensors = {
        name: torch.randn(3).to(dtype)
        for name, dtype in zip("abcd", (torch.bfloat16, torch.float32, torch.bfloat16, torch.float32))
    }
    model = namedtuple("model", "names")(list(tensors))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "parameter_shapes", lambda model: dict.fromkeys(model.names, (3,)))
        assert export.write_weights(tmp_path, iter(tensors.items()), model) == torch.float32
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    from safetensors import safe_open

    for name, tensor in tensors.items():
        with safe_open(tmp_path / weight_map[f"model.{name}"], framework="pt") as opened:
            assert opened.get_tensor(f"model.{name}").equal(tensor)


def test_commands(tmp_path, cache, capsys):
    """`generate` says it; `export` afterwards takes the same conversion, and its folder is that model to transformers."""
    file = gguf_file(tmp_path / "x.gguf", "Q4_0")
    done = run("lit_long.generate", f"model.init={file}", "prompt=12 13", "max_new_tokens=2", "device=cpu")
    assert done.returncode == 0 and done.stderr.count("is converted once") == 1, done.stderr
    assert export_command([f"checkpoint={file}", f"out={tmp_path / 'out'}"]) == 0
    assert "is converted" not in capsys.readouterr().err
    assert len(conversions(cache)) == 1
    assert_same(LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32), read(file), 40)


def test_a_sweep_says_it_beforehand(tmp_path, cache):
    """In its plan, while there is something to convert; a plan that is only shown converts nothing."""
    file = gguf_file(tmp_path / "x.gguf", "Q4_0")
    plan = (
        "experiment=zero_shot_extension",
        f"model.init={file}",
        "dry_run=true",
        f"root={tmp_path}",
        "grid.position=[pretrained]",
    )
    done = run_here("lit_long.sweep", *plan)
    assert done.returncode == 0 and done.stdout.count("is converted once, into") == 1, done.stdout + done.stderr
    assert not cache.exists()
    read(file)
    assert "is converted once" not in run_here("lit_long.sweep", *plan).stdout
