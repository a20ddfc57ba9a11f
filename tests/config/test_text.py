"""Text settings are the text that was written, on the command line and in files; other types keep YAML's rules."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from lit_long.config import SourceConfig, StageConfig, SweepConfig, UserError, parse_words, read_command, typed
from lit_long.config.compose import Composer, compose_data, compose_sweep, parse_data_words
from lit_long.generate import GenerateConfig
from lit_long.stages.plan import make_plan
from tests.integration.mini import REPOSITORY

ODD = ["010", "1_000", "3.10", "12:30", "no", "on", "null", "~", "1e3", ".5", "0x1F", "2024-01-01", "run #2", "# 1", "a: b", "- x", "[x", "{a}",
       "Q {question} #A {answer}", "'tis", '"one" and "two"', "@x", "`x`", "%x", "!x", "&x", "*x", "| x", "> x", "?", " spaced ", "a,b", "\tx", "x\ny",
       "", "=", "a=b", "C:\\temp\\new"]  # fmt: skip


def source(*words) -> SourceConfig:
    return compose_data(
        parse_data_words([f"data.sources.s.{word}" for word in words], StageConfig), lambda init: None
    ).data.sources["s"]


@pytest.mark.parametrize("text", ODD)
def test_a_text_is_what_was_typed(text):
    assert typed(SweepConfig, parse_words([f"root={text}", f"launcher.name={text}"], SweepConfig), "here").root == text
    assert parse_words([f"stages.base.model.init={text}"], SweepConfig)["stages"]["base"]["model"]["init"] == text
    found = source(f"path={text}", f"where.x={text}", f"where.a.b={text}")
    assert found.path == text and found.where == {"x": text, "a.b": text}


@pytest.mark.parametrize("text", [text for text in ODD if text.strip() == text and text not in ("", "a,b", "x\ny")])
def test_texts_in_a_list(text):
    assert parse_words([f"prompts=[{text}, two words,{text}]"], GenerateConfig) == {"prompts": [text, "two words", text]}


def test_quotes_that_are_left_are_yamls():
    words = ["""prompts=["a, b\\n", 'it''s, c', Q:, ###]""", 'dtype="no"', "device='x # y'"]
    assert parse_words(words, GenerateConfig) == {"prompts": ["a, b\n", "it's, c", "Q:", "###"], "dtype": "no", "device": "x # y"}
    assert parse_words(["prompts=[]", "stop=['']"], GenerateConfig) == {"prompts": [], "stop": [""]}
    with pytest.raises(UserError, match=r"prompts must be a list such as \[a,b\]"):
        typed(GenerateConfig, parse_words(["prompts=one"], GenerateConfig), "command line")


@pytest.mark.parametrize(
    "quoted",
    [
        """stop=["\\n\\n"]""",
        """'stop=["\\n\\n"]'""",
        """stop=["
\n"]""",
        """stop=['\\n\\n']""",
        """stop=[$'\\n\\n']""",
    ],
)
def test_stop_strings_typed_into_a_shell(quoted):
    """The help's own line, as bash hands it over."""
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    said = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {quoted}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert parse_words(json.loads(said.stdout), GenerateConfig) == {"stop": ["\n\n"]}


def test_templates_decode_escapes_and_paths_do_not():
    found = source("path=C:\\new", "text=Q {q}\\n\\tA {a} \\\\n #1", "instruct.prompt={a}\nb", "encoding=\\n")
    assert (found.path, found.text) == ("C:\\new", "Q {q}\n\tA {a} \\n #1")
    assert (found.instruct.prompt, found.encoding) == ("{a}\nb", "\\n")
    assert source('text="Q {q}\\nA {a}"').text == "Q {q}\nA {a}"


def test_groups_on_the_command_line():
    assert source("where={lang: no, ok: true, n: 010}").where == {"lang": "no", "ok": "true", "n": "010"}
    whole = parse_data_words(["data.sources.s={path: 010, text: no, dedup: no, keep: 0.5, where: {on:off}}"], StageConfig)
    built = typed(StageConfig, whole, "here").data.sources["s"]
    assert (built.path, built.text, built.dedup, built.keep, built.where) == ("010", "no", False, 0.5, {"on": "off"})


@pytest.mark.parametrize(
    "word", ["data.weights={code:1}", "data.weights={code: 1}", "data.weights={code:1,docs:0.5}", "data.weights.code=1"]
)
def test_a_mixture_is_taken_with_or_without_the_space(word):
    assert compose_data(parse_data_words([word], StageConfig), lambda init: None).data.weights["code"] == 1


def test_a_mixture_that_the_shell_took_apart_is_told_how_to_write():
    with pytest.raises(
        UserError,
        match=r"data.weights must be a group of settings .* data.weights.NAME=… or, in quotes, 'data.weights=\{NAME: …\}'",
    ):
        compose_data(parse_data_words(["data.weights=code:1", "data.weights=docs:1"], StageConfig), lambda init: None)


def test_other_types_keep_yamls_rules():
    said = parse_words(
        ["seed=1_000", "optim.lr=1e-3", "dry_run=yes", "optim.betas=[0,0.5]", "stages.base.parent=null"], SweepConfig
    )
    assert said == {"seed": 1000, "optim": {"lr": 1e-3, "betas": [0, 0.5]}, "dry_run": True, "stages": {"base": {"parent": None}}}


FILE = """
description: no
root: 010
report: {title: 12:30, reference: null, rows: on, notes: [1_000, 3.10, yes], paper: {on: {off: 1}}}
data:
  sources:
    s: {path: 2024-01-01, where: {lang: no, year: 2020, "ok": true}, text: Q {q}, dedup: no}
stages:
  one: {kind: on, model: {init: 1e3}, tokens: 2k, parent: null}
grid:
  size: [{name: 010, evaluation.precision: no, seed: 1}, {name: on, seed: 2}]
  evaluation.precision: [no, 1_0]
  evaluation: {retrieval_domain: [off, x]}
  seed: [0, 1]
exclude: [{evaluation.precision: no, seed: 0}]
"""


def test_files(tmp_path):
    (tmp_path / "mine.yaml").write_text(FILE.replace("text: Q {q}", "text: 'Q {q}\\n'"))
    command = read_command([f"experiment={tmp_path / 'mine.yaml'}"])
    sweep, shared = compose_sweep(command)
    assert (sweep.description, sweep.root, sweep.report.title, sweep.report.reference) == ("no", "010", "12:30", None)
    assert (
        sweep.report.rows == "on"
        and sweep.report.notes == ["1_000", "3.10", "yes"]
        and sweep.report.paper == {"on": {"off": 1.0}}
    )
    own = typed(StageConfig, shared, "here").data.sources["s"]
    assert own.where == {"lang": "no", "year": "2020", "ok": "true"} and own.path == "2024-01-01" and own.dedup is False
    assert own.text == "Q {q}\\n"  # a file has YAML's double quotes for that
    assert sweep.stages["one"] == {"kind": "on", "model": {"init": "1e3"}, "tokens": "2k", "parent": None}
    assert sweep.grid["size"] == [{"name": "010", "evaluation.precision": "no", "seed": 1}, {"name": "on", "seed": 2}]
    assert sweep.grid["evaluation.precision"] == ["no", "1_0"] and sweep.grid["evaluation.retrieval_domain"] == ["off", "x"]
    assert sweep.grid["seed"] == [0, 1] and sweep.exclude == [{"evaluation.precision": "no", "seed": 0}]


def test_a_null_where_text_is_wanted_is_told_how_to_write(tmp_path):
    (tmp_path / "mine.yaml").write_text("description: null\nstages: {one: {}}\n")
    with pytest.raises(
        UserError, match=r"mine.yaml: description must be a word or a text; in a file put quotes around .*, not None"
    ):
        compose_sweep(read_command([f"experiment={tmp_path / 'mine.yaml'}"]))


@pytest.mark.parametrize(
    "content",
    ["stages: 5", "stages: [a]", "stages: {one: 5}", "stages: {one: null}", "stages: {one: {}}\ngrid: 5", "stages: {one: {}}\ngrid: {seed: null}",
     "stages: {one: {}}\nexclude: 5", "stages: {one: {}}\nexclude: [5]", "stages: {one: {model: [a]}}", "stages: {one: {model: {option: [a]}}}",
     "stages: {one: {recipe: [a]}}", "stages: {one: {data: {sources: 5}}}", "stages: {one: {curriculum: {phases: 5}}}", "5: 6", "? [a]\n: b",
     "stages: {one: {position: {training: 5}}}", "scales: 5", "scales: {a: {stages: 5}}", "scales: {a: {stages: {one: 5}}}", "report: 5", "model: 5",
     "stages: {one: &e {optim: *e}}", "stages: &s [*s]", "stages: {one: {parent: [a]}}", "stages: {one: {parent: {a: b}}}", "scale: [a]\nscales: {b: {}}", "tracking: [a]", "stages: &a {one: *b}"],
)  # fmt: skip
def test_files_of_another_shape_are_refused(content, tmp_path):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError):
        make_plan(read_command([f"experiment={tmp_path / 'mine.yaml'}", "dry_run=true"]))


