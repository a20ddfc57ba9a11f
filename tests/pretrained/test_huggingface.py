"""Folders that transformers wrote, read here: the same logits for every published shape and every kind of RoPE, the same bits."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from lit_long.config import UserError
from lit_long.pretrained import open_pretrained, pickles
from lit_long.pretrained.huggingface import download
from tests.pretrained.llamas import SHAPES, assert_same, edit_config, random_llama, read, save

THETA = {"rope_theta": 10_000.0}
FACTORS = [1.0, 1.0, 1.3, 1.9, 2.5, 3.0, 3.5, 4.0]
ORIGINAL = {"original_max_position_embeddings": 64}
KINDS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0} | ORIGINAL,
    "yarn, attention given": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3} | ORIGINAL,
    "yarn, mscale": {"rope_type": "yarn", "factor": 8.0, "mscale": 1.2, "mscale_all_dim": 0.7} | ORIGINAL,
    "yarn, turns": {"rope_type": "yarn", "factor": 8.0, "beta_fast": 2.0, "beta_slow": 0.1} | ORIGINAL,
    "yarn, no factor": {"rope_type": "yarn", "factor": None} | ORIGINAL,
    "longrope": {"rope_type": "longrope", "factor": 4.0, "short_factor": FACTORS[::-1], "long_factor": FACTORS} | ORIGINAL,
    "longrope, no factor": {"rope_type": "longrope", "short_factor": FACTORS[::-1], "long_factor": FACTORS} | ORIGINAL,
    "longrope, attention given": {"rope_type": "longrope", "factor": 4.0, "short_factor": FACTORS, "long_factor": FACTORS}
    | {"attention_factor": 1.2}
    | ORIGINAL,
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | ORIGINAL,
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.6},
}


@pytest.fixture
def folder(tmp_path):
    """A small Llama, saved in one file."""
    return save(random_llama(), tmp_path / "llama")


def fails(folder, *words, load=True):
    """Reading ``folder`` fails with a message that has all ``words``."""
    with pytest.raises(UserError) as caught:
        read(folder) if load else open_pretrained(str(folder)).position
    for word in words:
        assert word in str(caught.value), f"no {word!r} in: {caught.value}"


@pytest.mark.parametrize("layout", ["new", "old"])
@pytest.mark.parametrize("name", SHAPES)
def test_published_shapes(tmp_path, name, layout):
    shape = SHAPES[name]
    theirs = random_llama(**shape)
    pretrained = open_pretrained(str(save(theirs, tmp_path, layout)))
    ours = read(pretrained)
    assert_same(theirs, ours, 2 * shape["context"] if shape["context"] < 200 else 300)
    assert pretrained.shape.context == shape["context"]
    assert pretrained.shape.rope_base == shape["rope"]["rope_theta"]
    assert pretrained.shape.tie_embeddings == shape.get("tied", False)


@pytest.mark.parametrize("layout", ["new", "old"])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_rope(tmp_path, kind, layout):
    """Within the original context, and at positions far beyond it. transformers reads the same folder, in the same layout."""
    context = 64 if KINDS[kind]["rope_type"] in ("default", "dynamic", "proportional") else 256
    folder = save(random_llama(context=context), tmp_path)
    parameters = THETA | KINDS[kind]
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    keys = {"rope_parameters": parameters} if layout == "new" else {"rope_theta": 10_000.0, "rope_scaling": scaling}
    edit_config(folder, lambda config: {key: value for key, value in config.items() if key != "rope_parameters"} | keys)
    ours = read(folder)
    for length in (48, 300):
        assert_same(LlamaForCausalLM.from_pretrained(folder), ours, length)  # its dynamic kind remembers the longest it saw


@pytest.mark.parametrize("how", [{}, {"max_shard_size": "40KB"}])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_stay(tmp_path, how, tied, dtype):
    theirs = random_llama(tied=tied).to(dtype)
    pretrained = open_pretrained(str(save(theirs, tmp_path, **how)))
    assert (tmp_path / "model.safetensors.index.json").exists() == bool(how)
    found = {name if name == "lm_head.weight" else f"model.{name}": tensor for name, tensor in pretrained.tensors()}
    expected = dict(theirs.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in expected.items():
        assert found[name].dtype == dtype and found[name].equal(parameter), name


def to_bin(folder, shards=1, extra=None, new=True):
    """The folder's weights as transformers 4 saved them: pytorch_model.bin, or several with an index. ``new``: in the form of torch 1.6."""
    tensors = load_file(folder / "model.safetensors") | (extra or {})
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new)
        return
    names, files = list(tensors), [f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin" for i in range(shards)]
    for i, file in enumerate(files):
        torch.save({name: tensors[name] for name in names[i::shards]}, folder / file, _use_new_zipfile_serialization=new)
    weight_map = {name: files[i % shards] for i, name in enumerate(names)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
def test_bin(folder, shards, new, monkeypatch):
    """With the buffers that old versions saved, and as torch saved before 1.6."""
    monkeypatch.setattr(pickles, "WINDOW", 1000)
    theirs = LlamaForCausalLM.from_pretrained(folder)
    to_bin(folder, shards, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, new)
    assert_same(theirs, read(folder), 100)


@pytest.mark.parametrize("new", [True, False])
def test_bin_is_opened_anew_where_it_is_mapped(folder, new, monkeypatch):
    """What torch saved before 1.6 is in memory as a whole, and would be read as a whole for every few megabytes."""
    monkeypatch.setattr(pickles, "WINDOW", 1000)
    to_bin(folder, new=new)
    opened = pickles.Pickles([folder / "pytorch_model.bin"])
    one, other = (opened.parts("model.embed_tokens.weight")[0] for _ in range(2))
    assert one.equal(other) and (one is other) is not new


def test_what_a_config_may_leave_out(folder):
    """transformers' own defaults for a Llama stand in, but for the base."""

    def shorten(config):
        gone = ("rms_norm_eps", "tie_word_embeddings", "head_dim", "num_key_value_heads", "max_position_embeddings", "hidden_act")
        return {key: value for key, value in config.items() if key not in gone}

    save(random_llama(kv=4, eps=1e-6, context=2048), folder)
    edit_config(folder, shorten)
    assert_same(LlamaForCausalLM.from_pretrained(folder), read(folder), 100)
    assert open_pretrained(str(folder)).shape.context == 2048


def test_tied_head_saved_twice(tmp_path):
    """Harmless when it is the embedding, an error when it is not."""
    theirs = random_llama(tied=True)
    tensors = load_file(save(theirs, tmp_path) / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embedding.clone()}, tmp_path / "model.safetensors")
    assert_same(theirs, read(tmp_path), 50)
    save_file(tensors | {"lm_head.weight": embedding + 1}, tmp_path / "model.safetensors")
    fails(tmp_path, "model.safetensors", "lm_head.weight differs", "tie_word_embeddings")


def test_base_model_without_prefix(tmp_path):
    """LlamaModel saves names without "model."."""
    theirs = random_llama(tied=True)
    theirs.model.save_pretrained(tmp_path)
    assert_same(theirs, read(tmp_path), 50)


def test_digest_is_of_the_content(tmp_path):
    """Not of the place or of remarks; another weight, base or scaling is another model."""
    digests = set()
    for name, seed, rope in (("a", 0, THETA), ("b", 0, THETA), ("c", 1, THETA), ("d", 0, {"rope_theta": 20_000.0})):
        folder = save(random_llama(seed, rope=rope), tmp_path / name)
        edit_config(folder, lambda config, name=name: config | {"_name_or_path": name})
        digests.add(open_pretrained(str(folder)).digest)
    assert len(digests) == 3


def test_missing_shard(tmp_path):
    folder = save(random_llama(), tmp_path, max_shard_size="40KB")
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    fails(folder, gone.name, "is missing", "tensor model.")


def test_tensor_that_the_index_places_elsewhere(tmp_path):
    folder = save(random_llama(), tmp_path, max_shard_size="40KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    tensors = load_file(shard)
    lost = tensors.pop(next(iter(tensors))) is not None and set(load_file(shard)) - set(tensors)
    save_file(tensors, shard)
    fails(folder, shard.name, lost.pop(), "is missing")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.norm.weight"), ["norm.weight is missing"]),
        (lambda t: t.pop("lm_head.weight"), ["lm_head.weight is missing", "set tie_word_embeddings to true"]),
        (
            lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(5, 64)}),
            ["layers.1.mlp.up_proj.weight", "[5, 64]"],
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}),
            ["self_attn.q_proj.bias", "not in the model"],
        ),
        (lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}), ["model.norm.weight", "int8"]),
    ],
)
def test_weights_that_do_not_fit(folder, change, words):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    fails(folder, str(folder), *words)


