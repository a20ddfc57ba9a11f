"""An evaluation of one model, from the words of the command line to its folder:

evaluation.json   the model, the texts and the settings; what the scores are of
samples/TASK.jsonl   every output, written as it comes
scores.json   the scores, a row each; written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lit_long import __version__
from lit_long.config import StageConfig, TrackingConfig, UserError, advising, plain
from lit_long.config.compose import compose_data
from lit_long.config.ranges import Count, CountOrNone, Seed
from lit_long.data.token_store import Store, open_store
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.in_memory_corpus import InMemoryCorpus, builtin_texts, own_texts
from lit_long.evaluation.lm_eval_tasks import average_measurements
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.registry import reads_texts
from lit_long.evaluation.scaling_law import law_measurements
from lit_long.evaluation.suites import Asked, Size, build_tasks, domains_for, fitting, names_of
from lit_long.evaluation.task import Report, Task, run_tasks
from lit_long.files import write_atomically
from lit_long.generation import prepack
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.digests import file_digest
from lit_long.pretrained.weights import WEIGHTS
from lit_long.processor import describe_machine, take_mkl_fast_path
from lit_long.stages.folder import read_stage
from lit_long.stages.lineage import stage_of
from lit_long.stages.model import choose, load_model

EVALUATION, SCORES, SAMPLES = "evaluation.json", "scores.json", "samples"
ROWS = 8  # sequences in a step of generation, where a suite does not say how many samples it has


@dataclass
class EvaluateConfig:
    """The command's keys. 0 and empty ones are the suite's own. ``data``: a folder of public data sets; ``text``: what to read."""

    suite: str = "quick"
    tasks: list[str] = field(default_factory=list)
    lengths: list[Count] = field(default_factory=list)
    samples: CountOrNone = 0
    depths: CountOrNone = 0
    stride: CountOrNone = 0
    smooth: CountOrNone = 0
    seed: Seed = 0
    text: str = ""
    qa: str = ""
    data: str = ""
    run_code: bool = False
    shots: CountOrNone | None = None
    out: str = ""
    checkpoint: str = ""
    context: Count | None = None
    dtype: str = "auto"
    device: str = "auto"
    batch_tokens: Count = 4096
    mkl_fast_path: bool = True
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    root: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    position: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.out:
            raise UserError("command line: out=FOLDER is missing: where scores.json and samples/ go")


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation. ``about`` is what is in evaluation.json; ``key`` is the same for the same model and settings."""

    folder: Path
    key: str
    about: dict[str, Any]
    rows: list[Measurement]


