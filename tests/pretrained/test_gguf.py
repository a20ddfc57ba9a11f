"""GGUF files: SmolLM2 against transformers' own reader, and small files of every type."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lit_long import export
from lit_long.config import UserError
from lit_long.generation import generate_text
from lit_long.positions import build
from lit_long.pretrained import gguf, open_pretrained
from lit_long.pretrained.gguf import GGUF, Header, readable
from tests.pretrained.gguf_files import tokens_of, write
from tests.pretrained.llamas import SHAPES, assert_same, batch_of, random_llama, read
from tests.pretrained.test_families import random_model

STORIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "stories260K.gguf"  # a real file; see its MANIFEST.md
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


def read_on_meta(pretrained):
    from lit_long.model.llama import Llama

    with torch.device("meta"):
        return Llama(pretrained.shape, build(pretrained.position, pretrained.shape.head_dim))


@pytest.mark.slow  # transformers takes half a minute to dequantise them; test_convert.py compares small files
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
    tokens = torch.tensor([smollm2.tokenizer().encode(PAGE)])
    batch = batch_of(tokens)
    batch.targets[:, -1] = -100
    nats, count = ours(batch)
    assert 15 < (nats / count).exp() < 35


@pytest.mark.parametrize(("family", "fields"), [("qwen2", {"tie_word_embeddings": True}), ("qwen3", {"head_dim": 128})])
def test_other_architectures(tmp_path, family, fields):
    """The model that the file was made of, and what transformers reads in it."""
    theirs = random_model(family, **fields)
    source = open_pretrained(str(write(theirs, tmp_path / "x.gguf", vocab_size=160)))
    assert_same(theirs, read(source), 100)
    back = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32)
    assert_same(back, read(source), 100)


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
    header, reader = Header(file), GGUFReader(file)
    assert list(header.fields) == list(reader.fields)
    lists = {key for key in header.fields if header.array(key) is not None}
    assert {key: header.array(key) if key in lists else header.settings[key] for key in header.fields} == {
        key: field.contents() for key, field in reader.fields.items()
    }
    assert lists == {"tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"}
    for own, tensor in zip(header.tensors, reader.tensors, strict=True):
        assert (own.name, own.data_offset, own.n_bytes, own.tensor_type) == (
            tensor.name,
            tensor.data_offset,
            tensor.n_bytes,
            tensor.tensor_type,
        )
        assert own.shape.tolist() == tensor.shape.tolist()


@pytest.mark.parametrize("name", SHAPES)
def test_published_shapes(tmp_path, name):
    """All but the scaling of Llama 3.1, which has a test below."""
    shape = SHAPES[name] | {"rope": {"rope_theta": SHAPES[name]["rope"]["rope_theta"]}}
    theirs = random_llama(**shape)
    pretrained = GGUF(write(theirs, tmp_path / "x.gguf"))
    assert_same(theirs, read(pretrained), 200)
    assert pretrained.shape.tie_embeddings == shape.get("tied", False)
    assert (pretrained.shape.norm_eps, pretrained.shape.context) == (1e-5, shape["context"])


# Bits of the mantissa or steps of a block: the largest error relative to the largest number of a block of 32. 1.15: scales are fp16.
ERRORS = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 254, "Q4_0": 1 / 8, "Q4_1": 1 / 15, "Q5_0": 1 / 16, "Q5_1": 1 / 31}


@pytest.mark.parametrize("piece", [1000, 2**20])
@pytest.mark.parametrize("kind", ERRORS)
def test_types(tmp_path, monkeypatch, kind, piece):
    """However many rows are dequantised at once, every matrix within the type's own error of the number that was written, in the file's precision where torch has it."""
    monkeypatch.setattr(gguf, "PIECE", piece)
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


QUANTISED = [kind for kind in GGMLQuantizationType if readable(kind) and GGML_QUANT_SIZES[kind][0] > 1]


def raw(kind, rows, columns, seed=0):
    """Bytes of a matrix in ``kind``, at random; as numbers of 8 bits below 64 fp16 scales are finite."""
    block, size = GGML_QUANT_SIZES[kind]
    return np.random.default_rng(seed).integers(0, 60, (rows, columns // block * size), dtype=np.uint8)


def test_the_library_knows_these():
    """Those of llama-quantize; a newer library may know more."""
    names = {kind.name for kind in QUANTISED}
    assert names >= {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"}
    assert names >= {"TQ1_0", "TQ2_0", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M"}


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_every_type_that_the_library_knows(tmp_path, monkeypatch, kind):
    """In one file with other types, as llama-quantize mixes them, a few rows at a time; numbers are those of `dequantize` at once."""
    monkeypatch.setattr(gguf, "PIECE", 1000)
    theirs = random_llama(heads=4, kv=2, head_dim=64, ffn=256, vocab=40, layers=1)
    matrices = {"token_embd.weight": raw(kind, 40, 256), "blk.0.ffn_down.weight": raw(kind, 256, 256, 1)}
    file = write(theirs, tmp_path / "x.gguf", "Q8_0", raw={name: (data, kind) for name, data in matrices.items()})
    found = dict(GGUF(file).tensors())
    for name, own in (("token_embd.weight", "embed_tokens.weight"), ("blk.0.ffn_down.weight", "layers.0.mlp.down_proj.weight")):
        expected = dequantize(matrices[name], kind)
        assert np.isfinite(expected).all() and expected.any()
        assert np.array_equal(found[own].numpy(), expected)
    assert len(read(GGUF(file)).layers) == 1


def test_head_in_another_type_equals_transformers(tmp_path):
    """What llama-quantize makes of a Q4_0 file: its head in Q6_K."""
    theirs = random_llama(heads=4, kv=2, head_dim=64, ffn=256, vocab=40, layers=2)
    kind = GGMLQuantizationType.Q6_K
    head = raw(kind, 40, 256)
    head[:, 208:210] = np.array([0.0005], np.float16).view(np.uint8)  # the block's scale
    file = write(theirs, tmp_path / "x.gguf", "Q4_0", raw={"output.weight": (head, kind)}, words=tokens_of(40))
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32)
    assert_same(expected, read(GGUF(file)), 50)


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
    assert with_rope(tmp_path, rope__scaling__factor=4.0).position == wanted  # llama.cpp's type where none is named
    assert with_rope(tmp_path, rope__scaling__type="none").position == {"scheme": "rope", "base": 10_000.0}


def test_yarn(tmp_path):
    scaling = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 64}
    wanted = {"scheme": "yarn", "base": 1e4, "factor": 4.0, "original": 64, "alpha": 1.0, "beta": 32.0, "attention": None}
    assert with_rope(tmp_path, **scaling).position == wanted
    more = {"rope__scaling__attn_factor": 0.5, "rope__scaling__yarn_beta_slow": 2.0, "rope__scaling__yarn_beta_fast": 16.0}
    found = with_rope(tmp_path, **scaling, **more).position
    assert (found["alpha"], found["beta"]) == (2.0, 16.0)
    assert found["attention"] == pytest.approx(0.5 * (0.1 * np.log(4) + 1))


def test_context_with_scaling(tmp_path):
    """As of a Hugging Face folder: the 256 may be before the scaling, or after it."""
    linear = {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}
    assert with_rope(tmp_path).shape.context == 256
    assert with_rope(tmp_path, **linear | {"rope__scaling__factor": 8.0}, context_length=32_768).shape.context == 32_768
    assert with_rope(tmp_path, **linear).shape.context == 1024
    assert with_rope(tmp_path, **linear, rope__scaling__original_context_length=64).shape.context == 256
    assert (
        with_rope(tmp_path, **linear | {"rope__scaling__type": "yarn"}, rope__scaling__original_context_length=256).shape.context
        == 1024
    )


def test_without_a_base(tmp_path):
    """llama.cpp takes 10,000 (src/llama-model.cpp), and it is said."""
    pretrained = GGUF(write(random_llama(), tmp_path / "x.gguf", without=["rope.freq_base"]))
    assert pretrained.shape.rope_base == pretrained.position["base"] == 10_000.0
    assert "rope.freq_base" in pretrained.note and "10,000" in pretrained.note and "position.base" in pretrained.note
    assert not with_rope(tmp_path).note


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_found_in_its_divisors(tmp_path, factor):
    """Divisors are made by transformers' formula, in fp32, as llama.cpp's converter writes them."""
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": factor, "original_max_position_embeddings": 8192}
    theirs = random_llama(rope=rope | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}, context=131_072)
    plain = 5e5 ** (-torch.arange(8) / 8)
    divisors = plain / ROPE_INIT_FUNCTIONS["llama3"](theirs.config)[0]
    pretrained = GGUF(write(theirs, tmp_path / "x.gguf", tensors={"rope_freqs.weight": divisors}))
    own = {"factor": factor, "original": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert pretrained.position == {"scheme": "llama3", "base": 5e5} | own
    assert_same(theirs, read(pretrained), 200)


def test_other_divisors(tmp_path):
    """They stay what they are, at every length."""
    divisors = [1.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0]
    pretrained = with_rope(tmp_path, {"rope_freqs.weight": torch.tensor(divisors)})
    encoder = build(pretrained.position, 16)
    for length in (10, 1000):
        assert encoder.inverse_frequencies(length) == pytest.approx([1e4 ** (-j / 8) / slow for j, slow in enumerate(divisors)])
        assert encoder.attention_factor(length) == 1


def fails(pretrained, *words):
    with pytest.raises(UserError) as caught:
        read(pretrained)
    for word in (str(pretrained.path), *words):
        assert word in str(caught.value), f"no {word!r} in: {caught.value}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"without": ["block_count"]}, ["llama.block_count is missing"]),
        ({"attention__head_count_kv": [2, 1]}, ["llama.attention.head_count_kv is a list", "Hugging Face"]),
        ({"feed_forward_length": [96, 48]}, ["llama.feed_forward_length is a list"]),
        ({"attention__value_length": [32, 32]}, ["llama.attention.value_length is a list"]),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": [4.0, 4.0]}, ["llama.rope.scaling.factor is a list"]),
        ({"rope__scaling__factor": "x"}, ["llama.rope.scaling.factor is 'x', not a number"]),
        ({"attention__sliding_window": [8, 8]}, ["llama.attention.sliding_window = [8, 8]"]),
        ({"attention__sliding_window_pattern": [True, False]}, ["llama.attention.sliding_window_pattern = [True, False]"]),
        ({"rope__scaling__type": "longrope", "rope__scaling__factor": 4.0}, ["longrope", "Hugging Face"]),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}, ["original_context_length is missing"]),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, ["type=none", "factor=4"]),
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
    """The library can neither read nor name it."""
    kind = GGMLQuantizationType.Q8_K
    file = write(random_llama(heads=4, head_dim=64), tmp_path / "x.gguf", raw={"token_embd.weight": (raw(kind, 160, 256), kind)})
    fails(GGUF(file), "token_embd.weight", "Q8_K", "Q4_1", "Q6_K")


# Of karpathy/llama2.c, doc/stories260K.md (MIT): what its run.c writes greedily after "Once upon a time".
STORY = """, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, "I want to play with your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she said, "I'm sorry, mom. I didn't know what to do." Her mom said, "Don't worry, Lily. We can help you."""  # fmt: skip