def test_truncated_safetensors(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    fails(folder, "model.safetensors", "truncated", "tensor model.norm.weight")
    file.write_bytes(whole[:50])
    fails(folder, "model.safetensors", "cannot be read")


def test_truncated_bin(folder):
    to_bin(folder)
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-2000])
    fails(folder, "pytorch_model.bin", "cannot be read", "download it again")
    torch.save({"model.norm.weight": torch.ones(64)}, file, _use_new_zipfile_serialization=False)
    whole = file.read_bytes()
    for size in (len(whole) - 100, 100, 3, 0):
        file.write_bytes(whole[:size])
        fails(folder, "pytorch_model.bin")


class Code:
    """Runs on unpickling."""

    def __reduce__(self):
        return (print, ("the pickle's code ran",))


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickle_with_code_in_it(folder, name, new, capsys):
    """It is refused, and does not run."""
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.ones(64), "x": Code()}, folder / name, _use_new_zipfile_serialization=new)
    if name.startswith("consolidated"):
        (folder / "config.json").unlink()
        (folder / "params.json").write_text(json.dumps({"dim": 64, "n_heads": 4, "n_layers": 2, "norm_eps": 1e-5}))
    fails(folder, name, "code", "safetensors")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "bloom"}, ["model_type", "bloom", "llama"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "gptq"]),
        ({"hidden_size": None}, ["hidden_size is missing"]),
        ({"vocab_size": None}, ["vocab_size is missing"]),
        ({"rms_norm_eps": None}, ["rms_norm_eps must be a number, not None"]),
        ({"num_key_value_heads": "2"}, ["num_key_value_heads must be a whole number"]),
    ],
)
def test_other_architectures(folder, change, words):
    edit_config(folder, lambda config: config | change)
    fails(folder, "config.json", *words)


def test_broken_files(folder):
    (folder / "model.safetensors").unlink()
    fails(folder, str(folder), "no weights")
    (folder / "model.safetensors.index.json").write_text("{}")
    fails(folder, "model.safetensors.index.json", "weight_map")
    (folder / "config.json").write_text("{")
    fails(folder, "config.json", "JSON")


def test_hub_without_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"nobody/nothing@main.*hub cannot be reached.*hf download nobody/nothing"):
        download("nobody/nothing@main")


def test_hub_cache(tmp_path, monkeypatch):
    """A repository that is in the cache is found without a network, at its revision, and known by its blobs."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    theirs, commit = random_llama(), "a" * 40
    repository = tmp_path / "models--org--name"
    save(theirs, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(commit)
    assert_same(theirs, read("org/name@v1"), 50)
