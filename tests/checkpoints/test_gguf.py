"""GGUF files: SmolLM2 against transformers' own reader, and small files of every type."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lit_long.checkpoints import gguf_file
from lit_long.checkpoints.external import open_external
from lit_long.checkpoints.gguf_file import GGUF
from lit_long.checkpoints.gguf_header import TYPES, ArrayAt, read_header
from lit_long.config import UserError
from lit_long.positions import build
from tests.checkpoints.gguf_files import write
from tests.checkpoints.llamas import SHAPES, assert_same, batch_of, random_llama, read

PAGE = """The tide had gone out by the time the fishermen returned to the harbour. Along the sea wall, children were looking for crabs
in the pools that the water had left behind, and their mothers called to them from the doorways of the low white houses. It was the
last week of September, and the evenings had begun to be cold. An old man, who had spent forty years on the boats, sat on an upturned
crate and mended a net with slow, careful fingers. He did not look up when the first boat came in, because he knew by the sound of its
engine whose it was and how the day had gone.""".replace("\n", " ")


@pytest.fixture(scope="module")
def ours(smollm2):
    return read(smollm2)


def test_smollm2_is_what_it_is(smollm2):
    wanted = {"n_layers": 30, "d_model": 576, "d_ffn": 1536, "n_heads": 9, "n_kv_heads": 3, "head_dim": 64, "vocab_size": 49_152}
    wanted |= {"context": 8192, "rope_base": 1e5, "norm_eps": 1e-5, "tie_embeddings": True}
    assert {key: getattr(smollm2.shape, key) for key in wanted} == wanted
    assert smollm2.position == {"scheme": "rope", "base": 100_000.0}
    assert sum(parameter.numel() for parameter in read_on_meta(smollm2).parameters()) == 134_515_008


def read_on_meta(external):
    from lit_long.model.llama import Llama

    with torch.device("meta"):
        return Llama(external.shape, build(external.position, external.shape.head_dim))


def test_smollm2_weights_equal_transformers(smollm2, ours):
    theirs = AutoModelForCausalLM.from_pretrained(smollm2.path.parent, gguf_file=smollm2.path.name, dtype=torch.float32)
    expected = {name.removeprefix("model."): parameter for name, parameter in theirs.named_parameters()}
    found = dict(ours.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in expected.items():
        assert found[name].equal(parameter), name


@torch.no_grad()
def test_smollm2_reads_english(smollm2, ours):
    """Perplexity of a page that is in no corpus; without the rotation's right layout it is over 100."""
    tokens = torch.tensor([smollm2.tokenization().encode(PAGE)])
    batch = batch_of(tokens)
    batch.targets[:, -1] = -100
    nats, count = ours(batch)
    assert 15 < (nats / count).exp() < 35


def words(writer):
    """Arrays of every kind, and settings of every kind."""
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<|endoftext|>", "é", "", "a" * 300])
    writer.add_token_scores([0.0, -1.5, 2.0, 3.25])
    writer.add_token_types([3, 1, 1, 6])
    for add, value in (
        ("uint8", 255),
        ("int8", -1),
        ("uint16", 65_535),
        ("int16", -2),
        ("int32", -3),
        ("uint64", 2**40),
        ("int64", -(2**40)),
    ):
        getattr(writer, f"add_{add}")(f"general.{add}", value)
    writer.add_float64("general.float64", 0.1)
    writer.add_bool("general.yes", True)
    writer.add_custom_alignment(64)


def test_header_equals_the_librarys(tmp_path):
    file = write(random_llama(), tmp_path / "x.gguf", "Q8_0", words=words)
    header, reader = read_header(file), GGUFReader(file)
    for key, value in header.settings.items():
        wanted = reader.fields[key].contents()
        assert (header.array(key) if isinstance(value, ArrayAt) else value) == wanted, key
    assert {f"GGUF.{name}" for name in ("version", "tensor_count", "kv_count")} | set(header.settings) == set(reader.fields)
    assert list(header.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        own = header.tensors[tensor.name]
        assert (own.offset, own.size, own.type) == (tensor.data_offset, tensor.n_bytes, tensor.tensor_type)
        assert list(own.shape) == tensor.shape.tolist()[::-1]


@pytest.mark.parametrize("name", SHAPES)
def test_published_shapes(tmp_path, name):
    """All but the scaling of Llama 3.1, which has a test below."""
    shape = SHAPES[name] | {"rope": {"rope_theta": SHAPES[name]["rope"]["rope_theta"]}}
    theirs = random_llama(**shape)
    external = GGUF(write(theirs, tmp_path / "x.gguf"))
    assert_same(theirs, read(external), 200)
    assert external.shape.tie_embeddings == shape.get("tied", False)
    assert (external.shape.norm_eps, external.shape.context) == (1e-5, shape["context"])


# Bits of the mantissa or steps of a block: the largest error relative to the largest number of a block of 32. 1.15: scales are fp16.
ERRORS = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 254, "Q4_0": 1 / 8, "Q4_1": 1 / 15}


