"""Every family against transformers' own class, small and random, in fp32: logits, gradients of the loss, 64 greedy tokens, and out again, bit by bit."""

from __future__ import annotations

import importlib
import inspect
import re
from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from lit_long.config import LayerGroupConfig, LayersConfig, ModelConfig, UserError
from lit_long.generation import generate, prepack
from lit_long.model.llama import Llama
from lit_long.planning.flops import parameters
from lit_long.planning.memory import weights
from lit_long.positions import build
from lit_long.positions.layers import build_layers
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.export import write_huggingface
from lit_long.pretrained.families import DEFAULTS, FAMILIES, complete, layer_types, rotation_config, write_family
from lit_long.pretrained.rope_config import position_from_hf, trained_context
from tests.generation.llamas import prompts
from tests.planning.jobs import job
from tests.pretrained.llamas import assert_same, batch_of, edit_config, read, save

SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default"},
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BIASED = {"attention_bias": True, "mlp_bias": True}
MULTIPLIED = {"embedding_multiplier": 6.0, "residual_multiplier": 0.22, "attention_multiplier": 0.125, "logits_scaling": 8.0}
FULL, SLIDING, WINDOW = "full_attention", "sliding_attention", 12  # tokens; texts are longer
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 500_000.0}
YARN |= {"attention_factor": 1.138629436111989}
TWO_ROTATIONS = {FULL: YARN, SLIDING: {"rope_type": "default", "rope_theta": 10_000.0}}
CASES = {  # one of each family at least; what they share (biases, tied heads) where they differ in it
    "llama-biased": ("llama", BIASED),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3-biased": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 8}),
    "olmo2": ("olmo2", {}),
    "granite": ("granite", MULTIPLIED | {"tie_word_embeddings": True}),
    "granite-biased": ("granite", MULTIPLIED | BIASED),
    "arcee": ("arcee", {}),
    "arcee-biased": ("arcee", BIASED),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": WINDOW}),
    "ministral": ("ministral", {"head_dim": 16, "sliding_window": WINDOW, "layer_types": [FULL, SLIDING, SLIDING, FULL]}),
    "qwen2-windows": ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}),
    "qwen3-windows": (
        "qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": WINDOW, "layer_types": [FULL, SLIDING, FULL, SLIDING]},
    ),
    "smollm3": ("smollm3", {}),
    "smollm3-windows": (
        "smollm3",
        BIASED
        | {
            "no_rope_layers": [0, 1, 1, 1],
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": [FULL, *[SLIDING] * 3],
        },
    ),
    "olmo3": ("olmo3", {"sliding_window": WINDOW, "rope_parameters": TWO_ROTATIONS}),
    "exaone4": ("exaone4", {"sliding_window": WINDOW}),
    "exaone4-full": ("exaone4", {"sliding_window": None, "layer_types": [FULL] * 4}),
    "phi3": ("phi3", {}),
}
OUT = {
    "mistral": "llama",
    "ministral": "smollm3",
    "phi3": "llama",
}  # the class that an export names, where another computes the same


def random_model(family: str, seed: int = 0, **fields):
    """transformers' model with weights large enough for attention to matter, and random norms and biases; signs in the last norm keep a tied head from
    saying the same token again."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**SIZES | fields)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0 if "embed" in name else 8.0)
            else:
                parameter.uniform_(-0.2, 0.2) if name.endswith("bias") else parameter.uniform_(0.5, 1.5)
        model.model.norm.weight[::2] *= -1
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every case's folder as transformers saves it, and its model."""
    place, made = tmp_path_factory.mktemp("families"), {}

    def get(case: str):
        if case not in made:
            family, fields = CASES[case]
            model = random_model(family, **fields)
            made[case] = save(model, place / case), model
        return made[case]

    return get


def export(folder, out):
    source = open_pretrained(str(folder))
    write_huggingface(out, source.tensors(), source.shape, source.position, source.shape.context, None, "", layers=source.layers)
    return out


@pytest.mark.parametrize("case", CASES)
def test_in(folders, case):
    """Logits beyond the window."""
    folder, theirs = folders(case)
    assert_same(theirs, read(folder), 100)


@pytest.mark.parametrize("case", CASES)
def test_plan(folders, case):
    """What is planned with: all parameters, as many as the class has."""
    folder, theirs = folders(case)
    shape = open_pretrained(str(folder)).shape
    assert parameters(shape) == sum(parameter.numel() for parameter in theirs.parameters())
    assert weights(job(shape)).all == parameters(shape)


