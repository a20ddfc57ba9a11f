"""The names of all tasks, and what planning, suites and tables know of each. Needs no torch; suites.py makes the tasks.

A name is one of `BUILT_IN`, one of the tables in lm_specs.py, any task of lm-eval's, or the user's own: ``module:Task``.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lit_long.config import UserError, nearest
from lit_long.evaluation.lm_specs import SPECS


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
    "free_form_qa": TaskInfo("FreeFormQA", "presence"),
    "altered_numeric_qa": TaskInfo("AltNumericQA", "presence"),
}


def is_custom(name: str) -> bool:
    """Whether the name is ``module:Task``, a task of the user's own."""
    return ":" in name


def is_known(name: str) -> bool:
    """Whether the tables here have the task. Others may be lm-eval's own."""
    return name in BUILT_IN or name in SPECS


def check_task(name: str, where: str) -> None:
    """Raises UserError for a name that no table here has, and for a module without such a task. Nothing of the module runs."""
    if is_custom(name):
        task_file(name, where)
    elif not is_known(name):
        raise UserError(f"{where}: there is no task {name!r}{nearest(name, [*BUILT_IN, *SPECS])}")


def reads_texts(names: Iterable[str]) -> bool:
    """Whether any of the tasks reads held-out texts; one of the user's own may."""
    return any(is_custom(name) or (name in BUILT_IN and BUILT_IN[name].reads_texts) for name in names)


def needs_whole_documents(names: Iterable[str]) -> bool:
    return any(name in BUILT_IN and BUILT_IN[name].whole_document for name in names)


def task_file(name: str, where: str) -> Path:
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


def task_code(names: Iterable[str]) -> dict[str, str]:
    """{module: digest} of the modules that hold the user's own tasks, {} without one. Comments and layout do not count."""
    files = {name.partition(":")[0]: task_file(name, "evaluation.tasks") for name in names if is_custom(name)}
    return {module: code_digest(file) for module, file in files.items()}


def code_digest(file: Path) -> str:
    """12 hexadecimal digits of a Python file's code, without comments and layout."""
    return hashlib.sha256(ast.unparse(ast.parse(file.read_bytes())).encode()).hexdigest()[:12]
