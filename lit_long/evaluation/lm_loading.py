"""From a name to lm-eval's task with its documents and requests: task files, local data in place of downloads, shots, and the checks.

Task files are lm-eval's own, those in tasks/ beside this file, where the paper's prompt is another, or the user's. A task of a table is looked for
in its own folder only; any other name in all of lm-eval's, which takes seconds.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lit_long.config import UserError
from lit_long.evaluation.lm_specs import OWN, Spec
from lit_long.evaluation.local_data import Unavailable, local_rows
from lit_long.evaluation.registry import is_task_file
from lit_long.evaluation.ruler import documents
from lit_long.evaluation.subject import Subject

HUB = "hub"
SCROLLS = "tau/scrolls"  # whose loading script the `datasets` library no longer runs
GENERATED = 20  # documents of every length, if not told otherwise
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
Made = tuple[str, int, Any, list[Any], Any]


@dataclass(frozen=True)
class Wanted:
    """What of a task is asked.

    Args:
        count: documents of each part and length; 0 for all (of a generated one, 20).
        seed: of the examples that are shots, and of generated documents.
        data: a folder of data sets; "hub" lets lm-eval download them.
        run_code: whether a task may run what the model wrote.
    """

    count: int
    seed: int
    data: str
    run_code: bool = False


def load_parts(name: str, spec: Spec, subject: Subject, lengths: list[int], asked: Wanted) -> Iterator[Made]:
    """(domain, length, task, requests, right answer) of every document to be asked.

    Raises:
        Unavailable: the data set is not there, or the task runs code and may not.
        UserError: see `HarnessTask`.
    """
    manager = one_file(Path(name).expanduser()) if is_task_file(name) else task_files(spec.folder)
    for domain, names in spec.tasks.items():
        for leaf in leaves(manager, names):
            settings = manager.task_index[leaf].cfg or {}
            if settings.get("unsafe_code") and not asked.run_code:
                raise Unavailable(
                    f"{name}: runs programs that the model wrote, with limits but not shut in; run_code=true allows it, on a machine "
                    f"that may be lost"
                )
            long = spec.long or spec.made or bool((settings.get("metadata") or {}).get("long"))
            for length in lengths if spec.made else [None]:
                task = build(manager, leaf, spec, rows_for(name, spec, subject, length, asked, settings))
                made = list(requests_of(name, leaf, task, asked))
                each_length = [length] if length else lengths if long else [max(lengths)]
                yield from ((domain, each, task, *document) for each in each_length for document in made)


@cache
def task_files(folder: str) -> Any:
    """lm-eval's manager of the task files in one of its folders, in ours, or in all ("")."""
    import lm_eval.tasks

    place = Path(__file__).parent / "tasks" if folder == OWN else Path(lm_eval.tasks.__file__).parent / folder
    return manager_of(place)


def one_file(file: Path) -> Any:
    """lm-eval's manager of one task file. It reads every task file below ``include_path``, which may be a whole home: the file is linked to from
    a folder of its own."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "task.yaml").symlink_to(file.resolve())
        manager = manager_of(Path(folder))
    for entry in manager.task_index.values():
        entry.yaml_path = entry.yaml_path and file.resolve()
    return manager


def manager_of(folder: Path) -> Any:
    import lm_eval.tasks

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # what matters is told by us
    return lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(folder))


def leaves(manager: Any, names: tuple[str, ...]) -> list[str]:
    """Task names; a tag or group becomes the tasks in it."""
    found: list[str] = []
    for name in names:
        entry = manager.task_index[name]
        inner = (entry.cfg or {}).get("task")
        members = sorted(entry.tags) if entry.kind.name == "TAG" else inner if isinstance(inner, list) else None
        found += [name] if members is None else leaves(manager, tuple(members))
    return found


def build(manager: Any, leaf: str, spec: Spec, rows: dict[str, Any] | None) -> Any:
    """lm-eval's task, on the data set ``rows``; None lets lm-eval read its own."""
    overrides: dict[str, Any] = {"task": leaf}
    if spec.shots is not None:
        overrides["num_fewshot"] = spec.shots
    if rows is not None:
        overrides["custom_dataset"] = lambda **options: rows
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars of datasets
            return manager.load({"group": "lit_long", "task": [overrides]})["tasks"][leaf]
    except UserError:
        raise
    except Exception as error:  # of lm-eval, datasets, the hub's client or the task's own code: whatever it is, it is this task's
        raise UserError(f"{leaf}: lm-eval cannot build it: {described(error)}") from error


