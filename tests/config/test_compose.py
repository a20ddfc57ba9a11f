"""Layers, grids and stages of the shipped experiment; errors as a user meets them on the command line."""

from __future__ import annotations

import time

import pytest
import yaml

from lit_long.config import UserError, plain, read_command
from lit_long.config.compose import resolve_interpolations
from lit_long.stages.plan import make_plan
from tests.data.public import stand_ins
from tests.integration.mini import REPOSITORY, run_here


def plan(*words):
    """The default experiment trains its base, instead of taking the one that came with lit-long; others run as they are."""
    base = [] if any(word.startswith("experiment=") for word in words) else ["base=train"]
    return make_plan(read_command([*base, *words]))


def stage(plan_, label):
    (found,) = [s for s in plan_.stages if plan_.label(s) == label]
    return found


def test_default_experiment_is_the_papers_geometry():
    default = plan()
    assert default.sweep.experiment == "position_tiny"
    assert [trial.variant for trial in default.trials] == ["rope", "pi", "abf", "xpos_abf"]
    positions = {trial.variant: trial.stages["extend"].config.position for trial in default.trials}
    assert positions["rope"] == {"scheme": "rope", "base": 10_000 * 256 / 4096}
    assert positions["pi"] == {"scheme": "pi", "base": 625, "factor": 8}
    assert positions["abf"] == {"scheme": "abf", "base": 500_000 * 2048 / 32_768}
    assert positions["xpos_abf"]["scale_base"] == 2048 / 4
    assert stage(default, "base").config.position == positions["rope"]
    assert stage(default, "base").config.model.vocab_size == 4096


def test_a_gpu_trains_compiled_and_in_large_micro_batches():
    """And they change no identity but by the precision: they say how a stage runs."""
    gpu, cpu = plan("trainer=gpu", "trainer.precision=32-true"), plan("trainer=cpu", "trainer.precision=32-true")
    trainer = stage(gpu, "extend rope").config.trainer
    assert (trainer.accelerator, trainer.compile, trainer.micro_batch_tokens, trainer.accumulate) == (
        "gpu",
        True,
        32_768,
        "sharded",
    )
    assert stage(cpu, "extend rope").config.trainer.compile is False
    assert [each.identity for each in gpu.stages] == [each.identity for each in cpu.stages]


def test_shared_stages_are_one():
    default = plan()
    assert len({trial.stages["base"].identity for trial in default.trials}) == 1
    assert len({trial.stages["extend"].identity for trial in default.trials}) == 4
    assert len(default.stages) == 1 + 2 + 2 * 4
    order = [s.identity for s in default.stages]
    for trial in default.trials:
        assert order.index(trial.stages["base"].identity) < order.index(trial.stages["extend"].identity)


def test_later_layers_win():
    # option file 3e-4 < the experiment's own for the stage < command line, for all stages or for one
    file = yaml.safe_load((REPOSITORY / "experiments" / "position_tiny.yaml").read_text())
    assert stage(plan(), "extend abf").config.optim.lr == float(file["stages"]["extend"]["optim"]["lr"]) != 3e-4
    assert stage(plan("optim.lr=1e-4"), "extend abf").config.optim.lr == 1e-4
    both = plan("optim.lr=1e-4", "stages.extend.optim.lr=5e-4")
    assert stage(both, "extend abf").config.optim.lr == 5e-4
    assert stage(plan(), "extend abf").config.optim.betas == (0.9, 0.95)
    # A stage that names an option of its own, as the base's recipe does, is reached by its own name only.
    recipe = yaml.safe_load((REPOSITORY / "experiments" / "bases" / "mini.yaml").read_text())
    assert stage(both, "base").config.optim.lr == float(recipe["optim"]["lr"])
    assert stage(plan("stages.base.optim.lr=5e-4"), "base").config.optim.lr == 5e-4


