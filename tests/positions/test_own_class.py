"""A user's own class that cannot work is told before anything runs, with its file and line; one that works passes."""

from __future__ import annotations

import itertools
import re
import sys

import pytest

from lit_long.config import UserError
from lit_long.positions import build, build_transform, find
from lit_long.positions.analysis import TheoryConfig, encoders
from lit_long.positions.own_class import call
from lit_long.positions.query_scale import FORMS, QueryScale
from tests.integration.mini import run

NUMBERS = itertools.count()
HEAD = """from dataclasses import dataclass
from lit_long.positions import PositionalEncoder, PositionTransform
from lit_long.positions.query_scale import QueryScale
from lit_long.positions.schemes import RoPE
"""  # four lines
BEND = (
    HEAD
    + """
@dataclass(frozen=True)
class Bend(PositionalEncoder):
    base: float = 10_000.0

    def inverse_frequencies(self, length):
        return [self.base ** (-j) for j in range(self.head_dim // 2)]
"""
)
HALF = "return [self.base ** (-j) for j in range(self.head_dim // 2)]"
SIGNATURE = "def inverse_frequencies(self, length):"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of the user's, and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    made = []

    def write(code: str) -> str:
        made.append(f"own_class_{next(NUMBERS)}")
        (tmp_path / f"{made[-1]}.py").write_text(code)
        return made[-1]

    yield write
    for name in made:
        sys.modules.pop(name, None)


def refused(name: str, **settings) -> str:
    with pytest.raises(UserError) as caught:
        build({"scheme": f"{name}:Bend"} | settings, 64, "stage extend", 256)
    return str(caught.value).replace(name, "bend")


