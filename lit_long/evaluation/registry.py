"""The names of all tasks, and what planning, suites and tables know of each. Needs no torch; suites.py makes the tasks.

A name is one of `BUILT_IN`, one of the tables in lm_eval_tasks.py, any task of lm-eval's, or the user's own: ``module:Task``, or the path of a task file of
lm-eval's, ``FOLDER/NAME.yaml``.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_long.config import UserError, check_path, nearest
from lit_long.evaluation.lm_eval_tasks import SPECS


@dataclass(frozen=True)
class TaskInfo:
    """A task of this project.

    Args:
        title: its name in tables.
        metric: the metric that stands for it there.
        share: whether that is a share, shown in %.
        reads_texts: whether it reads held-out texts, or hides things in them.
        whole_document: whether a sample needs one document as long as the longest length; others join several.
    """

    title: str
    metric: str
    share: bool = True
    reads_texts: bool = True
    whole_document: bool = False


BUILT_IN = {
    "perplexity": TaskInfo("perplexity", "perplexity", share=False, whole_document=True),
    "sliding_perplexity": TaskInfo("sliding window", "sliding_perplexity", share=False, whole_document=True),
    "first_sentence": TaskInfo("first sentence", "rouge_l", whole_document=True),
    "passkey": TaskInfo("passkey", "accuracy", whole_document=True),
    "needle": TaskInfo("needle", "score"),
    "longchat_lines": TaskInfo("LongChat-Lines", "accuracy", reads_texts=False),
    "ruler6": TaskInfo("RULER-6", "score", reads_texts=False),
    "free_form_qa": TaskInfo("FreeFormQA", "presence"),
    "altered_numeric_qa": TaskInfo("AltNumericQA", "presence"),
    "document_qa": TaskInfo("document QA", "exact_match", whole_document=True),
    "multi_document_qa": TaskInfo("multi-document QA", "exact_match"),
    "chapter_summary": TaskInfo("chapter summary", "rouge_l"),
    "attention": TaskInfo("attention on the first token", "sink_mass", whole_document=True),
}


def is_custom(name: str) -> bool:
    """Whether the name is ``module:Task``, a task of the user's own."""
    return ":" in name and not is_task_file(name)


def is_task_file(name: str) -> bool:
    """Whether the name is the path of a task file of lm-eval's, of the user's own."""
    return name.endswith((".yaml", ".yml"))


def is_known(name: str) -> bool:
    """Whether the tables here have the task. Others may be lm-eval's own."""
    return name in BUILT_IN or name in SPECS


def check_task(name: str, where: str) -> None:
    """Raises UserError for a name that no table here has, and for a module or file without such a task. Nothing of the user's runs."""
    if is_task_file(name):
        read_task_file(name, where)
    elif is_custom(name):
        module_file(name, where)
    elif not is_known(name):
        raise UserError(f"{where}: there is no task {name!r}{nearest(name, [*BUILT_IN, *SPECS])}")


def reads_texts(names: Iterable[str]) -> bool:
    """Whether any of the tasks reads held-out texts; one of the user's own may."""
    return any(
        is_custom(name) or (name in BUILT_IN and BUILT_IN[name].reads_texts) or (name in SPECS and SPECS[name].hides)
        for name in names
    )


def needs_whole_documents(names: Iterable[str]) -> bool:
    return any(name in BUILT_IN and BUILT_IN[name].whole_document for name in names)


def draws_documents(names: Iterable[str]) -> bool:
    """Whether any of the tasks draws its documents out of a data set, where not all are asked."""
    return any(not (name in BUILT_IN or is_custom(name) or (name in SPECS and SPECS[name].made)) for name in names)


def module_file(name: str, where: str) -> Path:
    """The file of ``module:Task``, which is read, not run.

    Raises:
        UserError: there is no such module, or no such class in it.
    """
    module, _, attribute = name.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise UserError(
            f"{where}: {name}: there is no module {module!r} in the working directory or among the installed packages; a task of "
            f"your own is module:Class"
        )
    file = Path(spec.origin)
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise UserError(f"{where}: {name}: {file}: line {error.lineno}: {error.msg}") from None
    classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    if attribute not in classes:
        raise UserError(f"{where}: {name}: {file} has no class {attribute!r}{nearest(attribute, classes)}")
    return file