def test_one_value_leaves_that_variant():
    one = plan("position=abf", "position.base=1000", "seed=3")
    assert [(t.variant, t.seed) for t in one.trials] == [("abf", 3)]
    assert one.trials[0].stages["extend"].config.position == {"scheme": "abf", "base": 1000}
    # the base names its own encoder, so it keeps it
    assert one.trials[0].stages["base"].config.position == {"scheme": "rope", "base": 625}
    assert plan("stages.base.position=abf").trials[0].stages["base"].config.position["scheme"] == "abf"


def test_grids():
    swept = plan("grid.position=[rope,abf]", "grid.seed=[0,1]", "grid.optim.lr=[1e-3,2e-3]")
    assert len(swept.trials) == 8
    assert {t.variant for t in swept.trials} == {f"{p} lr={lr}" for p in ("rope", "abf") for lr in (0.001, 0.002)}
    assert {t.stages["extend"].config.optim.lr for t in swept.trials} == {1e-3, 2e-3}
    rates = plan(
        "grid.stages.base.optim.lr=[1e-3]",
        "grid.stages.extend.optim.lr=[2e-3]",
        "grid.trainer.compile=[false]",
        "grid.position=[abf]",
    )
    (trial,) = rates.trials
    assert trial.variant.split() == ["abf", "base.optim.lr=0.001", "extend.optim.lr=0.002", "compile=False"]
    files = {file.stem for file in (REPOSITORY / "configs" / "position").glob("*.yaml")}
    assert {t.variant for t in plan("grid.position=all").trials} == files - {
        "longrope",  # its factors are the user's to give
        "alibi",  # GPUs do not compute it
        "pretrained",  # it means nothing without model.init
    }


def test_evaluations_are_of_their_parents_model():
    default = plan()
    assert stage(default, "evaluate_base").config.position["base"] == 625
    assert stage(default, "evaluate abf").config.position["base"] == 31_250


def identities(*words):
    adamw = "stages.base.optim.name=adamw"  # which several ranks can share
    return {name: s.identity for name, s in plan("position=abf", adamw, *words).trials[0].stages.items()}


