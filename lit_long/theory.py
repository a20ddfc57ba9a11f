"""Analyze positional encoders without training: decay, granularity, adaptation, base bound and spectrum, beside the papers' statements.

    python -m lit_long.theory                                  every scheme in configs/position, Llama 2's numbers
    python -m lit_long.theory schemes=[rope,abf] out=DIR       some of them, written to DIR (default: runs/theory)
    python -m lit_long.theory head_dim=64 base=1e4 factor=4 length=2k distances=[0,100,1k] truncate=1k
    python -m lit_long.theory layers=[swan,mine] n_layers=24   what the layers of patterns in configs/layers see (default: all, 12 layers)
    python -m lit_long.theory search=longrope stage=FOLDER length=8k
                                                               factors for LongRoPE, by evolution on a trained stage's model

Writes spectrum.csv, decay.csv, granularity.csv, base_bound.csv, layers.csv, query_scale.csv, theory.md and figures/theory.png, layers.png, .svg,
and records them in MLflow (experiment `theory`; tracking.enabled=false leaves that out). `length` is the context before stretching, `factor` how far it is
stretched, `base` RoPE's, `truncate` the truncated basis' T. The search writes longrope.yaml, for position=DIR/longrope.yaml;
its `length` is the context to reach; its budget: population, iterations, parents, mutations, crossovers, sequences, domains, seed.
Exit codes: 0 written, 2 bad input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from lit_long.config import check_path, parse_words, plain, project_root, typed
from lit_long.config.output_folder import check_writable
from lit_long.positions.analysis import TheoryConfig, analyze
from lit_long.report.theory_report import COLUMNS, write_theory
from lit_long.stages.folder import read_stage
from lit_long.terminal import answer, run_command
from lit_long.tracking import open_tracker
from lit_long.tracking.record import THEORY, record_theory

COMMAND_LINE = "command line"


def main(argv: list[str]) -> int:
    return answer(argv, __doc__, run)


def run(argv: list[str]) -> None:
    console = Console()
    if any(word.startswith("search=") for word in argv):
        search(argv, console)
    else:
        write_study(typed(TheoryConfig, parse_words(argv, TheoryConfig), COMMAND_LINE), console)


def places(out: str, root: str) -> tuple[Path, Path]:
    """The output folder and the root that runs/ and mlflow/ lie below."""
    for key, path in (("out", out), ("root", root)):
        check_path(path, COMMAND_LINE, key)
    base = Path(root).expanduser().resolve() if root else project_root()
    return (Path(out).expanduser().resolve() if out else base / "runs" / "theory"), base


def write_study(config: TheoryConfig, console: Console) -> None:
    out, root = places(config.out, config.root)
    check_writable(out, "out")
    tables, left_out = analyze(config)
    setting = {name: getattr(config, name) for name in ("head_dim", "base", "length", "stretched")}
    shown = write_theory(out, tables, setting, left_out)
    for part in (part for table in shown for part in table.terminal()):
        console.print(part)
    for line in left_out:
        console.print(f"left out: {line}", highlight=False)
    record(config, out, root, tables["schemes"])
    console.print(f"figures  {out / 'figures' / 'theory.png'}\ntables   {out}", highlight=False, soft_wrap=True)


def record(config: TheoryConfig, out: Path, root: Path, schemes: list[dict[str, Any]]) -> None:
    tracker = open_tracker(config.tracking, THEORY, root)
    settings = {key: value for key, value in plain(config).items() if key not in ("out", "root", "tracking")}
    files = [*(out / f"{name}.csv" for name in COLUMNS), out / "theory.md"]
    record_theory(tracker, settings, schemes, files, out / "figures")


def search(argv: list[str], console: Console) -> None:
    """Find LongRoPE's factors for the model of a trained stage, and write them as a position option."""
    from lit_long.evaluation.longrope_search import SearchConfig, search_factors, write_option

    config = typed(SearchConfig, parse_words(argv, SearchConfig), COMMAND_LINE)
    check_path(config.stage, COMMAND_LINE, "stage")
    folder, out = Path(config.stage).expanduser().resolve(), places(config.out, config.root)[0]
    check_writable(out, "out")
    trained, store, _ = read_stage(folder)
    found = search_factors(config, trained, store, folder, lambda line: console.print(line, highlight=False))
    file = write_option(out / "longrope.yaml", found, config)
    console.print(
        f"perplexity at {config.length:,} tokens: {found.before:.4f} before, {found.perplexity:.4f} with the factors found"
    )
    console.print(f"option   {file}   (use it as position={file})", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