@pytest.mark.parametrize("case", CASES)
def test_train(folders, case):
    """Gradients of the loss."""
    folder, theirs = folders(case)
    ours = read(folder)
    batch = batch_of(torch.randint(0, 160, (2, 50), generator=torch.Generator().manual_seed(1)))
    logits = theirs(batch.tokens).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).backward()
    nats, count = ours.requires_grad_()(batch)
    (nats / count).backward()
    source, expected = open_pretrained(str(folder)), {}
    for name, parameter in theirs.named_parameters():
        expected |= source.split(name.removeprefix("model."), parameter.grad)
    theirs.zero_grad()
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert found.keys() == expected.keys()
    least = 1e-6 * max(
        float(gradient.abs().max()) for gradient in expected.values()
    )  # without positions a bias of keys changes nothing
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=max(least, 1e-4 * float(gradient.abs().max()))), name


@pytest.mark.parametrize("case", CASES)
def test_generate(folders, case):
    """64 greedy tokens of two rows of unequal length, plain and packed for a CPU."""
    folder, theirs = folders(case)
    theirs.generation_config.eos_token_id = None
    rows, expected = prompts(40, 23), []
    for row in rows:
        ways = {"attention_mask": torch.ones(1, len(row)), "max_new_tokens": 64, "do_sample": False, "pad_token_id": 0}
        expected.append(theirs.generate(torch.tensor([row]), **ways)[0, len(row) :].tolist())
    ours = read(folder)
    assert generate(ours, rows, 64) == expected
    assert len(set().union(*expected)) > 8  # not one token over and over
    prepack(ours, len(rows))
    assert generate(ours, rows, 64) == expected


@pytest.mark.parametrize("case", CASES)
def test_out(folders, case, tmp_path):
    """The same class, bits and answers as before; and in again."""
    folder, theirs = folders(case)
    out = export(folder, tmp_path / "out")
    family = OUT.get(case, CASES[case][0])
    back, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert back.config.model_type == family and not any(
        info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
    )
    expected = dict(theirs.named_parameters())
    if family == "llama":
        expected = {
            name if name.startswith("lm_head") else f"model.{name}": tensor for name, tensor in read(folder).named_parameters()
        }
    assert {name for name, _ in back.named_parameters()} == set(expected)
    for name, parameter in back.named_parameters():
        assert parameter.equal(expected[name]), name
    tokens = torch.arange(90).reshape(1, -1)
    with torch.no_grad():
        if case == "phi3":  # a fused product rounds otherwise, by less in fp64
            found, wanted = (deepcopy(model).double()(tokens).logits for model in (back, theirs))
            assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-10)
        else:
            assert back(tokens).logits.equal(theirs(tokens).logits)
    ours, before = open_pretrained(str(out)), open_pretrained(str(folder))
    assert (ours.shape, ours.position, ours.layers) == (before.shape, before.position, before.layers)


