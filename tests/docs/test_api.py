"""docs/api.md is true: names can be imported, signatures, keys and file formats are those of the code, old names work, and the examples run.

A Python block whose first line names a module (``# lit_long.batch``) declares what is public there. It is compared with `inspect.signature`,
so that a parameter of a public function cannot change by oversight. Every public attribute of an abstract class or protocol must be declared.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import dataclasses
import importlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_long.config.renamed import RENAMED
from tests.docs.blocks import REPOSITORY, pages
from tests.integration.mini import run_here

TEXT = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", TEXT, re.M | re.S)
DECLARED = [block for _, block in BLOCKS if re.match(r"# lit_long[\w.]*\n", block)]
EXAMPLES = [(language, block) for language, block in BLOCKS if block not in DECLARED]
RUNS_OF_0_1 = REPOSITORY / "tests" / "config" / "fixtures" / "runs_of_0_1.tar.xz"


def declarations() -> Iterator[tuple[str, ast.stmt]]:
    """(module, class or function) of all declaring blocks."""
    for block in DECLARED:
        module = block.splitlines()[0].removeprefix("# ")
        yield from ((module, node) for node in ast.parse(block).body)


def live(name: str, thing: Any) -> str:
    """A function, method or property as it would be declared in the page; defaults that are no plain values are ``...``."""
    if isinstance(thing, property):
        return "@property\n" + live(name, thing.fget)
    kind = "@classmethod\n" if isinstance(thing, classmethod) else ""
    signature = inspect.signature(thing.__func__ if kind else thing)
    parameters = []
    for parameter in signature.parameters.values():
        default = parameter.default
        plain = default is inspect.Parameter.empty or isinstance(default, int | float | str | tuple | None)
        parameters.append(parameter if plain else parameter.replace(default=Ellipsis))
    signature = signature.replace(parameters=parameters)
    return re.sub(r"'([^']*)'(?=[,)=: ]|$)", unquote, f"{kind}def {name}{str(signature).replace('Ellipsis', '...')}: ...")


def unquote(found: re.Match[str]) -> str:
    """The annotation without its quotes; a default keeps them."""
    before = found.string[: found.start()].rstrip()
    return found[1] if before.endswith((":", "->")) else found[0]


def same(first: str | ast.stmt, second: str | ast.stmt) -> bool:
    """Whether two declarations differ in layout only."""
    return normal(first) == normal(second)


def normal(declaration: str | ast.stmt) -> str:
    node = ast.parse(declaration).body[0] if isinstance(declaration, str) else declaration
    return ast.unparse(node)


def fields_of(cls: type) -> dict[str, str]:
    """The fields of a dataclass, named tuple or protocol as they would be declared."""
    kinds = {name: getattr(kind, "__forward_arg__", kind) for name, kind in inspect.get_annotations(cls).items()}
    annotations = {name: kind for name, kind in kinds.items() if "ClassVar" not in kind}
    defaults = dict(getattr(cls, "_field_defaults", {}))
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            if field.default is not dataclasses.MISSING:
                defaults[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                defaults[field.name] = ...
    spelt = {name: "..." if value is ... else repr(value) for name, value in defaults.items()}
    return {name: f"{name}: {kind}" + (f" = {spelt[name]}" if name in spelt else "") for name, kind in annotations.items()}


def problems(module: str, node: ast.stmt) -> list[str]:
    """What the page says wrongly of one name."""
    where = f"{module}.{node.name}"
    found = getattr(importlib.import_module(module), node.name, None)
    if found is None:
        return [f"{where} cannot be imported"]
    if isinstance(node, ast.FunctionDef):
        return [] if same(node, live(node.name, found)) else [f"{where} is now: {normal(live(node.name, found))}"]
    bases = {cls.__name__ for cls in inspect.getmro(found)} | ({"NamedTuple"} if hasattr(found, "_fields") else set())
    wrong = [f"{where} is no {ast.unparse(base)}" for base in node.bases if ast.unparse(base).rpartition(".")[2] not in bases]
    fields, declared = fields_of(found), set()
    for item in node.body:
        if isinstance(item, ast.AnnAssign):
            declared.add(item.target.id)
            if item.target.id not in fields or not same(item, fields[item.target.id]):
                wrong.append(f"{where}: field {item.target.id} is now: {fields.get(item.target.id, 'gone')}")
        elif isinstance(item, ast.FunctionDef):
            declared.add(item.name)
            thing = inspect.getattr_static(found, item.name, None)
            if thing is None:
                wrong.append(f"{where}.{item.name} is gone")
            elif not same(item, live(item.name, thing)):
                wrong.append(f"{where}.{item.name} is now: {normal(live(item.name, thing))}")
    if inspect.isabstract(found) or getattr(found, "_is_protocol", False):  # whoever derives from it must know all of it
        abstract = getattr(found, "__abstractmethods__", frozenset())
        public = {name for name in vars(found) if not name.startswith("_") or name in abstract} | set(fields)
        public = {name for name in public if "ClassVar" not in str(inspect.get_annotations(found).get(name, ""))}
        wrong += [f"{where}.{name} is not in the page" for name in sorted(public - declared)]
    return wrong


@pytest.mark.parametrize(("module", "node"), declarations(), ids=lambda value: getattr(value, "name", value))
def test_public_names_keep_their_signatures(module, node):
    assert not problems(module, node), (
        "a public name changed: keep the old form until 0.3, or say it in docs/api.md and CHANGELOG.md"
    )


def test_a_changed_signature_is_noticed():
    """The test above is no empty one."""
    assert len(list(declarations())) > 20
    said = "class Point(NamedTuple):\n    name: str\n    step: int\n    value: int\n    time: float"
    assert problems("lit_long.tracking.tracker", ast.parse(said).body[0]) == [
        "lit_long.tracking.tracker.Point: field value is now: value: float"
    ]
    said = "def open_pretrained(name: str, revision: str) -> PretrainedWeights: ..."
    assert "is now: def open_pretrained(name: str)" in problems("lit_long.pretrained", ast.parse(said).body[0])[0]
    said = "class Tracker(Protocol):\n    where: str\n    def finish(self, run: str) -> None: ..."
    found = problems("lit_long.tracking.tracker", ast.parse(said).body[0])
    assert "lit_long.tracking.tracker.Tracker.begin is not in the page" in found and "finish is now" in found[0]


def test_what_a_task_is_made_from():
    (said,) = re.findall(r"`__init__` gets one argument, `asked`, with the attributes\s(.*?)\.\n", TEXT, re.S)
    suites = importlib.import_module("lit_long.evaluation.suites")
    assert len(codes(said)) > 8 and all(
        hasattr(suites.Asked, name) or name in fields_of(suites.Asked) | fields_of(suites.Size) for name in codes(said)
    )


def table(heading: str) -> dict[str, str]:
    """What the table below ``heading`` says in its second column of each name in the first."""
    section = TEXT.split(f"\n{heading}\n", 1)[1].split("\n#", 1)[0]
    rows = [line.strip().strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    assert rows, heading
    return {name: row[1].strip() for row in rows for name in codes(row[0])}


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def known_keys(words: list[str]) -> set[str]:
    """The keys that a command knows, from what it says about one that it does not."""
    module, *rest = words
    if importlib.util.find_spec(module).submodule_search_locations:
        module = f"{module}.__main__"
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(error):
        assert importlib.import_module(module).main(rest) == 2
    (known,) = re.findall(r"known here: (.*)", error.getvalue())
    return set(known.strip().split(", "))


KEYS = table("### Keys of each command")
GROUPS = table("### Groups of settings")


@pytest.mark.parametrize("command", KEYS)
def test_commands_have_the_keys_of_the_page(command):
    assert known_keys([*f"lit_long.{command}".split(), "qqqqqq=1"]) == set(codes(KEYS[command]))


@pytest.mark.parametrize("group", GROUPS)
def test_groups_have_the_keys_of_the_page(group):
    assert known_keys(["lit_long.sweep", f"{group.replace('NAME', 'mine')}.qqqqqq=1"]) == set(codes(GROUPS[group]))


def test_every_command_and_every_group_is_there():
    commands = {name.split()[0] for name in KEYS}
    assert commands == set(re.findall(r"^## (\w+)$", (REPOSITORY / "docs" / "commands.md").read_text(), re.M)) - {"stage"}
    groups = {key for key in codes(KEYS["sweep"]) if key not in GROUPS}
    assert groups <= {
        "base",
        "description",
        "dry_run",
        "exclude",
        "experiment",
        "grid",
        "only_failed",
        "root",
        "scale",
        "seed",
        "show",
    } | {
        "curriculum",  # phases
        "position",  # the scheme's own settings
        "stages",  # stages.NAME
    }


VERBS = re.compile(r"^ (prepare|inspect|generate|together)\b|\b(search=longrope)")
KEY = re.compile(r"(?<![\w.=/{,\[-])([a-z]\w*(?:\.\w+)*)=")
QUOTED = re.compile(r"\"[^\"]*\"|'[^']*: [^']*'")  # a prompt, a group: their text is no key


def typed_keys() -> Iterator[tuple[str, str, str]]:
    """(page, command, dotted key) of every command that a page shows, in a block or in a sentence."""
    for page in pages():
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for command, words in re.findall(r"python -m lit_long\.([a-z]+)([^`\n|#]*)", text):
            verb = VERBS.search(words)
            name = f"{command} {verb[0].strip().replace('inspect', 'prepare')}" if verb else command
            for key in KEY.findall(QUOTED.sub("", words)):
                if f"unknown key '{key}'" not in text:  # what the page shows as a mistake
                    yield str(page.relative_to(REPOSITORY)), name, key


def test_pages_type_keys_that_exist():
    """Also those of commands that no test runs."""
    found = list(typed_keys())
    assert len(found) > 200 and {name.split()[0] for _, name, _ in found} >= {name.split()[0] for name in KEYS}
    for page, name, key in found:
        known = codes(KEYS.get(name) or KEYS[next(each for each in KEYS if each.split()[0] == name.split()[0])])
        if name == "plan":  # of an experiment: a sweep's, too
            known += codes(KEYS["sweep"])
        group, _, rest = key.partition(".")
        assert group in {*known, "model", "position", "data"}, f"{page}: python -m lit_long.{name} {key}=…"
        if group in GROUPS and rest and "." not in rest:
            assert rest in codes(GROUPS[group]), f"{page}: python -m lit_long.{name} {key}=…"


def test_old_names_work():
    """Each row: an old name and what it is now. Modules say so with a DeprecationWarning, settings with a line."""
    rows = table("## Old names")
    settings = {old: codes(new)[0] for old, new in rows.items() if not old.startswith("lit_long")}
    assert settings == {old: f"{old.rpartition('.')[0]}.{new}" for old, new in RENAMED.items()}
    modules = set()
    for old, new in rows.items():
        if old in settings:
            continue
        module, _, name = old.rpartition(".")
        modules.add(module)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sys.modules.pop(module, None)
            thing = getattr(importlib.import_module(module), name)
        assert any(issubclass(each.category, DeprecationWarning) for each in caught), module
        target, _, attribute = codes(new)[0].rpartition(".")
        assert thing is getattr(importlib.import_module(target), attribute), old
    shims = [file for file in (REPOSITORY / "lit_long").rglob("*.py") if re.search(r"^warnings\.warn\(", file.read_text(), re.M)]
    named = {".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__") for file in shims}
    assert named == modules


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Half of a sweep, as 0.1 left it, with a report by today's code and its archive."""
    folder = tmp_path_factory.mktemp("runs")
    with tarfile.open(RUNS_OF_0_1) as archive:
        archive.extractall(folder, filter="data")
    words = ["experiment=experiment", f"root={folder / 'cut'}", f"archive={folder / 'archive'}"]
    finished = run_here("lit_long.report", *words, cwd=folder)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder


def test_files_of_a_sweep(runs):
    sweep = (runs / "cut" / "runs" / "experiment" / "latest").resolve()
    said = table("### A sweep's folder")
    assert {path.name for path in sweep.iterdir()} <= {name.rstrip("/") for name in said}
    assert set(json.loads((sweep / "sweep.json").read_text())) == set(codes(said["sweep.json"]))
    with (sweep / "table.csv").open() as opened:
        assert next(csv.reader(opened)) == codes(said["table.csv"])


def test_files_of_a_stage(runs):
    said = table("### A stage's folder")
    for stage in (runs / "cut" / "runs" / "stages").iterdir():
        if not stage.name.startswith("data-"):
            assert {path.name for path in stage.iterdir()} <= {name.rstrip("/") for name in said}
        assert set(codes(said["stage.yaml"])) == set(yaml.safe_load((stage / "stage.yaml").read_text()))
        assert set(json.loads((stage / "progress.json").read_text())) == set(codes(said["progress.json"]))
        for line in (stage / "metrics.jsonl").read_text().splitlines() if (stage / "metrics.jsonl").is_file() else []:
            assert {"step", "time"} <= set(json.loads(line)) and {"step", "time"} <= set(codes(said["metrics.jsonl"]))
        if (stage / "result.json").is_file():
            assert json.loads((stage / "result.json").read_text())["kind"] == stage.name.partition("-")[0]


