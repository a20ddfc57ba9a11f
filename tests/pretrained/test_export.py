"""What an exported folder says of tokenizer and context. That transformers 4 loads and runs it is in test_transformers_4.py."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lit_long.pretrained import open_pretrained
from lit_long.pretrained.export import write_huggingface
from lit_long.tokenizers.tokenizer import ModelTokenizer
from tests.integration.mini import REPOSITORY
from tests.pretrained.llamas import random_llama, save
from tests.tokenizers.texts import trained

TAKES = ["input_ids", "attention_mask"]


@pytest.fixture
def source(tmp_path):
    """Weights with a tokenizer, as transformers 5 saves both."""
    save(random_llama(vocab=600), tmp_path / "source")
    special = {"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": ["<|extra|>"]}
    fast = PreTrainedTokenizerFast(tokenizer_object=trained("llama-bpe", ("<s>", "</s>", "<|extra|>")), **special)
    fast.save_pretrained(tmp_path / "source")
    return open_pretrained(str(tmp_path / "source"))


def export(source, out, words=None, position=None, context=64):
    write_huggingface(out, source.tensors(), source.shape, position or source.position, context, words or source.tokenizer(), "")
    return json.loads((out / "tokenizer_config.json").read_text())


@torch.no_grad()
def runs(folder):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    asked = tokenizer("The tide", return_tensors="pt")
    assert set(asked) == set(TAKES)
    return model.generate(**asked, max_new_tokens=3, do_sample=False)[0]


def test_a_borrowed_tokenizer_reads_alike_in_both_versions(source, tmp_path):
    """Its files are copied, but for what transformers 4 would not know or would do otherwise."""
    theirs = json.loads((source.path / "tokenizer_config.json").read_text())
    assert theirs["tokenizer_class"] == "TokenizersBackend" and theirs["extra_special_tokens"] == ["<|extra|>"]
    found = export(source, tmp_path / "out")
    assert found["model_input_names"] == TAKES
    assert found["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert found["additional_special_tokens"] == ["<|extra|>"] and "extra_special_tokens" not in found
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source.path / "tokenizer.json").read_bytes()
    assert "<|extra|>" in AutoTokenizer.from_pretrained(tmp_path / "out").all_special_tokens
    assert len(runs(tmp_path / "out")) > 2


def test_a_folder_without_tokenizer_settings(source, tmp_path):
    """transformers then takes Llama's own class, and so do we its ids."""
    (source.path / "tokenizer_config.json").unlink()
    write_huggingface(tmp_path / "out", source.tensors(), source.shape, source.position, 64, source.tokenizer(), "")
    assert not (tmp_path / "out" / "tokenizer_config.json").exists()
    assert open_pretrained(str(tmp_path / "out")).tokenizer().bos == source.tokenizer().bos
    assert len(runs(tmp_path / "out")) > 2


def test_a_tokenizer_of_our_own(source, tmp_path):
    """Also one without an end of text."""
    tokenizer = Tokenizer.from_file(str(source.path / "tokenizer.json"))
    words = ModelTokenizer(tokenizer, bos=0, eos=(), add_bos=True, separator=0, special={"bos_token": "<s>"})
    assert export(source, tmp_path / "out", words)["model_input_names"] == TAKES
    assert len(runs(tmp_path / "out")) > 3


@pytest.mark.parametrize("base", ["mini-s0", "mini-s1", "mini-s2"])
def test_bases_that_came_along(base):
    assert (
        json.loads((REPOSITORY / "experiments" / "bases" / base / "tokenizer_config.json").read_text())["model_input_names"]
        == TAKES
    )


@pytest.mark.parametrize(
    "position",
    [
        {"scheme": "dynamic_ntk", "original": 256},
        {"scheme": "pi", "factor": 4.0},
        {"scheme": "yarn", "factor": 16.0, "original": 256},
        {"scheme": "ntk", "factor": 4.0},
        {"scheme": "llama3", "factor": 8.0, "original": 256},
        {"scheme": "longrope", "original": 256, "factor": 2.0, "short_factors": [1.0] * 8, "long_factors": [2.0] * 8},
    ],
)
def test_the_context_comes_back(source, tmp_path, position):
    """Trained at 512 tokens, whatever the encoder."""
    export(source, tmp_path / "out", position=position | {"base": 10_000.0}, context=512)
    assert open_pretrained(str(tmp_path / "out")).shape.context == 512
