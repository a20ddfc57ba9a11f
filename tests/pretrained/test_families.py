"""Every family against transformers' own class, small and random, in fp32: logits, gradients of the loss, 64 greedy tokens, and out again, bit by bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lit_long.config import ModelConfig, UserError
from lit_long.generation import generate, prepack
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.export import write_huggingface
from lit_long.pretrained.families import DEFAULTS, FAMILIES, SWITCHES, write_switches
from tests.generation.llamas import prompts
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
}
SAME_AS_LLAMA = {"mistral"}  # without a window: what is written is a Llama


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
    write_huggingface(out, source.tensors(), source.shape, source.position, source.shape.context, None, "")
    return out


@pytest.mark.parametrize("case", CASES)
def test_in(folders, case):
    """Logits and gradients, fp32."""
    folder, theirs = folders(case)
    ours = read(folder)
    assert_same(theirs, ours, 100)
    batch = batch_of(torch.randint(0, 160, (2, 50), generator=torch.Generator().manual_seed(1)))
    logits = theirs(batch.tokens).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).backward()
    nats, count = ours.requires_grad_()(batch)
    (nats / count).backward()
    expected = {name.removeprefix("model."): parameter.grad for name, parameter in theirs.named_parameters()}
    theirs.zero_grad()
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max())), name


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
    family = "llama" if CASES[case][0] in SAME_AS_LLAMA else CASES[case][0]
    back, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert back.config.model_type == family and not any(
        info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
    )
    expected = dict(theirs.named_parameters())
    assert {name for name, _ in back.named_parameters()} == set(expected)
    for name, parameter in back.named_parameters():
        assert parameter.equal(expected[name]), name
    tokens = torch.arange(90).reshape(1, -1)
    with torch.no_grad():
        assert back(tokens).logits.equal(theirs(tokens).logits)
    assert open_pretrained(str(out)).shape == open_pretrained(str(folder)).shape


# ------------------------------------------------------------------------------------------- fields


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_config_may_leave_out(family):
    """The class's own defaults stand in."""
    usual = CONFIG_MAPPING[family](num_hidden_layers=4).to_dict()
    table = DEFAULTS | FAMILIES[family].defaults
    known = {key: value for key, value in table.items() if key in usual}
    if family in ("qwen2", "qwen3"):
        assert usual["sliding_window"] is None
    assert known == {key: usual[key] for key in known}
    assert usual["num_key_value_heads"] == table.get("num_key_value_heads", usual["num_attention_heads"])
    assert usual.get("head_dim") in (table.get("head_dim"), usual["hidden_size"] // usual["num_attention_heads"], None)


@pytest.mark.parametrize(
    ("case", "change", "words"),
    [
        ("qwen3", {"attention_bias": "yes"}, ["attention_bias must be true or false, not 'yes'"]),
        ("granite", {"logits_scaling": 0}, ["logits_scaling must be a number above 0, not 0"]),
        ("arcee", {"hidden_act": "silu"}, ["hidden_act='silu'", "only 'relu2'"]),
        ("qwen2", {"use_sliding_window": True}, ["use_sliding_window=True"]),
        ("mistral", {"sliding_window": 32}, ["sliding_window=32"]),
        ("qwen3", {"model_type": "gemma3_text"}, ["'gemma3_text'", "1 + weight", "qwen3, olmo2"]),
        ("qwen3", {"model_type": "qwen33"}, ["'qwen33'", "did you mean 'qwen3'"]),
        ("olmo2", {"model_type": "llama"}, ["layernorm.weight is not in the model"]),  # the norms stand elsewhere
        ("qwen3", {"model_type": "llama"}, ["k_norm.weight is not in the model"]),
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
    edit_config(folder, lambda config: {key: value for key, value in config.items() if key != "sliding_window"})
    with pytest.raises(UserError, match="sliding_window=4096, the default where it is absent, is not"):
        read(folder)


def test_switches_without_a_class():
    with pytest.raises(UserError, match="no class that computes model.qk_norm=layer"):
        write_switches(ModelConfig(qk_norm="layer"))
    with pytest.raises(UserError, match="model.qk_norm=head and model.activation=relu2"):
        write_switches(ModelConfig(qk_norm="head", activation="relu2"))


def test_every_switch_has_a_family():
    """Alone, or with what its family has set."""
    written = {
        write_switches(
            replace(ModelConfig(), **family.always, **{name: 2.0 for name in SWITCHES if (name,) == family.fields.get(name)})
        )["model_type"]
        for family in FAMILIES.values()
    }
    assert written == FAMILIES.keys() - SAME_AS_LLAMA
