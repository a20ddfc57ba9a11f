"""LoRA: peft on transformers' LlamaForCausalLM is the oracle; stages with an adapter, resumed, merged and handed on."""

from __future__ import annotations

import json
from dataclasses import replace

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from lit_long.batch import Batch
from lit_long.config import AdapterConfig, ModelConfig, OptimConfig, UserError, read_command
from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.pretrained.export import copy_adapter
from lit_long.pretrained.weights import WEIGHTS, save_weights
from lit_long.stages.identity import identity_settings
from lit_long.stages.plan import make_plan
from lit_long.training.adapter import ADAPTER, add_adapter, count_trained, merge_adapter, save_adapted
from lit_long.training.optimizers import make_optimizer
from lit_long.training.run import train
from lit_long.training.throughput import update_flops
from tests.data.own import TEXTS, store_of, write_text
from tests.integration.mini import losses
from tests.integration.test_curriculum import ROPE, Interruption, stage

LORA, LONGLORA = AdapterConfig(rank=4), AdapterConfig(rank=4, train_embeddings_and_norms=True)
ADAPTERS = pytest.mark.parametrize("adapter", [LORA, LONGLORA, AdapterConfig(rank=2, targets=["up_proj", "down_proj"])])
TIED = pytest.mark.parametrize("tied", [False, True])


def shape(tied=False):
    return ModelConfig(
        vocab_size=96, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ffn=48, context=64, tie_embeddings=tied
    )


def llama(tied=False):
    model = Llama(shape(tied), build(ROPE, 8))
    model.init_weights(1)
    return model


def theirs_of(model):
    """transformers' model with the same weights."""
    c = model.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.d_model, intermediate_size=c.d_ffn, num_hidden_layers=c.n_layers, head_dim=c.head_dim,
        num_attention_heads=c.n_heads, num_key_value_heads=c.n_kv_heads, rms_norm_eps=c.norm_eps, max_position_embeddings=c.context,
        tie_word_embeddings=c.tie_embeddings, attn_implementation="eager",
    )  # fmt: skip
    other = transformers.LlamaForCausalLM(config)
    state = {n if n.startswith("lm_head") else f"model.{n}": t for n, t in model.state_dict().items()}
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return other


def batch():
    tokens = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(3))
    targets = tokens.roll(-1, 1)
    return Batch(tokens, targets, torch.zeros_like(tokens), torch.arange(24).expand(2, -1), False)


