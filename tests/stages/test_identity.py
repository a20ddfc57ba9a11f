"""What a stage is known by: what differs from the defaults, and the same for everyone as long as nothing that counts changes.

identities.json   of sweeps that people run, the identity of every stage, in 0.1 and now
defaults.yaml     every default that an identity leaves out, and the version of each kind that it belongs to
Both are written again by `python -m tests.stages.pins`; read its difference before you commit it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from lit_long.config import (
    AdapterConfig,
    CurriculumConfig,
    DataConfig,
    InstructConfig,
    ModelConfig,
    SamplingConfig,
    SourceConfig,
    StageConfig,
    TrainerConfig,
    differing,
)
from lit_long.config.schema import PhaseConfig
from lit_long.config.typed import GPU_IDENTITY
from lit_long.stages.identity import KIND_VERSIONS, identity_settings, stage_identity
from lit_long.stages.identity_0_1 import identity_0_1
from tests.stages.pins import DEFAULTS, PINS, defaults, planned, same_everywhere

ROPE = {"scheme": "rope", "base": 10_000.0}


def stage(**settings) -> StageConfig:
    return StageConfig(tokens=1024, position=ROPE, **settings)


def newer(cls: type, **fields) -> type:
    """The dataclass with fields that a later version might have."""
    return dataclasses.make_dataclass(f"Newer{cls.__name__}", [(n, type(f.default), f) for n, f in fields.items()], bases=(cls,))


def test_a_new_setting_changes_no_identity():
    for kind in ("train", "evaluate"):
        before = stage(kind=kind, model=ModelConfig(d_model=64))
        model = newer(ModelConfig, qk_norm=dataclasses.field(default="none"))
        assert stage_identity(stage(kind=kind, model=model(d_model=64)), []) == stage_identity(before, [])
        assert stage_identity(stage(kind=kind, model=model(d_model=64, qk_norm="head")), []) != stage_identity(before, [])
        former = identity_0_1(before, ["corpus"])
        assert former and identity_0_1(stage(kind=kind, model=model(d_model=64)), ["corpus"]) == former
        assert identity_0_1(stage(kind=kind, model=model(d_model=64, qk_norm="head")), ["corpus"]) == ""  # 0.1 never ran that


def test_a_new_setting_in_a_list_or_a_mapping_changes_no_identity():
    source = newer(SourceConfig, language=dataclasses.field(default=""))
    before = DataConfig(sources={"mine": SourceConfig(content="abc")})
    assert differing(DataConfig(sources={"mine": source(content="abc")})) == differing(before)
    assert differing(DataConfig(sources={"mine": source(content="abc", language="de")})) != differing(before)


def test_what_counts_on_a_gpu_only_enters_there():
    trainer = newer(TrainerConfig, reduce=dataclasses.field(default="fp32", metadata=GPU_IDENTITY))
    on = {
        place: [stage(trainer=trainer(accelerator=place, reduce=kind)) for kind in ("fp32", "bf16")] for place in ("cpu", "gpu")
    }
    assert identity_settings(on["cpu"][0]) == identity_settings(on["cpu"][1])
    assert identity_settings(on["gpu"][0]) != identity_settings(on["gpu"][1])


def test_what_gpus_round_enters_there():
    """FSDP2 gathers rounded parameters on GPUs under bf16-mixed (training/precision.py): another stage than on one GPU or on CPUs, which are alike."""
    on = {
        (place, how, precision): identity_settings(
            stage(trainer=TrainerConfig(accelerator=place, strategy=how, precision=precision))
        )
        for place in ("cpu", "gpu")
        for how in ("single", "fsdp")
        for precision in ("bf16-mixed", "bf16-true")
    }
    assert on["gpu", "fsdp", "bf16-mixed"].pop("gathered") == "bf16"
    for precision in ("bf16-mixed", "bf16-true"):
        first, *others = (found for key, found in on.items() if key[2] == precision)
        assert all(found == first for found in others)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"trainer": TrainerConfig(devices=8, micro_batch_tokens=1, milestones=[0.5], spike=3.0)}, {}),
        ({"data": DataConfig(weights={"code": 1.0, "docs": 0.0})}, {"data": DataConfig(weights={"code": 1.0})}),
        ({"data": DataConfig(sources={"a": SourceConfig(text="body")})}, {"data": DataConfig()}),  # the store's identity says so
        ({"model": ModelConfig(init="/here")}, {"model": ModelConfig(init="/there")}),  # its content is an input
    ],
)
def test_what_does_not_count(one, other):
    assert identity_settings(stage(**one)) == identity_settings(stage(**other))


def test_what_counts():
    """Each of these is another stage than the plain one, and than the others."""
    loss = [{}, {"prompt_weight": 1.0}, {"packing": "single"}, {"divisor": "answers"}]
    loss = [InstructConfig("qa", **form) for form in loss]
    stages = [
        stage(),
        stage(seed=1),
        *(stage(trainer=TrainerConfig(on_bad_step="skip", spike=spike)) for spike in (0.0, 2.0)),
        stage(trainer=TrainerConfig(precision="bf16-true")),
        *(stage(adapter=AdapterConfig(rank=4, targets=targets)) for targets in (["q_proj"], [])),
        *(stage(data=DataConfig(packing=packing, mask_documents=False)) for packing in ("concat", "best_fit")),
        *(stage(data=DataConfig(weights={"a": 1.0}, sources={"a": SourceConfig(instruct=form)})) for form in loss),
    ]
    settings = [identity_settings(config) for config in stages]
    assert all(one not in settings[:number] for number, one in enumerate(settings))
    in_01 = [identity_0_1(stage, ["d"]) for stage in stages[-len(loss) :]]
    assert all(in_01[:-1]) and in_01[-1] == ""  # 0.1 always divided by the weights, and one of its folders would be taken


PHASES = {
    "one": [],
    "longer": [PhaseConfig(until=0.5, scale=0.25), PhaseConfig()],
    "growing": [PhaseConfig(grow_from=0.25)],
    "alike": [PhaseConfig(until=0.5), PhaseConfig()],
}
LONG = {"a": SamplingConfig(long_tokens=8, long_share=0.5)}


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"packing": "single"}, {"longer", "growing"}),
        ({"packing": "single", "sampling": LONG}, {*PHASES}),
        ({"packing": "single", "sampling": {"b": LONG["a"]}}, {"longer", "growing"}),  # b is not mixed
        ({"packing": "concat", "sampling": LONG}, set()),
        ({"packing": "single", "sources": {"a": SourceConfig(instruct=InstructConfig("qa"))}}, set()),  # whole
        ({"sources": {"a": SourceConfig(instruct=InstructConfig("qa", packing="single"))}}, {"longer", "growing"}),
        (
            {"sources": {"a": SourceConfig(instruct=InstructConfig("qa", packing="single"))}, "sampling": LONG},
            {"longer", "growing"},
        ),
    ],
)
def test_single_documents_are_placed_and_shared_otherwise_than_before(data, found):
    """Training on them is another stage than it was, and none of 0.1; other training is what it was."""
    for name, phases in PHASES.items():
        config = stage(data=DataConfig(weights={"a": 1.0}, **data), curriculum=CurriculumConfig(phases))
        assert ("single" in identity_settings(config), identity_0_1(config, ["d"]) == "") == (name in found, name in found)


@pytest.mark.parametrize(
    ("sources", "held_out"),
    [
        ([("qa", 0.1, ""), ("qa", 0.0, "")], "documents of all sources"),
        ([("qa", 0.1, ""), ("", 0.2, "")], "documents of all sources"),
        ([("qa", 0.1, ""), ("", 0.1, "(.*)-")], "documents of all sources"),
        ([("qa", 0.1, ""), ("qa", 0.1, ""), ("", 0.1, "")], "documents"),  # they hold out the same ones
        ([("qa", 0.0, ""), ("", 0.0, "(.*)-")], "documents"),
        ([("qa", 0.1, ""), ("messages", 0.2, "")], "documents"),
        ([("qa", 0.1, "")], "documents"),
        ([("", 0.1, ""), ("", 0.2, "")], None),
    ],
)
def test_data_whose_sources_ask_about_one_another_are_other_data(sources, held_out, monkeypatch):
    same_everywhere(monkeypatch.setattr)
    sources = {
        f"s{number}": SourceConfig(validation_share=share, split_by=names, instruct=InstructConfig(schema, template="plain"))
        for number, (schema, share, names) in enumerate(sources)
    }
    config = StageConfig(kind="data", data=DataConfig(sources=sources))
    assert identity_settings(config).get("held_out") == held_out
    assert bool(identity_0_1(config, ["d"])) == (
        held_out != "documents of all sources" and not any(one.split_by for one in sources.values())
    )


def test_a_changed_default_wants_a_new_version():
    """An identity leaves out what is at its default: a default that changes must change the version of the kinds that it counts for."""
    known = yaml.safe_load(DEFAULTS.read_text())
    for kind, now in defaults().items():
        then = known[kind]
        changed = {key for key, value in then["defaults"].items() if now["defaults"].get(key, "gone") != value}
        assert not changed or KIND_VERSIONS[kind] > then["version"], f"{kind}: raise KIND_VERSIONS: {sorted(changed)} changed"
        assert now == then, f"{kind}: new settings or a new version: write {DEFAULTS.name} again (python -m tests.stages.pins)"


@pytest.mark.parametrize("command", json.loads(PINS.read_text()))
def test_identities_are_what_they_were(command, monkeypatch):
    same_everywhere(monkeypatch.setattr)
    assert planned(command) == json.loads(PINS.read_text())[command]


def test_shipped_weights_are_taken_for_the_stages_that_made_them():
    for seed in (0, 1, 2):
        recipe = json.loads(Path(f"experiments/bases/mini-s{seed}/recipe.json").read_text())
        assert recipe["version"] == KIND_VERSIONS["train"]