@pytest.fixture(scope="module")
def stories():
    if not STORIES.is_file():
        pytest.skip(f"{STORIES} is not here")
    return GGUF(STORIES)


def test_a_published_model_writes_its_published_text(stories):
    """Word for word, tokenizer included."""
    [text] = generate_text(read(stories), stories.tokenizer(), ["Once upon a time"], 257)
    assert text.startswith(STORY)


@torch.no_grad()
def test_a_published_model_goes_to_transformers(stories, tmp_path):
    """From GGUF to a Hugging Face folder: there, too, the published text's tokens, and the logits that the model has here."""
    assert export.main([f"checkpoint={STORIES}", f"out={tmp_path / 'out'}"]) in (0, None)
    theirs, tokenizer = (load.from_pretrained(tmp_path / "out") for load in (AutoModelForCausalLM, AutoTokenizer))
    tokens = tokenizer("Once upon a time" + STORY, return_tensors="pt").input_ids
    assert tokens[0].tolist() == stories.tokenizer().encode("Once upon a time" + STORY)
    found, expected = read(stories).logits(batch_of(tokens)), theirs(tokens).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    begin = len(tokenizer("Once upon a time").input_ids)
    assert expected[0, begin - 1 : -1].argmax(-1).tolist() == tokens[0, begin:].tolist()