@pytest.mark.parametrize(
    ("word", "changed"),
    [
        ("trainer=fsdp trainer.context_parallel=2", set()),
        ("trainer.micro_batch_tokens=8k", set()),
        ("trainer.checkpoint_every=7", set()),
        ("validation.times=9", set()),
        ("root=elsewhere", set()),
        ("evaluation.sequences=3", {"evaluate", "evaluate_base"}),
        ("stages.extend.tokens=1M", {"extend", "evaluate"}),
        ("stages.extend.data.mask_documents=false", {"extend", "evaluate"}),
        ("position.base=7", {"extend", "evaluate"}),
        ("seed=1", {"base", "extend", "evaluate", "evaluate_base"}),
        ("model.n_layers=5", {"base", "extend", "evaluate", "evaluate_base"}),
        ("data.corpus.vocab_size=2k", {"corpus", "base", "extend", "evaluate", "evaluate_base"}),
    ],
)
def test_identity_is_what_a_stage_is_made_of(word, changed):
    before, after = identities("trainer.precision=32-true"), identities("trainer.precision=32-true", *word.split())
    assert {name for name in before if before[name] != after[name]} == changed


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("modle.n_layers=6", "command line: unknown key 'modle'; did you mean 'model'?"),
        ("model.n_layer=6", "unknown key 'model.n_layer'; did you mean 'model.n_layers'?"),
        ("n_layers=6", "unknown key 'n_layers'; did you mean 'model.n_layers'?"),
        ("tokens=5M", "did you mean 'stages.NAME.tokens'?"),
        ("model.n_layers=six", "model.n_layers must be a whole number"),
        ("experiment=position_tny", "there is no experiments/position_tny.yaml; did you mean 'position_tiny'?"),
        ("position=abff", "position=abff: there is no configs/position/abff.yaml; did you mean 'abf'?"),
        ("experiment=/nowhere/mine.yml", "experiment=/nowhere/mine.yml: there is no file /nowhere/mine.yml"),
        ("experiment=position_tny.yaml", "there is no file position_tny.yaml; did you mean 'position_tiny'?"),
        ("experiment=~nouser/mine.yaml", "experiment=~nouser/mine.yaml: the file must be a path whose ~ or ~NAME"),
        ("grid.position=[rope,xpos_abg]", "did you mean 'xpos_abf'?"),
        ("stages.bse.tokens=5", "unknown stage 'bse' in 'stages'; did you mean 'base'?"),
        ("stages.base.tokns=5", "unknown key 'stages.base.tokns'; did you mean 'stages.base.tokens'?"),
        ("stages.extend.parent=bas", "no stage 'bas'; did you mean 'base'?"),
        ("stages.base.parent=extend", "each other's parents"),
        ("position.factor=3", "unknown key 'position.factor'"),
        ("trainer.precision=bf8", "trainer.precision must be auto, 32-true, bf16-mixed, bf16-true, not 'bf8'"),
        (
            "stages.extend.context=3000",
            "must be a multiple of context=3000, whole sequences; take stages.extend.tokens_per_update=9000 or",
        ),
        ("stages.extend.tokens=0", "tokens must be at least 1 token"),
        ("report.rows=evalute", "report.rows: no stage 'evalute'; did you mean 'evaluate'?"),
        ("report.rows_also=[retrieve]", "report.rows_also: no stage 'retrieve'"),
        ("model.rope_base=${modle.context}", "modle"),
        ("--dry-run", "'--dry-run' is not of the form key=value"),
        ("show=everything", "only show=config is known"),
        ("tracking.uri=http://[host]:5000", "tracking.uri is no URI: 'host' does not appear to be"),
        ("tracking.uri=http://me:hunter2@host:5000", "tracking.uri has a password in it"),
    ],
)
def test_bad_words(word, message, tmp_path):
    finished = run_here("lit_long.sweep", word, f"root={tmp_path}")
    assert finished.returncode == 2
    assert message in finished.stderr and finished.stderr.startswith("error: ") and "Traceback" not in finished.stderr
    assert "hunter2" not in finished.stderr + finished.stdout
    assert not list(tmp_path.iterdir())


def test_bad_files_are_named(tmp_path):
    (tmp_path / "experiments").mkdir()
    file = tmp_path / "experiments" / "mine.yaml"
    for content, message in (
        ("a: [", "cannot be read"),
        ("- a", "must hold key: value"),
        ("seed: 1\nsed: 2\n", "unknown key 'sed'"),
    ):
        file.write_text(content)
        finished = run_here("lit_long.sweep", "experiment=mine", "dry_run=true", cwd=tmp_path)
        assert finished.returncode == 2 and "mine.yaml" in finished.stderr and message in finished.stderr


def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text((REPOSITORY / "experiments" / "position_tiny.yaml").read_text())
    assert read_command(["experiment=~/mine.yaml"]).file == tmp_path / "mine.yaml"


@pytest.mark.parametrize("name", ["stages", "submitit", "theory", "evaluate", "instruct"])
def test_names_that_are_taken(tmp_path, name):
    """runs/stages holds the stages of all sweeps, runs/submitit the jobs of all launchers; records of evaluations are those of an experiment called evaluate."""
    (tmp_path / f"{name}.yaml").write_text((REPOSITORY / "experiments" / "position_tiny.yaml").read_text())
    with pytest.raises(UserError, match=f"{name}.yaml: no experiment can be called {name}: .*; rename the file"):
        read_command([f"experiment={tmp_path / name}.yaml"])


def test_users_own_folders_come_first(tmp_path):
    (tmp_path / "configs" / "model").mkdir(parents=True)
    text = (REPOSITORY / "configs" / "model" / "mini.yaml").read_text().replace("n_layers: 4", "n_layers: 2")
    (tmp_path / "configs" / "model" / "mini.yaml").write_text(text)
    shown = run_here("lit_long.sweep", "show=config", f"root={tmp_path}", cwd=tmp_path)
    assert yaml.safe_load(shown.stdout)["stages"]["base"]["model"]["n_layers"] == 2


