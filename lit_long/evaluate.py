"""Score a model: what the paper, Giraffe and today's field measure, on texts it was not trained on.

    python -m lit_long.evaluate model=smollm2-135m out=DIR      minutes on a CPU
    python -m lit_long.evaluate model.init=FOLDER out=DIR       pretrained weights, in any format that model.init reads
    … checkpoint=FOLDER      a finished training stage of this suite (runs/stages/train-…), on its own held-out documents
    … suite=quick|ruler6|giraffe|paper|modern   which tasks, at which sizes; tasks=[perplexity,needle] chooses among all of them
    … lengths=[1k,2k,4k]     tokens, the answer included; perplexity wants lengths that divide the longest
    … samples=16 depths=10 stride=256 seed=0                    of every task and length; of needles; of the sliding window
    … smooth=500             positions to a bin of the loss by position (default: bins that grow)
    … text=FILE              one's own texts to read and to hide things in: a file or folder of text, .jsonl or .parquet
    … data=FOLDER            public data sets of paper and modern, as downloaded; data=hub downloads. run_code=true allows HumanEval, MBPP
    … shots=0                examples before each question of lm-eval's tasks (default: as many as the task has)
    … qa=FOLDER              Giraffe's question answering, as published (default: built from facts of our own)
    … context=32k position=yarn                                 another encoder for a longer context
    … layers=swan layers.groups.local.window=512                layers that differ (configs/layers/)
    … dtype=auto|float32|bfloat16  device=auto|cpu|cuda  batch_tokens=4k  mkl_fast_path=true|false (on AMD)
    … tracking.enabled=false tracking.uri=… root=FOLDER         where the record goes, as for a sweep

Writes DIR/scores.json (task, metric, length, value, stderr, low, high, n, truncated …), DIR/samples/TASK.jsonl, DIR/scores.md and figures.
Killed, the same command goes on; what was measured is not measured again. Exit codes: 0 done, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

from lit_long.config import check_path, typed
from lit_long.config.compose import parse_model_words
from lit_long.config.output_folder import check_writable
from lit_long.terminal import answer, run_command

SECONDS = 5.0  # between lines of progress


def main(argv: list[str]) -> int:
    return answer(argv, __doc__, run, "interrupted; the same command goes on where it was")


def run(argv: list[str]) -> None:
    """Evaluate, record, and print the table."""
    from rich.console import Console

    from lit_long.files import write_atomically
    from lit_long.report.scores import draw_scores, markdown, of_data, remarks, score_tables
    from lit_long.stages.scores import EvaluateConfig, evaluate_model
    from lit_long.tracking.record import EVALUATE, open_command, record_evaluation

    words = parse_model_words(argv, EvaluateConfig)
    config = typed(EvaluateConfig, words, "command line")
    for key in ("out", "root", "checkpoint", "text", "qa", "data"):
        check_path(getattr(config, key), "command line", key)
    check_writable(Path(config.out).expanduser(), "out")
    tracker = open_command(config.tracking, EVALUATE, config.root)
    say = partial(print, file=sys.stderr, flush=True)
    last = time.monotonic()

    def progress(message: str, done: float) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS:
            last = time.monotonic()
            say(f"{done:6.1%}  {message}")

    evaluation = evaluate_model(config, words, say, progress)
    figures = draw_scores(evaluation.rows, evaluation.folder)
    report = markdown(evaluation.rows, evaluation.about, [figure.name for figure in figures])
    write_atomically(evaluation.folder / "scores.md", report)
    record_evaluation(tracker, evaluation, figures)
    console = Console()
    for table in score_tables(evaluation.rows, f"scores of {evaluation.about['model']}"):
        for part in table.terminal():
            console.print(part)
    for line in [*remarks(evaluation.rows), *of_data(evaluation.about)]:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"written  {evaluation.folder}", highlight=False, soft_wrap=True)
    if tracker.where:
        console.print(f"run      {tracker.where}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