def test_damaged_files(tmp_path):
    file = write(random_llama(), tmp_path / "x.gguf")
    whole = file.read_bytes()
    last = Header(file).tensors[-1].name
    cases = {
        len(whole) - 1000: ["truncated", f"tensor {last}"],
        300: ["header ends too early"],
        20: ["header ends too early"],
        0: ["not a GGUF file"],
    }
    for size, words in cases.items():
        file.write_bytes(whole[:size])
        fails(GGUF(file), *words)
    file.write_bytes(b"GGML" + whole[4:])
    fails(GGUF(file), "not a GGUF file")
    file.write_bytes(whole[:4] + struct.pack("<I", 1) + whole[8:])
    fails(GGUF(file), "version 1")
    file.write_bytes(whole.replace(b"\x05\x00\x00\x00\x00\x00\x00\x00llama", b"\x05\x00\x00\x00\x00\x00\x00\x00gemma", 1))
    fails(GGUF(file), "gemma", "only llama, qwen2, qwen3")
    file.write_bytes(whole[:8] + struct.pack("<Q", 2**60) + whole[16:])
    fails(GGUF(file), "damaged")


def test_by_name(tmp_path):
    file = write(random_llama(), tmp_path / "x.gguf")
    assert isinstance(open_pretrained(str(file)).source, GGUF)
    assert open_pretrained(str(file)).digest != open_pretrained(str(write(random_llama(1), tmp_path / "y.gguf"))).digest