def rows_for(
    name: str, spec: Spec, subject: Subject, length: int | None, asked: Wanted, settings: dict[str, Any]
) -> dict[str, Any] | None:
    """The task's data set by split: generated, from local files, or None for lm-eval to read what the task file names, or to download."""
    from datasets import Dataset

    data = asked.data
    if spec.made and length is not None:
        count = asked.count or GENERATED
        return {"test": Dataset.from_list(documents(name, subject, length, count, asked.seed, data.removeprefix(HUB)))}
    path, config = settings.get("dataset_path"), settings.get("dataset_name")
    if is_task_file(name) and (settings.get("dataset_kwargs") or "class" in settings or not path or Path(path).exists()):
        return None
    if data == HUB and path != SCROLLS:
        return None
    if data in ("", HUB):
        ways = "data=FOLDER that holds it" + ("" if path == SCROLLS else ", or data=hub to download it")
        raise Unavailable(f"{name}: needs the data set {path}{f' ({config})' if config else ''}: {ways}")
    scored = settings.get("test_split") or settings.get("validation_split")
    shots = settings.get("num_fewshot") if spec.shots is None else spec.shots
    own = (settings.get("fewshot_config") or {}).get("samples")  # examples that come with the task
    examples = (
        next((settings[key] for key in ("fewshot_split", *SPLITS) if settings.get(key)), None) if shots and not own else None
    )
    found = {split: Dataset.from_list(local_rows(data, path, config, split)) for split in {scored, examples} - {None}}
    # lm-eval wants every split that a task names, whether or not anything is taken from it.
    return {settings[key]: found.get(settings[key], found[scored]) for key in SPLITS if settings.get(key)}


def requests_of(name: str, leaf: str, task: Any, asked: Wanted) -> Iterator[tuple[list[Any], Any]]:
    """Requests and right answer of each of the first documents."""
    if task.config.num_fewshot and len(getattr(task.sampler, "df", [])) < task.config.num_fewshot:
        raise UserError(f"{leaf}: has {len(task.sampler.df)} examples, and {task.config.num_fewshot} shots are asked for")
    task.set_fewshot_seed(asked.seed)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # lm-eval's bars
            task.build_all_requests(limit=asked.count or None)
    except Exception as error:  # again whatever a task's own code does with an odd document
        raise UserError(f"{leaf}: lm-eval cannot ask its documents: {described(error)}") from error
    documents: dict[int, list[Any]] = {}
    for request in task.instances:
        documents.setdefault(request.doc_id, []).append(request)
    for number, requests in documents.items():
        yield requests, reference(f"{leaf}, document {number}", task, requests[0].doc)


def reference(where: str, task: Any, doc: dict[str, Any]) -> Any:
    """The right answer. Raises UserError when there is none, which would count as wrong, whatever is answered."""
    target = task.doc_to_target(doc)
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(doc)
        right = task.doc_to_text(doc) if task.multiple_input else target
        rights = right if isinstance(right, list) else [right]
        good = rights and all(0 <= each < len(choices) if isinstance(each, int) else each in choices for each in rights)
        if not good:
            raise UserError(
                f"{where}: its right answer, {right!r}, is none of its {len(choices)} choices; is it a split without answers?"
            )
        return right
    given = target if isinstance(target, list) else [target]
    if not given or not all(str(each).strip() for each in given):
        raise UserError(f"{where}: its reference is empty, and every answer would count as wrong; is it a split without answers?")
    return target


def described(error: Exception) -> str:
    """The kind of error and its first line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
