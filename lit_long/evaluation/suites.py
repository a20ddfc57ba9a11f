"""Which tasks a suite is made of, and at which sizes.

quick     every kind of task at lengths up to 2,048: minutes on a CPU with a model of 135M parameters
giraffe   LongChat-Lines, FreeFormQA and AlteredNumericQA at Giraffe's lengths (2k to 16k, as far as the model's range goes)
paper     the long and the short tasks of LLaMA 2 Long's tables, prompts of 16,384 tokens at most; through lm-eval, with data=FOLDER
ruler6    the six tasks of RULER that need no data set: made here, in minutes with small models; lengths=[1k,2k] for those of a short range
modern    RULER, generated, and LongBench (data=FOLDER); through lm-eval

A task of paper and modern whose data are not there is left out and named; one that the user names is an error.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lit_long.config import Unfit, UserError, nearest
from lit_long.data.held_out import has_held_out
from lit_long.data.token_store import Store
from lit_long.evaluation.answers import ChapterSummary, DocumentQA, MultiDocumentQA
from lit_long.evaluation.attention import AttentionSpread
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.in_memory_corpus import InMemoryCorpus
from lit_long.evaluation.lm_eval_tasks import LONG, MODERN, PROMPT, SHORT, SPECS
from lit_long.evaluation.needle import Needle
from lit_long.evaluation.perplexity import Perplexity, SlidingPerplexity
from lit_long.evaluation.public_data import Unavailable
from lit_long.evaluation.qa import AlteredNumericQA, FreeFormQA
from lit_long.evaluation.registry import check_task, is_custom, is_known, is_task_file, needs_whole_documents
from lit_long.evaluation.retrieval import FirstSentence, Lines, Passkey
from lit_long.evaluation.ruler6 import Ruler6
from lit_long.evaluation.task import Task


@dataclass(frozen=True)
class Size:
    """How much is measured: ``samples`` of every task and length, ``documents`` of every domain; ``depths`` of needles; ``stride`` of windows.

    ``most``: lengths are bounds of prompts, whose texts are as long as they are, so that a model of a shorter range can be asked, too.
    """

    lengths: tuple[int, ...]
    samples: int
    documents: int
    depths: int
    stride: int
    most: bool = False


@dataclass(frozen=True)
class Asked:
    """Texts, their digest, and what the user wants otherwise than the suite has it."""

    evaluated: EvaluatedModel
    texts: InMemoryCorpus | Store | None  # None where no task reads any
    data: str
    domains: list[str]
    size: Size
    seed: int = 0
    smooth: int = 0
    samples: int = 0  # what the user says of them; 0: nothing
    qa: str = ""  # a file or folder of Giraffe's question answering
    public: str = ""  # the folder of public data sets
    run_code: bool = False
    shots: int | None = None  # of lm-eval's tasks; None: as the task has it

    @property
    def haystack(self) -> str:
        """The domain that things are hidden in: prose if there is some."""
        plain = [domain for domain in self.domains if domain not in getattr(self.texts, "conversations", ())]
        return "docs" if "docs" in self.domains else (plain or self.domains)[0]


def sliding(asked: Asked) -> Task:
    """Half the longest length as the window, over as many tokens as perplexity reads."""
    longest = max(asked.size.lengths)
    window = max(1, longest // 2)
    return SlidingPerplexity(asked.texts, asked.data, asked.domains, [window], longest, asked.size.stride, asked.size.documents)


TASK_REGISTRY: dict[str, Callable[[Asked], Task]] = {
    Perplexity.name: lambda a: Perplexity(a.texts, a.data, a.domains, list(a.size.lengths), a.size.documents, a.smooth),
    SlidingPerplexity.name: sliding,
    FirstSentence.name: lambda a: FirstSentence(a.texts, a.data, a.haystack, list(a.size.lengths), a.size.samples, a.seed),
    Passkey.name: lambda a: Passkey(a.texts, a.data, a.haystack, list(a.size.lengths), a.size.samples, a.seed),
    Needle.name: lambda a: Needle(a.texts, a.data, a.haystack, list(a.size.lengths), a.size.depths, 1, a.seed),
    Lines.name: lambda a: Lines(list(a.size.lengths), a.size.samples, a.seed),
    Ruler6.name: lambda a: Ruler6(list(a.size.lengths), a.size.samples, a.seed),
    FreeFormQA.name: lambda a: FreeFormQA(
        a.texts, a.data, a.haystack, list(a.size.lengths), a.size.samples, a.seed, a.qa, a.samples
    ),
    AlteredNumericQA.name: lambda a: AlteredNumericQA(
        a.texts, a.data, a.haystack, list(a.size.lengths), a.size.samples, a.seed, a.qa, a.samples
    ),
    AttentionSpread.name: lambda a: AttentionSpread(a.texts, a.data, a.domains, list(a.size.lengths), a.size.documents),
} | {
    task.name: lambda a, task=task: task(a.texts, a.data, a.haystack, list(a.size.lengths), a.size.samples, a.seed)
    for task in (DocumentQA, MultiDocumentQA, ChapterSummary)
}
GIRAFFE = [Lines.name, FreeFormQA.name, AlteredNumericQA.name]
QUICK = [Perplexity.name, SlidingPerplexity.name, FirstSentence.name, Passkey.name, Needle.name, Lines.name]
SUITES = {
    "quick": (
        Size((256, 512, 1024, 2048), samples=4, documents=2, depths=5, stride=512),
        QUICK,
    ),
    "giraffe": (Size((2048, 4096, 8192, 16384), samples=20, documents=8, depths=10, stride=256), GIRAFFE),
    "ruler6": (Size((4096, 8192, 16384), samples=20, documents=0, depths=0, stride=1), [Ruler6.name]),
    "paper": (Size((PROMPT,), samples=0, documents=0, depths=0, stride=1, most=True), [*LONG, *SHORT]),
    "modern": (Size((4096, 8192, 16384, 32768), samples=0, documents=0, depths=0, stride=1), [*MODERN]),
}


def names_of(suite: str, tasks: list[str]) -> tuple[Size, list[str]]:
    """The suite's size, and its tasks or those chosen. Raises UserError for unknown names."""
    if suite not in SUITES:
        raise UserError(f"command line: suite={suite}: there is no such suite{nearest(suite, SUITES)}")
    size, own = SUITES[suite]
    for name in tasks:
        if is_custom(name) or is_task_file(name) or not any_of_lm_eval(name):
            check_task(name, "command line: tasks")
    return size, list(dict.fromkeys(tasks)) or own