@pytest.mark.parametrize(
    "content, message",
    [
        ("seed: 1\nstages: {}\nseed: 2\n", "seed is there twice (lines 1 and 3); leave one out"),
        ("grid: {seed: [0]}\ndescription: x\ngrid:\n  position: [rope]\n", "grid is there twice (lines 1 and 3)"),
        ("stages:\n  one:\n    tokens: 64k\n    'tokens': 128k\n", "tokens is there twice (lines 3 and 4)"),
        ("scales:\n  a: {optim: {lr: 1, lr: 2}}\n", "lr is there twice (line 2)"),
        ("data: {weights: {code:1, code:2}}\n", "code is there twice (line 1)"),
        (
            "data:\n  sources:\n    a:\n      where:\n        meta.language: en\n        meta: {language: de}\n",
            "meta.language is there twice (lines 5 and 6)",
        ),
        ("grid:\n  size:\n    - {name: a, optim: {lr: 1e-3}, optim.lr: 2e-3}\n", "optim.lr is there twice (line 3)"),
        ("scales: {a: {grid: {size: [{name: a, position: rope, position.option: pi}]}}}\n", "position is there twice (line 1)"),
        ("seed: 1\t\nseed: 2\n", "seed is there twice (lines 1 and 2)" if hasattr(yaml, "CSafeLoader") else "while scanning"),
    ],
)
def test_a_key_that_stands_twice_is_refused(content, message, tmp_path):
    """YAML takes the last, and a run would be of other settings than the first says."""
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError, match=re.escape(f"mine.yaml: cannot be read: {message}")):
        read_command([f"experiment={tmp_path / 'mine.yaml'}"])
    (tmp_path / "mine.yaml").write_text("stages: {one: &one {tokens: 64k}, two: {<<: *one, tokens: 128k}}\n")
    stages = read_command([f"experiment={tmp_path / 'mine.yaml'}"]).experiment["stages"]
    assert [stage["tokens"] for stage in stages.values()] == ["64k", "128k"]  # a merged group gives way
    assert parse_words(["seed=1", "seed=2"], SweepConfig) == {"seed": 2}  # a later word, too, replaces the earlier one