@pytest.mark.parametrize("piece", [1000, 2**20])
@pytest.mark.parametrize("kind", TYPES)
def test_types(tmp_path, monkeypatch, kind, piece):
    """However many rows are dequantised at once, every matrix within the type's own error of the number that was written, in the file's precision where torch has it."""
    monkeypatch.setattr(gguf_file, "PIECE", piece)
    theirs = random_llama(head_dim=32, ffn=160)
    expected = {name.removeprefix("model."): parameter.detach() for name, parameter in theirs.named_parameters()}
    found = dict(GGUF(write(theirs, tmp_path / "x.gguf", kind)).tensors())
    assert found.keys() == expected.keys()
    for name, parameter in expected.items():
        if parameter.ndim == 1:
            assert found[name].equal(parameter), name
            continue
        assert found[name].dtype == {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)
        blocks, off = parameter.unflatten(-1, (-1, 32)), (found[name].float() - parameter).abs().unflatten(-1, (-1, 32))
        assert (off <= 1.15 * ERRORS[kind] * blocks.abs().amax(-1, keepdim=True)).all(), name
        assert off.max() > 0 or kind == "F32", "nothing was rounded"


def test_head_dim_of_its_own(tmp_path):
    """heads × head_dim need not be the width."""
    theirs = random_llama(heads=4, kv=2)
    theirs.config.head_dim, file = 8, tmp_path / "x.gguf"
    write(theirs, file, attention__key_length=8, attention__value_length=8, tensors={"blk.0.attn_q.weight": torch.zeros(32, 64)})
    assert GGUF(file).shape.head_dim == 8


def with_rope(tmp_path, tensors=None, base=10_000.0, **settings):
    theirs = random_llama(rope={"rope_theta": base}, context=256)
    return GGUF(write(theirs, tmp_path / "x.gguf", tensors=tensors, **settings))


def test_linear(tmp_path):
    wanted = {"scheme": "pi", "base": 10_000.0, "factor": 4.0}
    assert with_rope(tmp_path, rope__scaling__type="linear", rope__scaling__factor=4.0).position == wanted
    assert with_rope(tmp_path, rope__scale_linear=4.0).position == wanted
    assert with_rope(tmp_path, rope__scaling__type="none").position == {"scheme": "rope", "base": 10_000.0}