MODEL = {"d_model": 128, "n_heads": 2, "n_kv_heads": 2}


@pytest.mark.parametrize(
    ("settings", "key", "value"),
    [
        ({"model": MODEL | {"d_ffn": "${multiply:${model.d_model},2}"}}, "model.d_ffn", 256),
        ({"model": MODEL | {"d_ffn": "${.d_model}"}}, "model.d_ffn", 128),  # relative
        ({"model": MODEL | {"d_ffn": "${model.${trainer.loss}}"}, "trainer": {"loss": "d_model"}}, "model.d_ffn", 128),  # a name made of a value
        ({"model": MODEL | {"n_layers": "${oc.select:model.none,3}"}}, "model.n_layers", 3),
        ({"model": MODEL | {"n_layers": "${oc.select:model.n_heads,3}"}}, "model.n_layers", 2),
        ({"optim": {"min_lr_ratio": "${optim.betas.1}", "betas": [0.5, 0.75]}}, "optim.min_lr_ratio", 0.75),  # of a list
        ({"optim": {"betas": [0.5, "${divide:1,${model.n_heads}}"]}, "model": MODEL}, "optim.betas", (0.5, 0.5)),
        ({"optim": {"min_lr_ratio": "${optim.weight_decay}", "weight_decay": "${data.weights.code}"}, "data": {"weights": {"code": 0.125}}},
         "optim.min_lr_ratio", 0.125),  # from one to the next
        ({"data": {"weights": {"code": 0.25, "docs": "${data.weights.code}"}}}, "data.weights", {"code": 0.25, "docs": 0.25}),
        ({"optim": {"min_lr_ratio": "${data.weights.c-4}"}, "data": {"weights": {"c-4": 0.25}}}, "optim.min_lr_ratio", 0.25),
        ({"position": {"scheme": "rope", "base": 5.0}, "layers": {"groups": {"all": {"position": "${position}"}}}},
         "layers.groups.all.position", {"scheme": "rope", "base": 5.0}),  # a group
        # Groups under names that are no plain ones: whole, though only a part of them has interpolations
        ({"data": {"weights": {"a": 1.0, "b": "${seed}"}, "repeats": "${.weights}"}, "seed": 3}, "data.repeats", {"a": 1.0, "b": 3.0}),
        ({"layers": {"groups": {"a-1": {"position": {"scheme": "rope", "base": "${model.rope_base}"}}, "b": {"position": "${layers.groups.a-1.position}"}}}},
         "layers.groups.b.position", {"scheme": "rope", "base": 10_000.0}),
        ({"layers": {"groups": {"a": {"position": {"scheme": "rope", "base": "${model.rope_base}"}}, "b": {"position": "${..a.position}"}}}},
         "layers.groups.b.position", {"scheme": "rope", "base": 10_000.0}),
        ({"position": {"x": {1: {"a": "${seed}", "b": 2}}, "y": "${position.x.1}"}}, "position.y", {"a": 0, "b": 2}),
        ({"position": {"training": {"kind": "x", "length": "${context}"}, "copy": "${.training}"}}, "position.copy", {"kind": "x", "length": 4096}),
        ({"context": "${model.context}", "tokens": "${multiply:${context},4}", "model": {"context": "2k"}}, "tokens", 8192),
    ],
)  # fmt: skip
def test_interpolations(settings, key, value):
    found = resolve_interpolations(settings, "here")
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value
    assert "${" not in repr(plain(resolve_interpolations(settings, "here")))


def test_interpolations_see_what_another_point_says():
    """Names that are made of values name what is not in the text."""
    known, found = {}, []
    for keep in (0.25, 0.75):
        settings = {
            "optim": {"min_lr_ratio": "${${trainer.loss}.keep}"},
            "trainer": {"loss": "position"},
            "position": {"keep": keep},
        }
        found.append(resolve_interpolations(settings, "here", known).optim.min_lr_ratio)
    assert found == [0.25, 0.75]