@pytest.mark.parametrize(
    "content, message",
    [
        ("position: {a: 2024-02-30}", "day is out of range for month"),
        ("position: {a: " + "1" * 5000 + "}", "Exceeds the limit"),
        ("position: [", "line 1"),
    ],
)
def test_values_that_cannot_be_are_told_with_their_file(content, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError, match=rf"mine.yaml: cannot be read: (.|\n)*{message}"):
        read_command([f"experiment={tmp_path / 'mine.yaml'}"])


def test_a_key_that_stands_twice_in_a_word_is_refused():
    said = r"command line: .* cannot be read: {} is there twice \(line 1\)"
    with pytest.raises(UserError, match=said.format("meta.language")):
        parse_words(["data.sources.a.where={meta.language: en, meta: {language: de}}"], SweepConfig)
    with pytest.raises(UserError, match=said.format("optim.lr")):
        parse_words(["grid.size=[{name: a, optim: {lr: 1e-3}, optim.lr: 2e-3}]"], SweepConfig)


def test_the_command_line_replaces_a_key_in_another_spelling(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "data: {sources: {a: {path: x, where: {meta.language: en}}}}\nstages: {one: {kind: train}}\n"
    )
    command = read_command([f"experiment={tmp_path / 'mine.yaml'}", "data.sources.a.where.meta.language=de"])
    sweep, shared = compose_sweep(command)
    data = Composer(command, sweep.grid, shared, lambda init: None).stage("one", {}).data
    assert data.sources["a"].where == {"meta.language": "de"}


@pytest.mark.parametrize(
    "word",
    ["=1", ".=1", "a.=1", ".a=1", "a..b=1", "a[0]=1", "a[=1", "seed.x=1", "grid=5", "stages=5", "stages.base=5", "stages=[a]", "grid.seed=", "scale=[a]",
     "experiment=", "experiment={a: b}", "exclude=5", "model={n_layers: [}", "data={a", "seed=[", "seed=!!python/object:os.system x", "position={scheme: [a]}",
     "stages.base.parent=[a]", "model.n_layers.x=2", "data.sources=5", "seed=${", "report=5", "optim.betas=0.9"],
)  # fmt: skip
def test_words_of_another_shape_are_refused(word):
    with pytest.raises(UserError):
        make_plan(read_command([word, "dry_run=true"]))


def test_shipped_files_are_read_as_yaml_reads_them():
    """In what comes along no text looks like something else, so nothing changed when text became what is written."""
    from lit_long.config.command import group_type, read_yaml

    for file in (REPOSITORY / "configs").glob("*/*.yaml"):
        assert read_yaml(file, group_type(file.parent.name)) == (yaml.safe_load(file.read_text()) or {}), file
