"""An evaluate stage: everything the experiment asks for, measured on one trained model; in fp32 unless it says otherwise."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from lit_long.config import EvaluationConfig, StageConfig, UserError, advising
from lit_long.config.mesh import evaluation_ranks
from lit_long.data.token_store import Store, model_tokenizer, open_store
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.perplexity import text_measurements
from lit_long.evaluation.query_scale import fit_query_scales
from lit_long.evaluation.registry import BUILT_IN, is_custom, reads_texts
from lit_long.evaluation.retrieval import retrieval
from lit_long.generation.sharded import join_ranks, shard_weights, share_products
from lit_long.model.attention import describe
from lit_long.model.llama import Llama
from lit_long.model.loss import chunk_tokens
from lit_long.planning.flops import parameters
from lit_long.positions.layers import build_layers
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.weights import load_pretrained, load_weights, trained_weights
from lit_long.processor import describe_machine

SAMPLES, DEPTHS = 8, 10
HOLD_OUT = "hold out more or longer documents (data.corpus.validation, data.sources.NAME.validation_share)"
Report = Callable[[str, float], None]


def planned_tokens(evaluation: EvaluationConfig) -> int:
    """Tokens that an evaluation reads at most."""
    longest = max(evaluation.lengths, default=0)
    text = len(evaluation.domains) * len(evaluation.lengths) * evaluation.sequences * longest
    text += len(evaluation.domains) * len(evaluation.query_scales) * (evaluation.skip or evaluation.sequences) * longest
    return text + sum(evaluation.asked_lengths) * evaluation.retrieval_examples


def evaluate(config: StageConfig, folder: Path, store: Path, parent: Path | None, report: Report) -> dict[str, Any]:
    """Measure the model with ``config.model`` and ``config.position`` that the stage in ``parent`` trained, or ``model.init`` names.

    Returns:
        ``result.json`` of the stage: its ``measurements`` are rows as `Measurement.to_row` makes them. Outputs of
        ``evaluation.tasks`` lie in ``folder``/samples.
    """
    with joined(config) as (device, mesh):
        return measure(config, folder, open_store(store), load_model(config, parent, device, mesh), mesh, report)


@contextmanager
def joined(config: StageConfig) -> Iterator[tuple[torch.device, DeviceMesh | None]]:
    """This rank's device, and the ranks that share the model, if there are several.

    Raises:
        UserError: there are not as many processes as `evaluation_ranks`.
    """
    on_gpu, ranks = config.trainer.accelerator in ("gpu", "cuda"), evaluation_ranks(config)
    if ranks == 1:
        yield torch.device("cuda" if on_gpu else "cpu"), None
        return
    if (started := int(os.environ.get("WORLD_SIZE", 1))) != ranks:
        raise UserError(
            f"trainer.devices={config.trainer.devices}: {ranks} processes share this model, and {started} were started"
        )
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    yield device, join_ranks(device, timedelta(minutes=(config.trainer.timeout_minutes or 30) + 5))
    torch.distributed.destroy_process_group()  # not after an error: the others may wait for this rank, until torchrun ends them


def load_model(config: StageConfig, parent: Path | None, device: torch.device, mesh: DeviceMesh | None) -> Llama:
    """The model that is measured, or this rank's part of it. No process ever holds more than that and a tensor."""
    encoder, chunk = (
        build_layers(config.layers, config.position, config.model.head_dim),
        chunk_tokens(config.model.vocab_size, config.trainer.loss_memory),
    )
    with torch.device("meta"):
        model = Llama(config.model, encoder, chunk).requires_grad_(False)
    model.eval().to(torch.bfloat16 if config.evaluation.precision == "bf16-true" else torch.float32)
    if mesh is not None:
        shard_weights(model, mesh)
    model.to_empty(device=device)
    if parent is not None:
        load_weights(model, trained_weights(config, parent))
    else:
        load_pretrained(model, open_pretrained(config.model.init))
    if mesh is not None:
        share_products(model, mesh)
    return model


def measure(
    config: StageConfig, folder: Path, opened: Store, model: Llama, mesh: DeviceMesh | None, report: Report
) -> dict[str, Any]:
    """The stage's result; of several ranks the first one's counts."""
    evaluation, device = config.evaluation, model.embed_tokens.weight.device
    report = report if mesh is None or mesh.get_rank() == 0 else lambda message, done: None
    attention = describe(device, model.embed_tokens.weight.dtype, config.model.head_dim)
    if mesh is None or mesh.get_rank() == 0:
        print(f"attention: {attention}", flush=True)  # log.txt
    started, planned, done = time.perf_counter(), planned_tokens(evaluation), 0

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        report(f"{done:,} of {planned:,} tokens", done / planned)

    with torch.no_grad():
        with advising(f"Change evaluation.lengths or evaluation.domains, or {HOLD_OUT}."):
            rows = fit_query_scales(model, opened, evaluation, device, advance) if evaluation.query_scales else []
            rows += text_measurements(model, opened, evaluation, device, advance)
        with advising(
            f"Change evaluation.retrieval_lengths, passkey_lengths ([] leaves one out) or retrieval_domain, or {HOLD_OUT}."
        ):
            rows += retrieval(model, opened, evaluation, advance)
    if evaluation.tasks:
        with advising(f"Change evaluation.task_lengths or evaluation.tasks, or {HOLD_OUT}."):
            rows += task_measurements(model, opened, config, folder, report, mesh)
    return {
        "kind": "evaluate",
        "measurements": [row.to_row() for row in rows],
        "seconds": time.perf_counter() - started,
        "parameters": parameters(config.model),
        "attention": attention,
        "machine": describe_machine(device),
        "pretrained_context": config.model.context,
    }


def task_measurements(
    model: Llama, store: Store, config: StageConfig, folder: Path, report: Report, mesh: DeviceMesh | None = None
) -> list[Measurement]:
    """The scores of ``evaluation.tasks``: those that hold for a whole length, under TASK.METRIC."""
    from lit_long.evaluation.evaluated_model import EvaluatedModel
    from lit_long.evaluation.lm_eval_tasks import average_measurements  # lm-eval's tasks are for those who ask
    from lit_long.evaluation.suites import Asked, Size, build_tasks, domains_for
    from lit_long.evaluation.task import run_tasks

    evaluation = config.evaluation
    lengths = tuple(sorted(set(evaluation.task_lengths))) or (config.model.context,)
    evaluated = EvaluatedModel(model, model_tokenizer(store, config.data.corpus), max(lengths), evaluation.batch_tokens, mesh)
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
        if each.is_whole:
            metric = f"{each.task}.{each.metric}"
            rows.setdefault((metric, each.domain, each.length), replace(each, metric=metric, task=""))
    return list(rows.values())