def bend(**changes: str) -> str:
    """`BEND` whose frequencies are, or whose signature is, another."""
    return BEND.replace(HALF, changes.get("returns", HALF)).replace(SIGNATURE, changes.get("signature", SIGNATURE))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (bend(returns="return [1.0] * self.head_dim"), ": inverse_frequencies returned 64 numbers, wanted 32, one for each rotated pair"),
        (bend(returns=HALF.removeprefix("return ")), ": inverse_frequencies returned None, not a list .* wanted 32.*; is its return missing"),
        (bend(returns="return 1.0"), "inverse_frequencies returned 1.0, not a list of numbers"),
        (bend(returns="return (1.0 for _ in range(32))"), "inverse_frequencies returned <generator .*, not a list of numbers"),
        (bend(returns="return [1.0] * 31 + [float('nan')]"), "inverse_frequencies returned nan for pair 31, wanted a finite number"),
        (bend(returns="return [10.0 ** 400] * 32"), r"OverflowError: .* \(bend.py, line 11, in inverse_frequencies\)"),
        (bend(returns="return [self.bass for _ in range(32)]"), r"AttributeError: .*'bass' \(bend.py, line 11, in inverse_frequencies\)"),
        (bend(returns="raise NotImplementedError"), r": NotImplementedError \(bend.py, line 11, in inverse_frequencies\)"),
        (bend(returns="return ['1'] * 32"), "inverse_frequencies returned '1' for pair 0"),
        (bend(returns="return [[1.0]] * 32"), r"inverse_frequencies returned \[1.0\] for pair 0"),
        (bend(returns="import numpy; return numpy.ones((32, 1))"), "inverse_frequencies returned array.*, not a list of numbers"),
        (bend(returns="return [self.bass] * 32"), r"AttributeError: .*'bass' \(bend.py, line 11, in inverse_frequencies\); did you mean 'base'"),
        (
            bend(signature="def inverse_frequencies(self):"),
            r"TypeError: .* \(bend.py, line 10\); it is called as inverse_frequencies\(length\)",
        ),
        (bend(signature="def inverse_freqs(self, length):"), "lacks the method 'inverse_frequencies'; is 'inverse_freqs' meant to be it"),
        (BEND.replace("(frozen=True)", ""), r"cannot be imported: TypeError: .* \(bend.py, line 6\); write @dataclass\(frozen=True\)"),
        (BEND.replace("@dataclass(frozen=True)\n", ""), r"must be a dataclass derived from Pos.*: write @dataclass\(frozen=True\) above class Bend, .* base can"),
        (BEND.replace("length):", "length)"), r"cannot be imported: SyntaxError: expected ':' \(bend.py, line 10\)"),
        (BEND + "\nHALF = 1 / 0\n", r"cannot be imported: ZeroDivisionError: division by zero \(bend.py, line 13\)"),
        (BEND + "\nimport no_such_module_at_all\n", r"cannot be imported: ModuleNotFoundError: .*at_all' \(bend.py, line 13\)$"),
        (BEND + "\nraise SystemExit\n", r"cannot be imported: SystemExit \(bend.py, line 13\); it ends the program"),
        (BEND + "    def validate(self):\n        self.base.above(1)\n", r"AttributeError: .*'above' \(bend.py, line 13, in validate\)"),
        (BEND + "    def validate(self):\n        self.base = 1.0\n", "bend.py, line 13, in validate.*; a setting stays as it was given"),
        (BEND + "    def validate(self):\n        self.require(True)\n", r"TypeError: .*require\(\) missing .*bend.py, line 13, in validate"),
        (BEND + "    def __init__(self, base=1.0):\n        pass\n", r"TypeError: .*'head_dim' \(bend.py, line 12\)"),
        (BEND.replace("float =", "flaot ="), r"NameError: name 'flaot' is not defined"),
        ("from __future__ import annotations\n" + BEND.replace("float =", "flaot ="), "types of its fields: NameError: name 'flaot' is not"),
        (BEND.replace("Bend(Pos", "Bent(Pos"), "cannot be imported: module 'bend' has no class 'Bend'; did you mean 'Bent'"),
        (BEND + "    def attention_factor(self, length):\n        pass\n", "attention_factor returned None, wanted a finite number"),
        (BEND + "    def score_slopes(self, heads):\n        return 0.5\n", "score_slopes returned 0.5, wanted None or a list"),
        (BEND + "    def score_slopes(self):\n        return None\n", r"line 12\); it is called as score_slopes\(heads\)"),
        (BEND + "    def require_length(self, length):\n        return lenth\n", r"NameError: .* \(bend.py, line 13, in require_length\)"),
        (HEAD + "class Bend(RoPE):\n    base = 5e5\n", "base in class Bend has no type, so that it changes no setting: write base: float"),
        (HEAD + "class Bend(RoPE):\n    slope: float = 1.0\n", "write @dataclass.* above class Bend, so that slope can be set"),
        (
            HEAD + "class Mid(RoPE):\n    slope: float = 1.0\n@dataclass(frozen=True)\nclass Bend(Mid):\n    twist: float = 1.0\n",
            "write @dataclass.* above class Mid, so that slope can be set",
        ),
        (
            HEAD + "class Bend(RoPE):\n    def inverse_frequencies(self, length):\n        return super().inverse_frequencies()\n",
            r"TypeError: .* \(bend.py, line 7, in inverse_frequencies\)",
        ),
        (
            HEAD + "class Bend(RoPE):\n    def validate(self):\n        object.__setattr__(self, 'base', '9')\n"
            "    def inverse_frequencies(self, length):\n        return super().inverse_frequencies(length)\n",
            r"TypeError: .* \(bend.py, line 9, in inverse_frequencies; raised in .*schemes.py, line \d+\)",
        ),
    ],
)  # fmt: skip
def test_a_class_that_cannot_work_is_told(module, code, message):
    said = refused(module(code))
    assert said.startswith("stage extend: position.scheme 'bend:Bend'") and re.search(message, said), said


def test_settings_are_named_where_the_class_is_a_dataclass(module):
    assert "unknown key 'position.bass'; did you mean 'position.base'?" in refused(module(BEND), bass=1)


@pytest.mark.parametrize("scheme", [":Bend", "bend:", ".bend:Bend", "a..b:Bend"])
def test_what_names_no_class_is_told(scheme):
    with pytest.raises(UserError, match="must be module:Class"):
        build({"scheme": scheme}, 64)


def test_a_missing_file_is_told():
    with pytest.raises(UserError, match="cannot be imported: .*'no_such_bend'; start the command in the folder"):
        build({"scheme": "no_such_bend:Bend"}, 64)


ROTATION = "\n    def rotation(self, positions, length):\n        return None\n"