# ------------------------------------------------------------------------------------------- fields


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_config_may_leave_out(family):
    """The class's own defaults stand in."""
    usual = CONFIG_MAPPING[family](num_hidden_layers=4).to_dict()
    table = DEFAULTS | FAMILIES[family].defaults
    known = {key: value for key, value in table.items() if key in usual}
    if "max_window_layers" in usual:  # without use_sliding_window the window is taken away
        assert CONFIG_MAPPING[family](use_sliding_window=True).sliding_window == known.pop("sliding_window")
    assert known == {key: usual[key] for key in known}
    assert usual["num_key_value_heads"] == table.get("num_key_value_heads", usual["num_attention_heads"])
    assert usual.get("original_max_position_embeddings") == table.get("original_max_position_embeddings")
    assert usual.get("head_dim") in (table.get("head_dim"), usual["hidden_size"] // usual["num_attention_heads"], None)
    types = layer_types(complete({"model_type": family, "num_hidden_layers": 4}, ""), "")
    assert types == usual.get("layer_types", [SLIDING if usual.get("sliding_window") else FULL] * 4)


LONG = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize("at_top", [{}, {"original_max_position_embeddings": 2048}])
@pytest.mark.parametrize("in_group", [{}, {"original_max_position_embeddings": 8192}])
def test_the_original_context_of_phi3(at_top, in_group):
    """4,096 tokens where the top says nothing, whatever the group says."""
    fields = SIZES | {"max_position_embeddings": 131_072, "rope_parameters": None, "rope_theta": 1e4} | at_top
    fields |= {"rope_scaling": LONG | in_group}
    theirs = Phi3RotaryEmbedding(CONFIG_MAPPING["phi3"](**deepcopy(fields)))
    config = rotation_config(complete({"model_type": "phi3"} | fields, ""), "")
    found = position_from_hf(config, "")
    assert found["original"] == theirs.config.rope_parameters["original_max_position_embeddings"]
    assert build(found, 16).attention_factor(9000) == pytest.approx(theirs.attention_scaling, rel=1e-6)
    assert trained_context(config, "") == 131_072


# Fields that transformers' classes read and that decide nothing here, besides sizes and what rope_config.py reads
SIZED = {"hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "vocab_size"}
ROTATION = {"rope_parameters", "max_position_embeddings", "original_max_position_embeddings"}
IDLE = {"_attn_implementation", "attention_dropout", "resid_pdrop", "pad_token_id"}  # dropout is for training only


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_that_a_class_reads_is_known(family):
    """In transformers' own code of the class."""
    source = inspect.getsource(importlib.import_module(f"transformers.models.{family}.modeling_{family}"))
    fields = set(re.findall(r"config\.([a-z_]+)", source)) - SIZED - ROTATION - IDLE
    own = FAMILIES[family]
    known = DEFAULTS.keys() | own.defaults.keys() | own.fields.keys() | own.only.keys()
    known |= {"layer_types"} if own.windows == "types" else set()
    known |= {"no_rope_layers"} if family == "smollm3" else set()
    assert fields - {"get_text_config"} <= known


def without(*names):
    return lambda config: {key: value for key, value in config.items() if key not in names}


@pytest.mark.parametrize(
    ("case", "change", "words"),
    [
        ("qwen3", {"attention_bias": "yes"}, ["attention_bias must be true or false, not 'yes'"]),
        ("granite", {"logits_scaling": 0}, ["logits_scaling must be a number above 0, not 0"]),
        ("arcee", {"hidden_act": "silu"}, ["hidden_act='silu'", "only 'relu2'"]),
        ("qwen3", {"model_type": "gemma3_text"}, ["'gemma3_text'", "1 + weight", "qwen3, olmo2"]),
        ("mistral", {"model_type": "ministral3"}, ["'ministral3'", "queries grow"]),
        ("qwen3", {"model_type": "qwen33"}, ["'qwen33'", "did you mean 'qwen3'"]),
        ("olmo2", {"model_type": "llama"}, ["layernorm.weight is not in the model"]),  # the norms stand elsewhere
        ("qwen3", {"model_type": "llama"}, ["k_norm.weight is not in the model"]),
        ("mistral", {"sliding_window": 0}, ["sliding_window must be a whole number above 0, or null, not 0"]),
        ("qwen3", {"layer_types": [SLIDING] * 4}, ["layers of type sliding_attention", "not used"]),
        ("qwen3", {"layer_types": [FULL] * 3}, ["layer_types", "4 layers"]),
        ("ministral", {"layer_types": ["chunked_attention"] * 4}, ["'chunked_attention'"]),
        ("smollm3", {"no_rope_layers": [1, 1]}, ["no_rope_layers", "4 layers"]),
        ("smollm3", {"no_rope_layers": "1110"}, ["no_rope_layers", "4 layers"]),
        ("smollm3", {"no_rope_layers": 3}, ["no_rope_layers", "4 layers"]),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, ["no_rope_layer_interval", "above 0, not 0"]),
        ("exaone4", {"layer_types": None, "sliding_window_pattern": 0}, ["sliding_window_pattern=0", "layer_types"]),
        ("exaone4", {"layer_types": None, "sliding_window_pattern": None}, ["sliding_window_pattern=None", "layer_types"]),
        ("qwen2-windows", {"layer_types": None, "max_window_layers": None}, ["max_window_layers=None", "layer_types"]),
        ("qwen3", {"tie_word_embeddings": "false"}, ["tie_word_embeddings must be true or false, not 'false'"]),
        ("qwen3", {"use_sliding_window": "false"}, ["use_sliding_window must be true or false, not 'false'"]),
        ("phi3", {"rope_parameters": "longrope"}, ["rope_parameters must be a group of settings, not 'longrope'"]),
        ("qwen3", {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": "x"}, ["rope_scaling must be a group"]),
        ("olmo3", {"rope_parameters": {"rope_type": "default", "rope_theta": 8e6}}, ["no group full_attention", "500,000"]),
        ("olmo3", {"rope_parameters": {FULL: YARN}}, ["no group sliding_attention"]),
        (
            "olmo3",
            {"rope_parameters": None, "rope_theta": 8e6},
            ["rope_theta=8000000.0", "500,000", "a group for full_attention"],
        ),
        ("olmo3", {"sliding_window": None}, ["sliding_window is null"]),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            ["partial_rotary_factor"],
        ),
        ("phi3", {"rope_parameters": YARN | {"rope_theta": 1e4}}, ["rope_type", "'yarn'", "longrope"]),
        ("phi3", {"num_key_value_heads": 4}, ["qkv_proj.weight has 128 rows, not 192"]),
    ],
)
def test_what_is_not_computed(folders, tmp_path, case, change, words):
    folder = save(folders(case)[1], tmp_path)
    edit_config(folder, lambda config: config | change)
    with pytest.raises(UserError) as caught:
        read(folder)
    for word in (str(folder), *words):
        assert word in str(caught.value), caught.value


def test_a_window_by_default_is_not_overlooked(folders, tmp_path):
    """A Mistral that names no window has one of 4,096 tokens."""
    folder = save(folders("mistral")[1], tmp_path)
    edit_config(folder, without("sliding_window"))
    assert [group.window for group in open_pretrained(str(folder)).layers.groups.values()] == [4096]


def test_the_old_layout_of_olmo3(folders, tmp_path):
    """As it was released: one base, and a scaling that is for full layers only."""
    folder = save(
        random_model(
            "olmo3", sliding_window=WINDOW, rope_parameters={FULL: YARN, SLIDING: TWO_ROTATIONS[SLIDING] | {"rope_theta": 5e5}}
        ),
        tmp_path,
    )
    scaling = {key: value for key, value in YARN.items() if key != "rope_theta"}
    edit_config(folder, lambda config: without("rope_parameters")(config) | {"rope_theta": 500_000.0, "rope_scaling": scaling})
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert_same(theirs, read(folder), 100)
    assert open_pretrained(str(folder)).layers.groups["local"].position == {"scheme": "rope", "base": 500_000.0}


# ------------------------------------------------------------------------------------------------------------ the way out

ROPE, NOPE = {"scheme": "rope", "base": 10_000.0}, {"scheme": "nope"}


def layers(pattern: str, **groups) -> LayersConfig:
    return LayersConfig({name: LayerGroupConfig(**group) for name, group in groups.items()}, list(pattern))


@pytest.mark.parametrize(
    ("switches", "own", "family"),
    [
        ({}, layers("gl", g={"position": NOPE}, l={"window": 8}), "smollm3"),  # SWAN, RNoPE-SWA
        ({}, layers("g", g={"position": NOPE}), "smollm3"),
        ({}, layers("l", l={"window": 8}), "mistral"),
        ({}, layers("lg", g={"position": ROPE}, l={"window": 8}), "smollm3"),  # the stage's own position, said again
        ({"qk_norm": "head", "qkv_bias": True, "o_bias": True}, layers("lg", g={}, l={"window": 8}), "qwen3"),
        ({"qk_norm": "layer", "norm": "post"}, layers("lg", g={}, l={"window": 8, "position": ROPE | {"base": 2e4}}), "olmo3"),
        ({"qk_norm": "head", "norm": "post"}, layers("lg", g={"position": NOPE}, l={"window": 8}), "exaone4"),
    ],
)
def test_variants_go_out_as_the_class_that_computes_them(switches, own, family, tmp_path):
    """From scratch: the class of transformers has our logits, beyond the window."""
    shape = ModelConfig(
        vocab_size=160, d_model=64, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=16, d_ffn=96, context=128, **switches
    )
    ours = Llama(shape, build_layers(own, ROPE, 16))
    ours.init_weights(0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(6.0 if parameter.ndim > 1 else 1.0)
    write_huggingface(tmp_path / "out", ours.named_parameters(), shape, ROPE, 128, None, "", layers=own)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.config.model_type == family
    assert_same(theirs, ours, 100)
    assert_same(theirs, read(tmp_path / "out"), 100)


@pytest.mark.parametrize(
    ("switches", "own", "words"),
    [
        ({"qk_norm": "layer"}, LayersConfig(), "no class that computes model.qk_norm=layer, so"),
        ({"qk_norm": "head", "activation": "relu2"}, LayersConfig(), "model.qk_norm=head and model.activation=relu2"),
        ({}, layers("ab", a={"window": 8}, b={"window": 9}), "layers.pattern=.a, b."),
        ({}, layers("ab", a={"query_scale": {"form": "log", "base": 100}}, b={}), "query scales"),
        ({}, layers("ab", a={"position": ROPE | {"base": 500.0}}, b={}), "layers.pattern"),
        (
            {"norm": "post", "qk_norm": "layer"},
            layers("ab", a={"position": NOPE}, b={"window": 8}),
            "model.norm=post and layers.pattern",
        ),
    ],
)
def test_variants_without_a_class(switches, own, words):
    with pytest.raises(UserError, match=words):
        write_family(ModelConfig(**switches), ROPE, 128, own)


@pytest.mark.parametrize("switches", [{"qkv_bias": True}, {"qk_norm": "head"}, {"qk_norm": "layer", "norm": "post"}])
def test_nope_is_blamed_where_its_twin_can_go_out(switches):
    """p_rope with fraction 0, as the message advises."""
    with pytest.raises(UserError, match=r"position.scheme=nope cannot be exported .* position=p_rope with fraction=0"):
        write_family(ModelConfig(**switches), NOPE, 128)
    assert write_family(ModelConfig(**switches), {"scheme": "p_rope", "fraction": 0.0}, 128)["architectures"]
    with pytest.raises(UserError, match="no class that computes model.qk_norm=layer, so"):
        write_family(ModelConfig(qk_norm="layer"), NOPE, 128)
