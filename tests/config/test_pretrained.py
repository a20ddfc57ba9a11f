"""What pretrained weights bring into the settings, and what may not be said beside them."""

from __future__ import annotations

import pytest

from lit_long.config import UserError, read_command
from lit_long.data.tokenizer import train_tokenizer
from lit_long.stages.plan import make_plan
from tests.pretrained.gguf_files import tokens_of, write
from tests.pretrained.llamas import random_llama, save
from tests.pretrained.test_families import random_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = save(
        random_llama(vocab=300, rope={"rope_type": "linear", "rope_theta": 7000.0, "factor": 2.0}),
        tmp_path_factory.mktemp("llama"),
    )
    train_tokenizer(["some text, and some more text"], 280).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}')
    return folder


@pytest.fixture
def stage(llama, tmp_path):
    """Settings of the only stage of an experiment on those weights."""

    def settings(*words, **layers):
        file = tmp_path / "mine.yaml"
        file.write_text(
            f"stages: {{extend: {{context: 256, tokens: 1k, tokens_per_update: 256}}}}\nreport: {{rows: extend}}\n{layers.get('yaml', '')}"
        )
        (trial,) = make_plan(read_command([f"experiment={file}", f"model.init={llama}", *words])).trials
        return trial.stages["extend"].config

    return settings


def test_shape_tokenizer_and_encoder_come_along(stage, llama):
    config = stage()
    assert (config.model.n_heads, config.model.vocab_size, config.model.rope_base) == (4, 300, 7000.0)
    assert config.position == {"scheme": "pi", "base": 7000.0, "factor": 2.0}
    assert config.data.corpus.tokenizer == str(llama) and config.data.corpus.vocab_size == 300
    assert stage("position=pretrained").position == config.position


def test_a_named_encoder_replaces_theirs(stage):
    assert stage("position=rope").position == {"scheme": "rope", "base": 7000.0}
    assert stage("position=abf").position["base"] == 50 * 7000.0
    assert stage(yaml="position: yarn").position["factor"] == 256 / 128  # 64 in config.json, which their scaling doubles
    trained = stage("position=pretrained", "position.training={transform: pose, window: 64, target: 256, chunks: 2}").position
    assert trained["scheme"] == "pi" and trained["training"]["window"] == 64


@pytest.fixture
def layered(stage, tmp_path):
    """The same of a SmolLM3 whose local layers have a window."""
    folder = tmp_path / "smollm3"
    window = {"use_sliding_window": True, "sliding_window": 16, "layer_types": [*["sliding_attention"] * 3, "full_attention"]}
    save(random_model("smollm3", **window, vocab_size=300), folder)
    train_tokenizer(["some text, and some more text"], 280).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}')
    return lambda *words, **layers: stage(*words, f"model.init={folder}", **layers)


def test_layers_that_differ_come_along(layered):
    """A position said anew is for the layers that have one; one setting of a group goes on top, a named option replaces all."""
    config = layered()
    assert config.layers.pattern == ["local", "local", "local", "nope"]
    assert {name: (group.window, group.position) for name, group in config.layers.groups.items()} == {
        "local": (16, {}),
        "nope": (None, {"scheme": "nope"}),
    }
    assert config.position == {"scheme": "rope", "base": 10_000.0}
    extended = layered("position=abf")
    assert extended.layers == config.layers and extended.position["base"] == 500_000.0
    assert layered("layers.groups.local.window=64").layers.groups["local"].window == 64
    assert layered(yaml="layers: {groups: {local: {window: 32}}}").layers.groups["local"].window == 32
    assert layered("layers=uniform").layers.pattern == []
    assert layered("layers=smollm3").layers.pattern == ["rotated", "rotated", "rotated", "nope"]


def test_their_context_can_be_said(stage):
    """Of weights whose config.json leaves open whether it is before the scaling or after it."""
    assert stage().model.context == 128
    found = stage("model.context=64", "position=yarn")
    assert (found.model.context, found.position["original"], found.position["factor"]) == (64, 64, 4.0)


@pytest.mark.parametrize(
    ("words", "yaml", "message"),
    [
        (["model.n_layers=3"], "", "model.n_layers=3 contradicts the weights .* which have 2; leave it out"),
        ([], "model: {d_ffn: 1k}", "model.d_ffn=1024 contradicts"),
        (["model.vocab_size=300"], "", None),  # the same is no contradiction
    ],
)
def test_contradictions_are_named(stage, words, yaml, message):
    if message is None:
        stage(*words, yaml=yaml)
        return
    with pytest.raises(UserError, match=message):
        stage(*words, yaml=yaml)


def test_pretrained_needs_weights():
    with pytest.raises(UserError, match="position=pretrained is the encoder of the weights in model.init, which is not set"):
        make_plan(read_command(["position=pretrained", "base=train"]))


def test_their_content_is_their_identity(stage, llama, tmp_path):
    def identity(*words):
        file = tmp_path / "mine.yaml"
        return make_plan(read_command([f"experiment={file}", *words])).trials[0].stages["extend"].identity

    stage()
    moved = save(random_llama(vocab=300, rope={"rope_type": "linear", "rope_theta": 7000.0, "factor": 2.0}), tmp_path / "moved")
    other = save(
        random_llama(seed=1, vocab=300, rope={"rope_type": "linear", "rope_theta": 7000.0, "factor": 2.0}), tmp_path / "other"
    )
    for folder in (moved, other):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((llama / name).read_bytes())
    first = identity(f"model.init={llama}")
    assert identity(f"model.init={moved}") == first != identity(f"model.init={other}")


def test_a_base_that_a_file_leaves_unsaid(tmp_path):
    """The plan says that llama.cpp's was taken; position.base is another."""
    file = write(random_llama(vocab=40), tmp_path / "x.gguf", without=["rope.freq_base"], words=tokens_of(40))
    experiment = tmp_path / "mine.yaml"
    experiment.write_text("stages: {extend: {context: 256, tokens: 1k, tokens_per_update: 256}}\nreport: {rows: extend}\n")
    for words, base in ((), 1e4), (["position.base=5e5"], 5e5):
        plan = make_plan(read_command([f"experiment={experiment}", f"model.init={file}", *words]))
        assert plan.trials[0].stages["extend"].config.position == {"scheme": "rope", "base": base}
        notes = [note for note in plan.notes if "is converted once, into" not in note]  # true until a test has it read
        assert len(notes) == 1 and "names no llama.rope.freq_base" in notes[0]