@ADAPTERS
@TIED
def test_flops_are_those_torch_counts(adapter, tied):
    """Frozen matrices have no gradient of their weights."""
    model, each = llama(tied), batch()
    add_adapter(model, adapter, 0)
    with FlopCounterMode(display=False) as counter:
        model(each)[0].backward()
    counted = sum(v for op, v in counter.get_flop_counts()["Global"].items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    full, causal = update_flops(model.config, each, (), adapter)
    attention = 12 * 2 * 32 * 2 * 24**2
    assert full - causal == attention / 2
    before = (
        ("q_proj", "k_proj", "v_proj")
        if "q_proj" in adapter.targets
        else ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")
    )
    idle = sum(  # of what comes before anything that is trained, nobody needs the gradient
        weight.numel()
        for name, weight in model.layers[0].named_parameters()
        if not adapter.train_embeddings_and_norms and name.split(".")[1] in before and "lora_B" not in name
    )
    assert counted == full - attention - 2 * 48 * idle


def shaken(model):
    """The trained parameters moved by something, so that an adapter is no longer nothing."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@ADAPTERS
@TIED
def test_loss_and_gradients_are_those_of_peft_on_transformers(adapter, tied):
    ours = llama(tied)
    theirs = peft.get_peft_model(theirs_of(ours), peft.LoraConfig(r=adapter.rank, lora_alpha=16, target_modules=adapter.targets))
    add_adapter(ours, adapter, 0)
    shaken(ours)
    twins = {name.removeprefix("base_model.model.").removeprefix("model."): p for name, p in theirs.named_parameters()}
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            twins[name].copy_(parameter)
            twins[name].requires_grad_(parameter.requires_grad)
    nats, tokens = ours(batch())
    logits = theirs(batch().tokens).logits.flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, batch().targets.flatten())
    assert float(nats / tokens) == pytest.approx(float(expected), abs=1e-5)
    (nats / tokens).backward()
    expected.backward()
    trained = [name for name, parameter in ours.named_parameters() if parameter.grad is not None]
    wanted = [
        n
        for n, _ in ours.named_parameters()
        if ".lora_" in n or (adapter.train_embeddings_and_norms and ("norm" in n or "embed" in n))
    ]
    assert trained == wanted and trained
    for name, parameter in ours.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, twins[name].grad, atol=1e-6, rtol=1e-4)


@ADAPTERS
@TIED
def test_merged_and_loaded_by_peft_are_the_adapted_model(adapter, tied, tmp_path):
    """Our merged weights, and peft's own loader with the adapter's folder on the base model in transformers."""
    ours = llama(tied)
    base = theirs_of(ours)
    before = ours.logits(batch())
    add_adapter(ours, adapter, 0)
    torch.testing.assert_close(ours.logits(batch()), before)  # an adapter begins as nothing
    adapted = shaken(ours).logits(batch())
    assert (adapted - before).abs().max() > 1e-2
    save_adapted(ours, adapter, tmp_path, "base", True)
    plain = llama(tied)
    plain.load_state_dict(load_file(tmp_path / WEIGHTS))
    torch.testing.assert_close(plain.logits(batch()), adapted, atol=1e-5, rtol=1e-4)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / ADAPTER)
    torch.testing.assert_close(theirs(batch().tokens).logits, adapted, atol=1e-4, rtol=1e-4)


def test_biases_and_norms_of_another_family_are_merged_too(tmp_path):
    """A bias stays with the matrix that was adapted; norms of queries and keys are trained as the others are."""

    def model():
        other = Llama(replace(shape(), qk_norm="head", norm="post", qkv_bias=True, o_bias=True), build(ROPE, 8))
        other.init_weights(1)
        return other

    ours = model()
    add_adapter(ours, LONGLORA, 0)
    adapted = shaken(ours).logits(batch())
    save_adapted(ours, LONGLORA, tmp_path, "base", True)
    trained = {name for name in load_file(tmp_path / ADAPTER / "adapter_model.safetensors") if "norm" in name}
    assert {name.split(".")[-2] for name in trained} == {
        *("norm", "q_norm", "k_norm", "post_attention_layernorm", "post_feedforward_layernorm")
    }
    plain = model()
    plain.load_state_dict(load_file(tmp_path / WEIGHTS))
    torch.testing.assert_close(plain.logits(batch()), adapted, atol=1e-5, rtol=1e-4)


def test_the_same_seed_gives_the_same_adapter():
    first, same, other = llama(), llama(), llama()
    for model, seed in ((first, 0), (same, 0), (other, 1)):
        add_adapter(model, LORA, seed)
    states = [model.state_dict() for model in (first, same, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    return store_of(folder / "store", write_text(folder / "text", TEXTS), validation_share=0.3).folder


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent")
    model = Llama(stage().model, build(ROPE, 8))
    model.init_weights(0)
    save_weights(model, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize("adapter", [LORA, LONGLORA])
def test_a_stage_with_an_adapter_resumed_and_handed_on(store, parent, tmp_path, adapter):
    config = replace(stage(times=1), adapter=adapter)
    results = {}
    for name, kill_at in (("straight", None), ("killed", 7)):
        folder = tmp_path / name
        folder.mkdir()

        def report(message, done, kill_at=kill_at):
            if kill_at and message.startswith(f"update {kill_at}/"):
                raise Interruption

        if kill_at:
            with pytest.raises(Interruption):
                train(config, folder, store, parent, report)
        results[name] = train(config, folder, store, parent, lambda *_: None)
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    assert losses(tmp_path / "straight")[-1] < losses(tmp_path / "straight")[0]
    ours, theirs = (load_file(tmp_path / name / WEIGHTS) for name in results)
    assert ours.keys() == load_file(parent / WEIGHTS).keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert json.loads((tmp_path / "straight" / ADAPTER / "adapter_config.json").read_text())["r"] == 4
    result = results["straight"]
    assert result["optimizer_bytes"] == 8 * result["trained_parameters"] < 8 * sum(t.numel() for t in ours.values())
    child = tmp_path / "child"
    child.mkdir()
    train(stage(updates=2, times=0), child, store, tmp_path / "straight", lambda *_: None)
    assert len(losses(child)) == 2


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_are_counted_as_the_optimizer_holds_them(name):
    """Muon has one of a matrix, and AdamW's two of embeddings and norms."""
    model, optim = llama(), OptimConfig(name=name)
    add_adapter(model, LONGLORA, 0)
    optimizer = make_optimizer(model, optim)
    model.logits(batch()).sum().backward()
    optimizer.step()
    held = sum(
        each.nbytes for state in optimizer.state.values() for each in state.values() if each.ndim
    )  # counts of steps have none
    assert count_trained(model, optim)["optimizer_bytes"] == held


def test_merging_by_hand():
    state = {"a.q_proj.base_layer.weight": torch.eye(2), "b.weight": torch.ones(1)}
    state |= {
        "a.q_proj.lora_A.default.weight": torch.tensor([[1.0, 2.0]]),
        "a.q_proj.lora_B.default.weight": torch.tensor([[3.0], [0.0]]),
    }
    found = merge_adapter(state, AdapterConfig(rank=1, alpha=2.0))
    assert found["a.q_proj.weight"].tolist() == [[7.0, 12.0], [0.0, 1.0]] and found.keys() == {"a.q_proj.weight", "b.weight"}


def test_merging_rounds_once():
    """To the number of bf16 that is nearest to the sum."""
    generator = torch.Generator().manual_seed(0)
    weight, a, b = (torch.randn(shape, generator=generator).bfloat16() for shape in ((64, 64), (4, 64), (64, 4)))
    state = {"q_proj.base_layer.weight": weight, "q_proj.lora_A.default.weight": a, "q_proj.lora_B.default.weight": b}
    found = merge_adapter(state, AdapterConfig(rank=4, alpha=1.0))["q_proj.weight"]
    assert torch.equal(found, (weight.double() + b.double() @ a.double() / 4).bfloat16())


def planned(*words):
    """Stages by name of the default experiment's only variant, rope."""
    return make_plan(read_command(["base=train", "position=rope", *words])).trials[0].stages


def test_an_adapter_is_a_part_of_a_stages_identity_and_none_is_not():
    plain, adapted = planned(), planned("stages.extend.adapter=longlora")
    assert planned("adapter=none")["extend"].identity == plain["extend"].identity != adapted["extend"].identity
    assert "adapter" not in identity_settings(plain["extend"].config)
    assert adapted["base"].identity == plain["base"].identity
    assert adapted["extend"].config.adapter == AdapterConfig(rank=8, train_embeddings_and_norms=True)


@pytest.mark.parametrize(
    "words, message",
    [
        (["adapter=lora"], r"stages\.base: adapter: there are no weights to adapt.*stages\.NAME\.adapter=lora"),
        (["stages.extend.adapter=lora", "stages.extend.adapter.targets=[q_pro]"], "no matrix 'q_pro'; did you mean 'q_proj'"),
        (["stages.extend.adapter.rank=-1"], r"adapter\.rank must be at least 0, not -1"),
        (["stages.extend.adapter.train_embeddings_and_norms=true"], r"adapter\.rank must be at least 1"),
    ],
)
def test_adapters_that_cannot_be(words, message):
    with pytest.raises(UserError, match=message):
        planned(*words)


def test_without_peft_it_says_so_before_anything_runs(monkeypatch):
    monkeypatch.setattr("lit_long.stages.resolve.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs peft, which is not installed: pip install 'lit-long\[lora\]'"):
        planned("stages.extend.adapter=lora")


def test_copying_the_adapter(tmp_path):
    with pytest.raises(UserError, match="there is no adapter in it"):
        copy_adapter(tmp_path, tmp_path / "out")
    model = llama()
    add_adapter(model, LORA, 0)
    save_adapted(model, LORA, tmp_path, "base", True)
    copy_adapter(tmp_path, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(UserError, match="is there already and not empty"):
        copy_adapter(tmp_path, tmp_path / "out")
