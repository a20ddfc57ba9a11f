"""Exported folders, and the bases that came along, under transformers 4 in an environment of its own: loaded, run, and the same encoder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lit_long.positions import build
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.export import write_huggingface
from lit_long.tokenizers.huggingface import read_tokenizer
from tests.integration.mini import REPOSITORY
from tests.pretrained.llamas import random_llama, save
from tests.pretrained.test_families import CASES, TWO_ROTATIONS, random_model
from tests.pretrained.test_rope_config import EXPORTED
from tests.tokenizers.texts import trained

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
VERSIONS = {"4.53.3": ">=0.21,<0.22", "4.57.6": ">=0.22,<=0.23"}  # of transformers: the tokenizers that it takes
WITH_FAMILIES = "4.57.6"  # before it, some are missing, and windows of SmolLM3 were computed otherwise
BASES = sorted((REPOSITORY / "experiments" / "bases").glob("mini-s?"))
LENGTHS = (40, 64, 65, 256)
# Run in the other environment: for each folder what generate makes of a text, and the encoder's tables.
PROGRAM = """
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
version, out, lengths, *folders = sys.argv[1:]
assert transformers.__version__ == version, (transformers.__version__, transformers.__file__)
found = {}
for folder in folders:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    asked = tokenizer("The tide went out. Ｃ é", return_tensors="pt")
    answer = model.generate(**asked, max_new_tokens=4, do_sample=False)
    tables = {}
    for length in json.loads(lengths) if model.config.model_type == "llama" else ():
        tables[length] = tuple(table[0] for table in model.model.rotary_emb(torch.zeros(1), torch.arange(length)[None]))
    found[folder] = {"ids": asked.input_ids[0], "answer": answer[0], "tables": tables, "text": tokenizer.decode(answer[0])}
torch.save(found, out)
"""


@pytest.fixture(scope="module", params=VERSIONS)
def python(request, tmp_path_factory) -> tuple[str, Path]:
    """A version of transformers and the Python that has it. torch and the rest are this environment's, by a .pth file."""
    folder = tmp_path_factory.mktemp(f"transformers-{request.param}")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    wanted = [f"transformers=={request.param}", f"tokenizers{VERSIONS[request.param]}", "huggingface-hub>=0.34,<1"]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, *wanted], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (packages / "torch.pth").write_text(
        "\n".join(dict.fromkeys((sysconfig.get_path("purelib"), str(Path(torch.__file__).parents[1]))))
    )
    return request.param, python


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """An export of every encoder that transformers 4 knows, with a tokenizer that transformers 5 saved; YaRN with further factors."""
    here = tmp_path_factory.mktemp("exports")
    save(random_llama(vocab=600, context=64), here / "source")
    tokenizer = trained("llama-bpe", ("<s>", "</s>", "<|extra|>"))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", extra_special_tokens=["<|extra|>"]
    )
    fast.save_pretrained(here / "source")
    words, source = read_tokenizer(here / "source", 600), open_pretrained(str(here / "source"))
    yarn = EXPORTED["yarn"]
    cases = {name: EXPORTED[name] for name in EXPORTED if not name.startswith("p_rope")}
    cases |= {"yarn, 8": yarn | {"factor": 8.0}, "yarn, 2.7": yarn | {"factor": 2.7}, "yarn, 1": yarn | {"factor": 1.0}}
    for name, position in cases.items():
        position = {"scheme": name.split(",")[0]} | position
        write_huggingface(here / name, source.tensors(), source.shape, position, 256, words, "")
    return {name: here / name for name in cases}


@pytest.fixture(scope="module")
def families(tmp_path_factory, folders) -> dict[str, Path]:
    """An export of each case of a family, with the same tokenizer; the text is longer than their windows."""
    here, found = tmp_path_factory.mktemp("families"), {}
    for case, (family, fields) in CASES.items():
        if family == "olmo3":  # version 4 has one base for all layers, as its configurations did
            fields = fields | {
                "rope_parameters": {kind: rope | {"rope_theta": 500_000.0} for kind, rope in TWO_ROTATIONS.items()}
            }
        source = open_pretrained(str(save(random_model(family, **fields | {"vocab_size": 600}), here / f"{case}-source")))
        out, words = here / case, read_tokenizer(folders["rope"], 600)
        write_huggingface(out, source.tensors(), source.shape, source.position, 128, words, "", layers=source.layers)
        found[case] = out
    return found


@pytest.fixture(scope="module")
def found(python, folders, families, tmp_path_factory) -> dict[str, dict]:
    version, executable = python
    out = tmp_path_factory.mktemp("found") / "found.pt"
    others = families.values() if version == WITH_FAMILIES else ()
    words = [version, out, json.dumps(LENGTHS), *folders.values(), *BASES, *others]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([executable, "-c", PROGRAM, *map(str, words)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return torch.load(out, weights_only=True)


def test_it_runs_and_reads_the_same_ids(found):
    """`generate(**tokenizer(text))` works, and ids and continuation are those of this environment's transformers."""
    assert len(BASES) == 3 and len(found) > 3
    for folder, theirs in found.items():
        tokenizer, model = (
            AutoTokenizer.from_pretrained(folder),
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        )
        asked = tokenizer("The tide went out. Ｃ é", return_tensors="pt")
        assert theirs["ids"].tolist() == asked.input_ids[0].tolist(), folder
        answer = model.generate(**asked, max_new_tokens=4, do_sample=False)[0]
        assert theirs["answer"].tolist() == answer.tolist(), folder
        assert theirs["text"] == tokenizer.decode(answer), folder


def test_it_is_the_same_encoder(found, folders):
    """Cosines and sines are ours, within the original context and beyond."""
    for name, folder in folders.items():
        pretrained, theirs = open_pretrained(str(folder)), found[str(folder)]
        encoder = build(pretrained.position, pretrained.shape.head_dim)
        for length, (cos, sin) in theirs["tables"].items():
            own = encoder.rotation(torch.arange(length)[None], length)
            torch.testing.assert_close(own.cos_q[0], cos[:, :8], atol=3e-5, rtol=0, msg=f"{name}, {length} tokens")
            torch.testing.assert_close(own.sin_k[0], sin[:, :8], atol=3e-5, rtol=0, msg=f"{name}, {length} tokens")