@advising("Choose other lengths=[…] or tasks=[…], or longer texts with text=FILE.")
def evaluate_model(config: EvaluateConfig, words: dict[str, Any], say: Callable[[str], None], report: Report) -> Evaluation:
    """Measure, or go on measuring, and write the folder. ``words`` are the command line's, which name the model.

    Raises:
        UserError: unknown names, no model or texts, a length beyond the model, samples of another evaluation in the folder.
    """
    size, names = names_of(config.suite, config.tasks)
    on_cpu = choose(config.device, config.dtype)[0].type == "cpu"
    if config.mkl_fast_path and on_cpu and (line := take_mkl_fast_path()):
        say(line)
    stage = stage_folder(config.checkpoint)
    model, tokenizer, settings = load_model(words, str(stage or ""), config.device, config.dtype, say)
    prepack(model, config.samples or size.samples or ROWS)
    evaluated = EvaluatedModel(model, tokenizer, settings.context, config.batch_tokens)
    lengths = tuple(sorted(set(config.lengths))) or fitting(size, settings.context, config.suite, say)
    size = Size(
        lengths,
        config.samples or size.samples,
        config.samples or size.documents,
        config.depths or size.depths,
        config.stride or min(size.stride, max(1, max(lengths) // 2)),
    )
    texts, data = texts_of(config.text, stage, evaluated, say) if reads_texts(names) else (None, "")
    domains = domains_for(names, texts, max(size.lengths)) if texts else []
    lm_eval = {"public": config.data, "run_code": config.run_code, "shots": config.shots}
    asked = Asked(evaluated, texts, data, domains, size, config.seed, config.smooth, config.samples, config.qa, **lm_eval)
    tasks, left_out = build_tasks(names, asked, bool(config.tasks), say)
    identity = model_identity(stage, evaluated, settings)
    about = {
        "model": str(stage or settings.model.init),
        "suite": config.suite,
        "tasks": {task.name: {"prompt": task.prompt, **task.settings()} for task in tasks},
        "left_out": left_out,
        "remarks": {task.name: list(task.remarks) for task in tasks if task.remarks},
        "machine": describe_machine(evaluated.model.norm.weight.device),
        "lengths": list(size.lengths),
        "context": settings.context,
        "lit_long": __version__,
        **identity,
    }
    folder = Path(config.out).expanduser()
    rows = run_tasks(evaluated, tasks, identity, folder / SAMPLES, report)
    rows += [*laws(rows), *average_measurements(rows)]
    write_atomically(
        folder / EVALUATION, json.dumps(about, indent=1) + "\n"
    )  # only now: a folder of something else is refused unchanged
    write_atomically(folder / SCORES, json.dumps([row.to_row() for row in rows], indent=1) + "\n")
    return Evaluation(folder, evaluation_key(identity, tasks, size), about, rows)


def stage_folder(checkpoint: str) -> Path | None:
    """The stage that ``checkpoint`` names, which must be a finished one."""
    if not checkpoint:
        return None
    path = Path(checkpoint).expanduser().resolve()
    folder = stage_of(path)
    if path not in (folder, folder / WEIGHTS):
        raise UserError(
            f"checkpoint={checkpoint}: is a resume point; export it first (python -m lit_long.export checkpoint=… out=FOLDER) and name "
            f"model.init=FOLDER, or name the stage's folder, {folder}, once it has ended"
        )
    return folder


def texts_of(
    text: str, stage: Path | None, evaluated: EvaluatedModel, say: Callable[[str], None]
) -> tuple[InMemoryCorpus | Store, str]:
    """What to read, and its digest: ``text``, else the held-out documents of the stage's data, else those of the built-in corpus."""
    if stage and not text:
        store = open_store(read_stage(stage)[1])
        return store, store.manifest["digest"]
    corpus = compose_data({}, lambda init: (evaluated.model.config, {})).data.corpus
    pages = InMemoryCorpus(
        evaluated.tokenizer, own_texts(text, say) if text else builtin_texts(corpus.validation, corpus.packages, say)
    )
    return pages, pages.digest


def model_identity(stage: Path | None, evaluated: EvaluatedModel, settings: StageConfig) -> dict[str, Any]:
    """What of the model the samples depend on: its weights by content, wherever they lie."""
    weights = file_digest(stage / WEIGHTS) if stage else open_pretrained(settings.model.init).digest
    layers = {"layers": plain(settings.layers)} if settings.layers.pattern else {}
    return layers | {
        "weights": weights,
        "position": plain(settings.position),
        "tokenizer": hashlib.sha256(evaluated.tokenizer.tokenizer.to_str().encode()).hexdigest(),
        "precision": str(evaluated.model.norm.weight.dtype).removeprefix("torch."),
    }


def laws(rows: list[Measurement]) -> list[Measurement]:
    """The scaling law of what `Perplexity` measured, as the task scaling_law."""
    measured = [row for row in rows if row.task == "perplexity"]
    return [replace(law, task="scaling_law", settings=measured[0].settings) for law in law_measurements(measured)]


def evaluation_key(identity: dict[str, Any], tasks: list[Task], size: Size) -> str:
    """A short name of the model and what it is asked."""
    content = [identity, [[task.name, task.prompt, task.settings()] for task in tasks], size.lengths]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