@pytest.mark.parametrize(
    "code",
    [
        BEND,
        bend(returns="import numpy; return 2.0 ** -numpy.arange(self.head_dim // 2)"),
        bend(returns="return (1,) * 32"),
        bend(returns="raise NotImplementedError") + ROTATION,  # nobody asks for its frequencies
        bend(returns="pass") + ROTATION,
        bend(returns="return []") + ROTATION,
        BEND + "    def score_slopes(self, heads):\n        return [0.5] * heads\n",
        HEAD
        + "class Bend(RoPE):\n    def inverse_frequencies(self, length):\n        return super().inverse_frequencies(2 * length)\n",
        HEAD + "from typing import ClassVar\nclass Bend(RoPE):\n    made: ClassVar[int] = 0\n",
        HEAD
        + "class Bend(PositionalEncoder):\n    def inverse_frequencies(self, length):\n        return [1.0] * (self.head_dim // 2)\n",
        HEAD + "@dataclass(frozen=True)\nclass Bend(RoPE):\n    base: float = 5e5\n",
        HEAD + "@dataclass(frozen=True, slots=True, kw_only=True)\nclass Bend(RoPE):\n    base: float\n    slope: float = 1.0\n",
    ],
)
def test_a_class_that_works_passes(module, code):
    name = module(code)
    assert (
        type(
            build({"scheme": f"{name}:Bend", "base": 10} if "base: float" in code else {"scheme": f"{name}:Bend"}, 64, length=256)
        ).__name__
        == "Bend"
    )


def test_a_wrong_rotation_of_its_own_leaves_the_frequencies_checked(module):
    assert "returned 64 numbers" in refused(module(bend(returns="return [1.0] * 64") + ROTATION))


def test_errors_of_the_class_itself_and_interruptions_pass(module):
    assert refused(module(bend(returns="from lit_long.config import UserError; raise UserError(f'not {length}')"))) == "not 256"
    name = module(bend(returns="raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        build({"scheme": f"{name}:Bend"}, 64, length=256)
    with pytest.raises(KeyboardInterrupt):
        find(QueryScale, FORMS, f"{module('raise KeyboardInterrupt')}:Bend", "layers", "form")


def test_bugs_of_ours_stay_bugs():
    """An error that came through no line of the user's is not told as theirs."""

    def broken(encoder, length):
        raise ZeroDivisionError

    ours = broken.__code__.replace(co_filename=call.__code__.co_filename)
    broken.__code__ = ours
    with pytest.raises(ZeroDivisionError):
        call("position.scheme 'bend:Bend'", "bend", broken, None, 256)


def test_transforms_and_query_scales_are_tried_too(module):
    code = HEAD + "@dataclass(frozen=True)\nclass Shift(PositionTransform):\n    shift: int = 1\n"
    reach = "    @property\n    def reach(self):\n        {}\n"
    batch = "    def __call__(self, batch, seed, step, first_row=0):\n        return batch\n"
    for body, message in [
        (reach.format("return self.shfit") + batch, r"position.training.transform '\w+:Shift': AttributeError: .*in reach\); did you mean 'shift'"),
        (reach.format("self.shift") + batch, "reach is None, wanted a number of tokens"),
        (batch, "lacks the method 'reach'"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            build_transform({"transform": f"{module(code + body)}:Shift"})
    assert build_transform({"transform": f"{module(code + reach.format('return 8') + batch)}:Shift"}).reach == 8
    with pytest.raises(UserError, match=r"layers: form '\w+:Scale' must be a dataclass derived from QueryScale: write"):
        name = module(HEAD + "class Scale(QueryScale):\n    power: float = 1.0\n")
        find(QueryScale, FORMS, f"{name}:Scale", "layers", "form")


def option(name: str, folder) -> None:
    (folder / "configs" / "position").mkdir(parents=True)
    (folder / "configs" / "position" / "bend.yaml").write_text(f"# mine\nscheme: {name}:Bend\n")


def test_the_analysis_needs_frequencies(module, tmp_path):
    option(module(bend(returns="return []") + ROTATION), tmp_path)
    with pytest.raises(UserError, match=r"position bend: .* inverse_frequencies returned 0 numbers, wanted 64"):
        encoders(TheoryConfig(schemes=["rope", "bend"]))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (BEND.replace("(frozen=True)", ""), "write @dataclass(frozen=True)"),
        (bend(returns="return [1.0] * self.head_dim"), "wanted"),
    ],
)
def test_commands_tell_it(module, tmp_path, code, message):
    option(module(code), tmp_path)
    for words in (
        ["lit_long.sweep", "grid.position=[rope,bend]", "dry_run=true"],
        ["lit_long.theory", "schemes=[rope,bend]", "tracking.enabled=false"],
    ):
        finished = run(*words, f"root={tmp_path}", cwd=tmp_path)
        assert finished.returncode == 2 and message in finished.stderr and "Traceback" not in finished.stderr, finished.stderr