class FunctionLoader(yaml.SafeLoader):
    """Reads ``!function module.name`` as a text: planning runs no code of the user's."""


FunctionLoader.add_constructor("!function", lambda loader, node: f"!function {loader.construct_scalar(node)}")


@dataclass(frozen=True)
class TaskFile:
    """A task file of lm-eval's.

    name      its task's
    settings  with those of the files that it includes; functions as texts
    code      the Python files beside them that their functions are in
    """

    name: str
    settings: dict[str, Any]
    code: tuple[Path, ...]


def read_task_file(name: str, where: str) -> TaskFile:
    """The task file at the path ``name``. None of its functions runs.

    Raises:
        UserError: there is no such file, it cannot be read, or holds no single task; its task has the name of one that is here.
    """
    check_path(name, where, "a task file")
    file = Path(name).expanduser()
    settings, code = merged(file, f"{where}: {name}", ())
    if "group" in settings or isinstance(settings.get("task"), list):
        raise UserError(
            f"{where}: {name}: is a group of tasks; name the task files of its tasks instead, as tasks=[A.yaml,B.yaml]"
        )
    task = settings.get("task")
    if not isinstance(task, str) or not task or "/" in task:
        raise UserError(f"{where}: {name}: is no task file of lm-eval's; it needs a key task: with the task's name (without /)")
    if is_known(task):
        raise UserError(f"{where}: {name}: its task, {task!r}, has the name of one that lit-long has; choose another")
    return TaskFile(task, settings, tuple(sorted(code)))


def merged(file: Path, where: str, above: tuple[Path, ...]) -> tuple[dict[str, Any], set[Path]]:
    """Settings of a task file over those of the files that it includes, as lm-eval reads them, and the Python files beside them that they use."""
    if file.resolve() in above:
        raise UserError(f"{where}: {file} includes itself")
    try:
        settings = yaml.load(file.read_bytes(), Loader=FunctionLoader)
    except OSError as error:
        raise UserError(f"{where}: {f'included, {file}, ' if above else ''}cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: {file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{where}: {file} must hold key: value lines, as a task file of lm-eval's")
    code = {found for text in texts_in(settings) if (found := function_file(text, file.parent))}
    included = settings.pop("include", [])
    found: dict[str, Any] = {}
    for each in included if isinstance(included, list) else [included]:
        inner, more = merged(file.parent / str(each), where, (*above, file.resolve()))
        found |= inner
        code |= more
    return found | settings, code


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a YAML value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts_in(each)


def function_file(text: str, folder: Path) -> Path | None:
    """The Python file in ``folder`` that ``!function module.name`` means; None where it means an installed module."""
    if not text.startswith("!function "):
        return None
    module = text.removeprefix("!function ").rpartition(".")[0]
    file = folder / f"{module.replace('.', '/')}.py"
    return file if file.is_file() else None


def task_code(names: Iterable[str]) -> dict[str, str]:
    """{module or path: digest} of what holds the user's own tasks, {} without one. Comments and layout do not count, nor what it imports."""
    found = {}
    for name in names:
        if is_task_file(name):
            found[name] = file_digest(read_task_file(name, "evaluation.tasks"))
        elif is_custom(name):
            found[name.partition(":")[0]] = code_digest(module_file(name, "evaluation.tasks"))
    return found


def file_digest(task: TaskFile) -> str:
    """12 hexadecimal digits of a task file's settings, of the Python files beside it that it uses, and of the data files that it names."""
    data = sorted({text for text in texts_in(task.settings.get("dataset_kwargs")) if Path(text).is_file()})
    content = [task.settings, [code_digest(file) for file in task.code]]
    content += [[text, content_digest(text, Path(text).stat().st_mtime_ns)] for text in data]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


@functools.cache
def content_digest(file: str, changed: int) -> str:
    """sha256 of a file's content as it is since ``changed``."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def code_digest(file: Path) -> str:
    """12 hexadecimal digits of a Python file's code, without comments and layout. Raises UserError where it is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise UserError(f"{file}: line {error.lineno}: {error.msg}") from None
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:12]