def test_interpolations_of_nothing_are_refused():
    with pytest.raises(UserError, match="here: model: Interpolation key 'model.none' not found"):
        resolve_interpolations({"model": MODEL | {"n_layers": "${model.none}"}}, "here")


def test_unknown_resolvers_are_told_with_those_that_there_are():
    with pytest.raises(UserError, match="here: model: Unsupported interpolation type dvide; there are multiply, divide"):
        resolve_interpolations({"model": MODEL | {"n_layers": "${dvide:4,2}"}}, "here")


def test_an_option_that_every_point_replaces_is_refused(tmp_path):
    """Else the sweep would run without it, and say nothing."""
    words = [
        "experiment=layer_patterns",
        "layers=swan",
        "grid.trained=[short]",
        "grid.seed=[0]",
        f"root={tmp_path}",
        "dry_run=true",
    ]
    with pytest.raises(
        UserError, match=r"layers=swan would change nothing, since every point of grid.design names its own layers. Add a point"
    ):
        make_plan(read_command(words))
    point = "grid.design=[{name: mine, model.n_layers: 4}]"
    assert make_plan(read_command([*words, point])).trials[0].stages["base"].config.layers.pattern == [
        "global",
        "local",
        "local",
        "local",
    ]


def test_show_config_is_complete_and_dry_run_writes_nothing(tmp_path):
    shown = yaml.safe_load(run_here("lit_long.sweep", "model.n_layers=6", "show=config", f"root={tmp_path}").stdout)
    assert shown["stages"]["extend abf"]["model"]["n_layers"] == 6
    assert shown["stages"]["extend abf"]["position"] == {"scheme": "abf", "base": 31_250.0}
    assert "${" not in yaml.safe_dump(shown)
    assert "to run" in run_here("lit_long.sweep", "dry_run=true", f"root={tmp_path}").stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--help"], ["dry_run=true"], ["modle=1"], ["show=config"]])
def test_the_command_line_is_light(words, tmp_path):
    """Neither torch nor lightning nor mlflow is loaded. (The time is a benchmark, not a test.)"""
    code = (
        "import sys; from lit_long.sweep import main; main(sys.argv[1:]); "
        "heavy = {'torch', 'lightning', 'mlflow', 'grain', 'pandas', 'matplotlib'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    import subprocess
    import sys

    started = time.monotonic()
    finished = subprocess.run(
        [sys.executable, "-c", code, *words, f"root={tmp_path}"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    assert time.monotonic() - started < 30


def test_experiment_without_stages_is_refused(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "empty.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match="has no 'stages'"):
        make_plan(read_command([f"experiment={tmp_path}/experiments/empty.yaml"]))


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "configs").glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}"
)
def test_every_option_file_composes(file, tmp_path):
    long = ["stages.base.context=4k", "stages.base.tokens_per_update=4M", "stages.extend.context=32k"]
    long += ["stages.extend.tokens_per_update=4M"]
    factors = f"[{','.join(['1'] * 32)}]"
    given = {
        "longrope": [f"position.{name}={factors}" for name in ("short_factors", "long_factors")],
        "pretrained": ["model=smollm2-135m"],
        "gemma3": ["model.n_layers=6"],
    }
    if file.parent.name == "model" and "/" in (init := yaml.safe_load(file.read_text()).get("init", "")) and ":" not in init:
        given[file.stem] = ["model.init=", "model.context=4k"]  # weights on the hub
    words = [*given.get(file.stem, []), *(long if file.parent.name in ("model", "curriculum") else [])]
    if file.parent.name == "data":
        words += stand_ins(file.stem, tmp_path)  # for data on the hub
    if file.stem == "fsdp":
        words += ["trainer.context_parallel=2", "stages.base.optim.name=adamw"]  # few sequences an update; Muon is for one device
    group = "stages.extend.adapter" if file.parent.name == "adapter" else file.parent.name  # there is nothing to adapt in a base
    assert plan(f"{group}={file.stem}", *words).stages
