"""Every number has a range, which is checked before anything runs."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import math
from pathlib import Path
from typing import get_args, get_origin

import pytest

from lit_long.config import StageConfig, SweepConfig, UserError, read_command, typed
from lit_long.config.ranges import Count, Range
from lit_long.config.text import bare, field_types
from lit_long.positions import SCHEMES, TRANSFORMS, build
from lit_long.stages.plan import make_plan
from tests.integration.mini import REPOSITORY


@functools.cache
def checked_classes() -> set[type]:
    """All dataclasses that settings are read into: the arguments of `typed` in the package, found in its source, and positional encoders."""
    found = {*SCHEMES.values(), *TRANSFORMS.values()}
    for file in (REPOSITORY / "lit_long").rglob("*.py"):
        if "typed(" not in (source := file.read_text()):
            continue
        tree = list(ast.walk(ast.parse(source)))
        calls = [node for node in tree if isinstance(node, ast.Call) and node.args and getattr(node.func, "id", "") == "typed"]
        for name in {node.args[0].id for node in calls} - {"cls"}:
            module = ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
            homes = [
                node.module for node in tree if isinstance(node, ast.ImportFrom) for alias in node.names if alias.name == name
            ]
            found.add(getattr(importlib.import_module(homes[0] if homes else module), name))
    return found


def numbers(annotation, key):
    """(key, range or None) of every number that a type holds."""
    kind, _, notes = bare(annotation)
    if kind in (int, float):
        yield key, next((note for note in notes if isinstance(note, Range)), None)
    elif dataclasses.is_dataclass(kind):
        for f in dataclasses.fields(kind):
            if f.init and f.metadata.get("setting", True):
                yield from numbers(field_types(kind)[f.name], f"{key}.{f.name}")
    elif get_origin(kind):
        for argument in get_args(kind):
            yield from numbers(argument, key)


def test_every_number_that_is_read_has_a_range():
    classes = checked_classes()
    assert {"StageConfig", "SweepConfig", "ReportConfig", "PlanConfig", "MachinesConfig", "EvaluateConfig", "GenerateConfig", "ExportConfig",
            "TheoryConfig", "SearchConfig", "InstructCommand", "Options", "YaRN", "PoSE"} <= {cls.__name__ for cls in classes}  # fmt: skip
    found = dict(pair for cls in classes for pair in numbers(cls, cls.__name__))
    assert len(found) > 200
    assert not [key for key, allowed in found.items() if allowed is None]


def test_defaults_lie_in_their_ranges():
    for cls in checked_classes():
        for f in dataclasses.fields(cls):
            default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            kind, optional, _ = bare(field_types(cls)[f.name])
            if f.metadata.get("setting", True) and kind in (int, float) and default is not dataclasses.MISSING:
                ((key, allowed),) = numbers(field_types(cls)[f.name], f.name)
                assert (default is None and optional) or default in allowed or (cls.__name__, key) == ("Run", "context"), (
                    cls,
                    key,
                )


def test_a_number_without_a_range_is_found():
    assert dict(numbers(dict[str, Count] | None, "few")) == {"few": Range(least=1)}
    assert dict(numbers(dict[str, list[tuple[Count, float]]] | None, "few")) == {"few": None}


def nested(key, value):
    head, _, rest = key.partition(".")
    return {head: nested(rest, value) if rest else value}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.n_layers", -1, "model.n_layers must be at least 1, not -1"),
        ("model.n_layers", 0, "model.n_layers must be at least 1, not 0"),
        ("model.qk_norm", "heads", "model.qk_norm must be none, head or layer, not 'heads'"),
        ("optim.lr", -1, "optim.lr must be at least 0, not -1.0"),
        ("optim.lr", "nan", "optim.lr must be at least 0 and finite, not nan"),
        ("optim.lr", math.inf, "optim.lr must be at least 0 and finite, not inf"),
        ("optim.betas", [0.9, 1], "optim.betas[1] must be at least 0 and below 1, not 1.0"),
        ("optim.grad_clip", 0, "optim.grad_clip must be above 0, not 0.0"),
        ("seed", -1, "seed must be at least 0 and below 4,294,967,296, not -1"),
        ("data.weights", {"code": -1}, "data.weights.code must be at least 0, not -1.0"),
        ("data.weights", {"code": "nan"}, "data.weights.code must be at least 0 and finite, not nan"),
        ("data.repeats", {"code": -1}, "data.repeats.code must be at least 0"),
        ("data.max_epochs", -1, "data.max_epochs must be at least 0"),
        ("data.sampling", {"code": {"long_share": 1}}, "data.sampling.code.long_share must be at least 0 and below 1, not 1.0"),
        ("data.sampling", {"code": {"min_tokens": -1}}, "data.sampling.code.min_tokens must be at least 0"),
        ("data.sources", {"a": {"keep": 0}}, "data.sources.a.keep must be above 0 and at most 1, not 0.0"),
        ("data.sources", {"a": {"validation_share": 1.5}}, "data.sources.a.validation_share must be at least 0 and at most 1"),
        ("data.sources", {"a": {"instruct": {"prompt_weight": -1}}}, "data.sources.a.instruct.prompt_weight must be at least 0"),
        ("curriculum.phases", [{"weights": {"code": -1}}], "curriculum.phases[0].weights.code must be at least 0"),
        ("trainer.milestones", [0.5, 0], "trainer.milestones[1] must be above 0"),
        ("trainer.keep_checkpoints", 0, "trainer.keep_checkpoints must be at least 1"),
        ("trainer.spike", 0.9, "trainer.spike must be above 1, or 0 (a multiple of the median loss; 0 = no limit), not 0.9"),
        ("trainer.timeout_minutes", -1, "trainer.timeout_minutes must be at least 0"),
        ("trainer.devices", 0, "trainer.devices must be at least 1, not 0"),
        ("evaluation.passkey_lengths", [64], "evaluation.passkey_lengths[0] must be at least 128 (tokens), not 64"),
    ],
)  # fmt: skip
def test_numbers_out_of_range(key, value, message):
    with pytest.raises(UserError) as raised:
        typed(StageConfig, nested(key, value), "mine.yaml")
    assert str(raised.value).startswith(f"mine.yaml: {message}")


def test_what_borders_on_a_range_is_taken():
    typed(StageConfig, {"seed": 0, "optim": {"betas": [0, 0.5]}, "trainer": {"spike": 0, "threads": 0}, "tokens": 0}, "mine.yaml")
    typed(SweepConfig, {"launcher": {"grace_seconds": 0}}, "mine.yaml")
    with pytest.raises(UserError, match=r"mine\.yaml: launcher\.parallel must be at least 1, not 0"):
        typed(SweepConfig, {"launcher": {"parallel": 0}}, "mine.yaml")


@pytest.mark.parametrize("word", ["position.base=inf", "position.base=nan", "position.base=1", "grid.position.base=[1e4,-5]"])
def test_encoders_numbers_are_checked_at_planning(word):
    with pytest.raises(UserError, match=r"position_tiny\.yaml: stages\.\w+: position\.base must be above 1"):
        make_plan(read_command(["position=rope", word]))


def test_numbers_of_encoders_made_in_python_are_checked_too():
    with pytest.raises(UserError, match="factor must be at least 1"):
        SCHEMES["pi"](64, factor=0.5)
    with pytest.raises(UserError, match="length must be at least 1"):
        TRANSFORMS["randomised"](length=0)
    with pytest.raises(UserError, match="my.yaml: position.centre must be a finite number, not nan"):
        build({"scheme": "xpos", "centre": "nan"}, 64, "my.yaml")


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("plan", ["model=tiny", "context=0"], "context must be at least 1, not 0"),
        ("plan", ["model=tiny", "efficiency=nan"], "efficiency must be at least 0 and at most 1 and finite"),
        ("plan", ["experiment=position_tiny", "gpus=0"], "gpus must be at least 1"),
        ("theory", ["base=-5"], "base must be above 1, not -5"),
        ("theory", ["factor=inf"], "factor must be at least 1 (new context / old context) and finite"),
        ("theory", ["search=longrope", "stage=x", "population=2"], "population must be at least 3"),
        ("evaluate", ["out=x", "lengths=[0]"], "lengths[0] must be at least 1"),
        ("evaluate", ["out=x", "samples=-1"], "samples must be at least 0"),
        ("generate", ["prompt=x", "temperature=-0.5"], "temperature must be at least 0"),
        ("generate", ["prompt=x", "top_p=0"], "top_p must be above 0 and at most 1"),
        ("instruct.__main__", ["generate", "out=x", "turns=3"], "turns must be at least 1 and at most 2, not 3"),
        ("instruct.__main__", ["generate", "out=x", "endpoint.timeout=0"], "endpoint.timeout must be above 0"),
        ("data.__main__", ["inspect", "long=0"], "long must be at least 1"),
    ],
)
def test_commands_check_their_numbers_first(command, words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(f"lit_long.{command}").main(words) == 2
    assert f"error: command line: {message}" in capsys.readouterr().err
    assert not list(Path(tmp_path).iterdir())
