"""An evaluate stage: everything the experiment asks for, measured on one trained model; in fp32 unless it says otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lit_long.config import EvaluationConfig, StageConfig, advising
from lit_long.data.token_store import Store, model_tokenizer, open_store
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.perplexity import text_measurements
from lit_long.evaluation.registry import BUILT_IN, is_custom, reads_texts
from lit_long.evaluation.retrieval import retrieval
from lit_long.model.llama import Llama
from lit_long.model.loss import chunk_tokens
from lit_long.positions import build
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.weights import WEIGHTS, load_pretrained, load_weights

SAMPLES, DEPTHS = 8, 10
HOLD_OUT = "hold out more or longer documents (data.corpus.validation, data.sources.NAME.validation_share)"
Report = Callable[[str, float], None]


def planned_tokens(evaluation: EvaluationConfig) -> int:
    """Tokens that an evaluation reads at most."""
    longest = max(evaluation.lengths, default=0)
    text = len(evaluation.domains) * len(evaluation.lengths) * evaluation.sequences * longest
    return text + sum(evaluation.asked_lengths) * evaluation.retrieval_examples


def evaluate(config: StageConfig, folder: Path, store: Path, parent: Path | None, report: Report) -> dict[str, Any]:
    """Measure the model with ``config.model`` and ``config.position`` that the stage in ``parent`` trained, or ``model.init`` names.

    Returns:
        ``result.json`` of the stage: its ``measurements`` are rows as `Measurement.to_row` makes them. Outputs of
        ``evaluation.tasks`` lie in ``folder``/samples.
    """
    evaluation = config.evaluation
    device = torch.device("cuda" if config.trainer.accelerator in ("gpu", "cuda") else "cpu")
    model = Llama(
        config.model,
        build(config.position, config.model.head_dim),
        chunk_tokens(config.model.vocab_size, config.trainer.loss_memory),
    )
    if parent is not None:
        load_weights(model, parent / WEIGHTS)
    else:
        load_pretrained(model, open_pretrained(config.model.init))
    model.eval().to(device, torch.bfloat16 if evaluation.precision == "bf16-true" else torch.float32)
    opened = open_store(store)
    started, planned, done = time.perf_counter(), planned_tokens(evaluation), 0

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        report(f"{done:,} of {planned:,} tokens", done / planned)

    with torch.no_grad():
        with advising(f"Change evaluation.lengths or evaluation.domains, or {HOLD_OUT}."):
            rows = text_measurements(model, opened, evaluation, device, advance)
        with advising(
            f"Change evaluation.retrieval_lengths, passkey_lengths ([] leaves one out) or retrieval_domain, or {HOLD_OUT}."
        ):
            rows += retrieval(model, opened, evaluation, advance)
    if evaluation.tasks:
        with advising(f"Change evaluation.task_lengths or evaluation.tasks, or {HOLD_OUT}."):
            rows += task_measurements(model, opened, config, folder, report)
    return {
        "kind": "evaluate",
        "measurements": [row.to_row() for row in rows],
        "seconds": time.perf_counter() - started,
        "parameters": sum(p.numel() for p in model.parameters()),
        "pretrained_context": config.model.context,
    }


def task_measurements(model: Llama, store: Store, config: StageConfig, folder: Path, report: Report) -> list[Measurement]:
    """The scores of ``evaluation.tasks``: those that hold for a whole length, under TASK.METRIC."""
    from lit_long.evaluation.evaluated_model import EvaluatedModel
    from lit_long.evaluation.lm_eval_tasks import average_measurements  # lm-eval's tasks are for those who ask
    from lit_long.evaluation.suites import Asked, Size, build_tasks, domains_for
    from lit_long.evaluation.task import run_tasks

    evaluation = config.evaluation
    lengths = tuple(sorted(set(evaluation.task_lengths))) or (config.model.context,)
    evaluated = EvaluatedModel(model, model_tokenizer(store, config.data.corpus), max(lengths), evaluation.batch_tokens)
    texts = store if reads_texts(evaluation.tasks) else None
    domains = domains_for(evaluation.tasks, store, max(lengths)) if texts else []
    tasks = []
    for ours, samples in ((True, evaluation.task_samples or SAMPLES), (False, evaluation.task_samples)):
        if names := [name for name in evaluation.tasks if (name in BUILT_IN or is_custom(name)) == ours]:
            size = Size(lengths, samples, samples, DEPTHS, max(1, max(lengths) // 4))
            public = {"public": evaluation.public, "run_code": evaluation.run_code}
            asked = Asked(evaluated, texts, store.manifest["digest"], domains, size, **public)
            tasks += build_tasks(names, asked, chosen=True, say=lambda line: report(line, 0.0))[0]
    found = run_tasks(evaluated, tasks, {"stage": folder.name}, folder / "samples", report)
    rows: dict[tuple[str, str, int], Measurement] = {}
    for each in [*found, *average_measurements(found)]:
        if "depth" not in each.settings:
            metric = f"{each.task}.{each.metric}"
            rows.setdefault((metric, each.domain, each.length), replace(each, metric=metric, task=""))
    return list(rows.values())