def fitting(size: Size, context: int, suite: str, say: Callable[[str], None]) -> tuple[int, ...]:
    """The suite's lengths that the model's range allows; ``say`` is told of the others. Raises UserError if none is left."""
    found = tuple(length for length in size.lengths if length <= context)
    if not found and size.most:
        say(
            f"prompts of at most {context:,} tokens, the model's range, not of {min(size.lengths):,}; longer ones lose their beginning"
        )
        return (context,)
    if not found:
        raise UserError(
            f"suite={suite}: its shortest length, {min(size.lengths):,}, is beyond context={context:,}; choose lengths=[…]"
        )
    if left_out := [f"{length:,}" for length in size.lengths if length > context]:
        say(f"left out: lengths beyond context={context:,}, the model's range: {', '.join(left_out)}")
    return found


def any_of_lm_eval(name: str) -> bool:
    """Whether lm-eval, if it is installed, has a task that no table here has."""
    if is_known(name):
        return False
    try:
        from lit_long.evaluation.lm_eval import task_files
    except UserError:
        return False
    return is_mentioned(name) and name in task_files("").task_index


def is_mentioned(name: str) -> bool:
    """Whether a task file of lm-eval's has the name anywhere in its text. To read its 14,000 files as YAML takes 10 s or more. Some that others
    include do not end in .yaml."""
    import lm_eval.tasks

    files = (
        file for file in Path(lm_eval.tasks.__file__).parent.rglob("*") if file.suffix not in (".py", ".pyc") and file.is_file()
    )
    return any(name.encode(errors="surrogateescape") in file.read_bytes() for file in files)


def build_tasks(names: list[str], asked: Asked, chosen: bool, say: Callable[[str], None]) -> tuple[list[Task], dict[str, str]]:
    """The tasks of those names, and why others are left out.

    Args:
        chosen: whether the user named them: then none is left out.

    Raises:
        UserError: the texts or data do not suffice.
    """
    tasks, left_out = [], {}
    for name in names:
        try:
            tasks.append(make_task(name, asked))
            for line in tasks[-1].remarks:
                say(f"{name}: {line}")
        except Unavailable as error:
            if chosen:
                raise
            left_out[name] = str(error) if str(error).startswith(name) else f"{name}: {error}"
            say(f"left out: {left_out[name]}")
    if same := [task.name for number, task in enumerate(tasks) if task.name in {each.name for each in tasks[:number]}]:
        raise UserError(f"tasks: two tasks have the name {same[0]!r}; give one of them another")
    if not tasks:
        raise UserError(f"nothing of the suite can be measured; the first task says: {next(iter(left_out.values()))}")
    return tasks, left_out


def make_task(name: str, asked: Asked) -> Task:
    """The task of that name: ours, the user's own, or one through lm-eval."""
    if name in TASK_REGISTRY:
        return TASK_REGISTRY[name](asked)
    return custom_task(name, asked) if is_custom(name) else through_lm_eval(name, asked)


def custom_task(name: str, asked: Asked) -> Task:
    """The user's own ``module:Task``, called with ``asked``. The module runs as any code of theirs.

    Raises:
        UserError: it cannot be imported, or is no `Task`.
    """
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"tasks: {name}: cannot be imported: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise UserError(f"tasks: {name}: must be a class made from lit_long.evaluation.task.Task")
    if missing := [each for each in ("name", "prompt") if not isinstance(getattr(kind, each, None), str)]:
        raise UserError(f'tasks: {name}: has no {missing[0]}; write {missing[0]} = "…" into the class')
    if is_known(kind.name):
        raise UserError(f"tasks: {name}: its name, {kind.name!r}, is that of a task that lit-long has; choose another")
    return kind(asked)


def through_lm_eval(name: str, asked: Asked) -> Task:
    from lit_long.evaluation.lm_eval import HarnessTask, Wanted

    texts = (asked.texts, asked.haystack) if name in SPECS and SPECS[name].hides else None
    wanted = Wanted(asked.size.samples, asked.seed, asked.public, asked.run_code, asked.shots, texts)
    return HarnessTask(name, asked.evaluated, list(asked.size.lengths), wanted)


def domains_for(names: list[str], texts: InMemoryCorpus | Store, longest: int) -> list[str]:
    """The domains that have a held-out document long enough for the tasks of those names. Raises Unfit if none has."""
    whole = needs_whole_documents(names)
    needed = longest if whole else 1
    lengths = {domain: texts.documents(domain, "validation").lengths for domain in texts.domains}
    found = [
        domain for domain, each in lengths.items() if (has_held_out(texts, domain, longest) if whole else (each > needed).any())
    ]
    if not found:
        most = max((int(each.max()) for each in lengths.values() if len(each)), default=0)
        raise Unfit(
            f"no held-out document has the {needed + 1:,} tokens that lengths up to {longest:,} need; the longest has {most:,}."
        )
    return found