def test_yarn(tmp_path):
    scaling = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 64}
    wanted = {"scheme": "yarn", "base": 1e4, "factor": 4.0, "original": 64, "alpha": 1.0, "beta": 32.0, "attention": None}
    assert with_rope(tmp_path, **scaling).position == wanted
    more = {"rope__scaling__attn_factor": 0.5, "rope__scaling__yarn_beta_slow": 2.0, "rope__scaling__yarn_beta_fast": 16.0}
    found = with_rope(tmp_path, **scaling, **more).position
    assert (found["alpha"], found["beta"]) == (2.0, 16.0)
    assert found["attention"] == pytest.approx(0.5 * (0.1 * np.log(4) + 1))


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_found_in_its_divisors(tmp_path, factor):
    """Divisors are made by transformers' formula, in fp32, as llama.cpp's converter writes them."""
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": factor, "original_max_position_embeddings": 8192}
    theirs = random_llama(rope=rope | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}, context=131_072)
    plain = 5e5 ** (-torch.arange(8) / 8)
    divisors = plain / ROPE_INIT_FUNCTIONS["llama3"](theirs.config)[0]
    external = GGUF(write(theirs, tmp_path / "x.gguf", tensors={"rope_freqs.weight": divisors}))
    own = {"factor": factor, "original": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert external.position == {"scheme": "llama3", "base": 5e5} | own
    assert_same(theirs, read(external), 200)


def test_other_divisors(tmp_path):
    """They stay what they are, at every length."""
    divisors = [1.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0]
    external = with_rope(tmp_path, {"rope_freqs.weight": torch.tensor(divisors)})
    encoder = build(external.position, 16)
    for length in (10, 1000):
        assert encoder.inverse_frequencies(length) == pytest.approx([1e4 ** (-j / 8) / slow for j, slow in enumerate(divisors)])
        assert encoder.attention_factor(length) == 1


def fails(external, *words):
    with pytest.raises(UserError) as caught:
        read(external)
    for word in (str(external.path), *words):
        assert word in str(caught.value), f"no {word!r} in: {caught.value}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"without": ["rope.freq_base"]}, ["llama.rope.freq_base is missing", "cannot be guessed"]),
        ({"without": ["block_count"]}, ["llama.block_count is missing"]),
        ({"rope__scaling__type": "longrope", "rope__scaling__factor": 4.0}, ["longrope", "Hugging Face"]),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}, ["original_context_length is missing"]),
        ({"rope__scaling__factor": 4.0}, ["type=none", "factor=4"]),
        ({"rope__dimension_count": 8}, ["rope.dimension_count=8"]),
        ({"expert_count": 8}, ["llama.expert_count = 8"]),
        ({"attention__sliding_window": 4096}, ["llama.attention.sliding_window"]),
        ({"tensors": {"blk.0.attn_q.bias": torch.zeros(64)}}, ["blk.0.attn_q.bias", "biases"]),
        ({"tensors": {"blk.0.ffn_gate_exps.weight": torch.zeros(2, 64)}}, ["blk.0.ffn_gate_exps.weight", "experts"]),
        ({"tensors": {"blk.1.ffn_down.weight": None}}, ["layers.1.mlp.down_proj.weight is missing"]),
        ({"tensors": {"blk.1.ffn_down.weight": torch.zeros(64, 32)}}, ["layers.1.mlp.down_proj.weight", "[64, 32]", "[64, 96]"]),
        ({"tensors": {"blk.1.attn_k.weight": torch.zeros(30, 64)}}, ["blk.1.attn_k.weight", "[30, 64]", "2 heads"]),
        ({"tensors": {"token_embd.weight": None}}, ["token_embd.weight is missing"]),
        (
            {"tensors": {"rope_freqs.weight": torch.ones(8)}, "rope__scaling__type": "linear", "rope__scaling__factor": 2.0},
            ["rope_freqs.weight", "scaling"],
        ),
    ],
)
def test_files_that_do_not_fit(tmp_path, change, words):
    fails(GGUF(write(random_llama(), tmp_path / "x.gguf", **change)), *words)


def test_type_that_is_not_read(tmp_path):
    fails(GGUF(write(random_llama(), tmp_path / "x.gguf", "Q5_0")), "token_embd.weight", "Q5_0", "Q4_1")


def test_damaged_files(tmp_path):
    file = write(random_llama(), tmp_path / "x.gguf")
    whole = file.read_bytes()
    last = list(read_header(file).tensors)[-1]
    cases = {
        len(whole) - 1000: ["truncated", f"tensor {last}"],
        300: ["header ends too early"],
        20: ["header ends too early"],
        0: ["cannot be read"],
    }
    for size, words in cases.items():
        file.write_bytes(whole[:size])
        fails(GGUF(file), *words)
    file.write_bytes(b"GGML" + whole[4:])
    fails(GGUF(file), "not a GGUF file")
    file.write_bytes(whole[:4] + struct.pack("<I", 1) + whole[8:])
    fails(GGUF(file), "version 1")
    file.write_bytes(whole.replace(b"\x05\x00\x00\x00\x00\x00\x00\x00llama", b"\x05\x00\x00\x00\x00\x00\x00\x00qwen2", 1))
    fails(GGUF(file), "qwen2", "only llama")
    file.write_bytes(whole[:8] + struct.pack("<Q", 2**60) + whole[16:])
    fails(GGUF(file), "damaged")


def test_by_name(tmp_path):
    file = write(random_llama(), tmp_path / "x.gguf")
    assert isinstance(open_external(str(file)), GGUF)
    assert open_external(str(file)).digest != open_external(str(write(random_llama(1), tmp_path / "y.gguf"))).digest