def test_a_store(runs):
    said = table("### A token store")
    (store,) = (runs / "cut" / "runs" / "stages").glob("data-*")
    assert set(codes(said["manifest.json"])) == set(json.loads((store / "manifest.json").read_text()))
    assert (store / "tokenizer.json").is_file() and (store / "mine" / "train" / "index.npy").is_file()
    assert {"tokenizer.json", "SOURCE/SPLIT/index.npy", "SOURCE/shards/"} <= set(said)


def test_an_archive(runs):
    said = table("### An archive")
    archived = list((runs / "archive").iterdir())
    assert len(archived) == 4
    for folder in archived:
        assert {path.name for path in folder.iterdir()} <= set(said)
        assert set(json.loads((folder / "archive.json").read_text())) == set(codes(said["archive.json"]))


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Path:
    """A folder in which the page's examples ran, in their order."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("experiments", "README.md"):
        (folder / name).symlink_to(REPOSITORY / name)
    for language, block in EXAMPLES:
        run_in(folder, [sys.executable, "-c", block] if language == "python" else ["bash", "-ec", block])
    return folder


def run_in(folder: Path, command: list[str]) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PATH": path}
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=800)
    assert finished.returncode == 0, f"{command}\n{finished.stdout}{finished.stderr}"


def test_scores_and_records(examples):
    """`scores.json`, and the files of tracking=csv, have the fields of the page."""
    assert [language for language, _ in EXAMPLES] == ["python", "python", "bash", "python"]
    rows = json.loads((examples / "scores" / "scores.json").read_text())
    said = codes(table("### Scores of `python -m lit_long.evaluate`")["scores.json"])
    assert rows and all(set(row) <= set(said) for row in rows)
    assert {"task", "metric", "domain", "length", "value", "stderr", "n", "truncated"} <= set(rows[0])
    record = table("### Records of `tracking=csv`")
    (runs,) = (examples / "record").glob("*/runs.csv")
    with runs.open() as opened:
        assert next(csv.reader(opened)) == codes(record["EXPERIMENT/runs.csv"])
    (metrics,) = runs.parent.glob("*/metrics.csv")
    with metrics.open() as opened:
        assert next(csv.reader(opened)) == codes(record["EXPERIMENT/RUN/metrics.csv"])
