"""How time and memory grow: with the context (attention over all tokens, and over a window), with parameters, with trials and with documents.

Each point is measured in a process of its own. A curve is fitted by cost = floor + factor · size^exponent, where the floor is what a process costs that
does next to nothing; beside the exponent stands the one that the work has on paper. Memory is resident memory over what the process had before, of
documents the process' own (the mapped index is the page cache's).

python -m tests.benchmarks only=growth, or python -m tests.benchmarks.bench_growth FILE.json; … draw FILE.json FIGURE draws a file's curves, … table FILE.json
prints them for docs/performance.md. Some ten minutes on two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_long.batch import Batch
from lit_long.config import LayerGroupConfig, LayersConfig, ModelConfig
from lit_long.launch.local import KEEP_MEMORY
from lit_long.model.llama import Llama
from lit_long.model.loss import chunk_tokens
from lit_long.planning.flops import parameters
from lit_long.positions.layers import build_layers
from lit_long.processor import describe_machine, take_mkl_fast_path
from lit_long.training.parallel import parallelize
from tests.benchmarks.bench_data_batches import START
from tests.benchmarks.bench_train_step import LOSS_MEMORY, NATIVE, SIZES, peak_mebibytes
from tests.data.large_store import synthetic_store
from tests.integration.mini import REPOSITORY

CONTEXTS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
WINDOW = 512
SMALL = {
    "1M": ModelConfig(2048, 128, 3, 2, 2, 64, 344, 1e-5, True, 8192, 10_000.0),
    "40M": ModelConfig(16_384, 512, 10, 8, 4, 64, 1376, 1e-5, True, 8192, 10_000.0),
}
SHAPES = {"1M": SMALL["1M"], "5M": SIZES["5M"], "15M": SIZES["15M"], "40M": SMALL["40M"], "135M": SIZES["135M"]}
SEEDS = (1, 5, 25, 125, 250)  # of four encoders
DOCUMENTS = (1000, 10_000, 100_000, 1_000_000, 10_000_000)
ROUNDS = 2
# Each curve: what is on its axis, and the exponents that time and memory have on paper
CURVES = {
    "all tokens": ("context", 2.0, 1.0),
    f"window of {WINDOW}": ("context", 1.0, 1.0),
    "parameters": ("parameters", 1.0, 1.0),
    "trials": ("trials", 1.0, 1.0),
    "documents": ("documents", 1.0, 0.0),
}
# In a process without torch: what a child reports as its highest memory begins with that of the process it was forked from.
PLANNING = """
import json, sys
from tests.benchmarks.bench_planning import measure
print(json.dumps(measure(int(sys.argv[1]), sys.argv[2])))
"""
Point = dict[str, float]


def step_of(shape: ModelConfig, length: int, window: int | None) -> Callable[[], None]:
    """An update on one sequence, with every layer as wide as ``window``, activations computed again in backward."""
    torch.manual_seed(0)
    layers = LayersConfig({"all": LayerGroupConfig(window=window)}, ["all"]) if window else LayersConfig()
    encoder = build_layers(layers, {"scheme": "rope", "base": 10_000.0}, shape.head_dim)
    model = Llama(shape, encoder, chunk_tokens(shape.vocab_size, LOSS_MEMORY))
    model.init_weights(0)
    model = parallelize(model, None, "full", False)
    tokens = torch.randint(shape.vocab_size, (1, length))
    batch = Batch(tokens, torch.roll(tokens, -1, dims=1), torch.zeros_like(tokens), torch.arange(length)[None])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=NATIVE):
            loss = torch.div(*model(batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def one_step(name: str, length: str, window: str) -> None:
    """In a process of its own: seconds of the best update, and the peak of memory."""
    take_mkl_fast_path()
    before = peak_mebibytes()
    step, seconds = step_of(SHAPES.get(name, SIZES["long"]), int(length), int(window) or None), []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": min(seconds), "MiB": peak_mebibytes() - before}))


def run(*words: str, **environment: str) -> Point:
    done = subprocess.run(
        [sys.executable, *words], cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def update(name: str, length: int, window: int = 0) -> Point:
    return run("-m", "tests.benchmarks.bench_growth", "step", name, str(length), str(window), **KEEP_MEMORY)


def measure() -> dict[str, list[Point]]:
    """All curves; prints each point."""
    found: dict[str, list[Point]] = {name: [] for name in CURVES}

    def add(curve: str, size: float, point: Point) -> None:
        found[curve].append({"size": size} | point)
        print(f"{curve}, {size:,}: {point['seconds']:.3f} s, {point['MiB']:,.0f} MiB", flush=True)

    for length in CONTEXTS:
        add("all tokens", length, update("long", length))
        add(f"window of {WINDOW}", length, update("long", length, WINDOW))
    for name, shape in SHAPES.items():
        add("parameters", parameters(shape), update(name, 512))
    with tempfile.TemporaryDirectory() as place:
        for seeds in SEEDS:
            planned = run("-c", PLANNING, str(seeds), place)
            add("trials", planned["trials"], {"seconds": planned["seconds"], "MiB": planned["MB"] * 1e6 / 2**20})
    for count in DOCUMENTS:
        with tempfile.TemporaryDirectory() as place:
            folder = synthetic_store(Path(place, "store"), count)
            runs = [run("-c", START, str(folder)) for _ in range(ROUNDS)]
            best = min(runs, key=lambda each: each["seconds"])
            add("documents", count, {"seconds": best["seconds"], "MiB": best["memory"]})
    return found


def fit(points: list[Point], key: str) -> tuple[float, float, float]:
    """(floor, factor, exponent) of cost = floor + factor · size^exponent with the smallest sum of squared relative errors, none of them negative."""
    x, y = (np.array([point[name] for point in points]) for name in ("size", key))
    x, best = x / x.max(), (np.inf, 0.0, 0.0, 0.0)
    for exponent in np.arange(0.0, 3.01, 0.01):
        columns = np.stack([np.ones_like(x), x**exponent], axis=1) / y[:, None]
        solution = np.maximum(np.linalg.lstsq(columns, np.ones_like(y), rcond=None)[0], 0.0)
        if solution[0] == 0:  # then the factor alone
            solution[1] = columns[:, 1].sum() / (columns[:, 1] ** 2).sum()
        error = float(((columns @ solution - 1) ** 2).sum())
        if error < best[0] - 1e-12:
            best = (error, float(solution[0]), float(solution[1]), float(exponent))
    return best[1:]


def table(content: dict[str, Any]) -> str:
    """Smallest and largest size, time and memory there, and exponents beside those on paper."""
    lines = [
        "| | sizes | seconds | exponent of time (on paper) | MiB | exponent of memory (on paper) |",
        "|---|---|---|---|---|---|",
    ]
    for name, (axis, of_time, of_memory) in CURVES.items():
        points = content["curves"][name]
        first, last = points[0], points[-1]
        title = f"{axis}: {name}" if axis != name else axis
        seconds, memory = (f"{first[key]:,.{digits}f} to {last[key]:,.{digits}f}" for key, digits in (("seconds", 2), ("MiB", 0)))
        time_, mib = (fit(points, key)[2] for key in ("seconds", "MiB"))
        lines.append(
            f"| {title} | {first['size']:,} to {last['size']:,} | {seconds} | {time_:.2f} ({of_time:g}) | {memory} | {mib:.2f} ({of_memory:g}) |"
        )
    return "\n".join(lines)


def draw(content: dict[str, Any], file: Path) -> None:
    """Time above, memory below, a column for each axis; lines are the fits."""
    import matplotlib
    from matplotlib.figure import Figure

    from lit_long.report.canvas import COLOURS, DPI, MARKERS, STYLE

    axes_names = list(dict.fromkeys(axis for axis, _, _ in CURVES.values()))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(axes_names), 4.8), dpi=DPI, layout="constrained")
        panels = figure.subplots(2, len(axes_names), sharex="col")
        for place, (name, (axis, *_)) in enumerate(CURVES.items()):
            points, column = content["curves"][name], axes_names.index(axis)
            x = np.array([point["size"] for point in points])
            fine = np.geomspace(x.min(), x.max(), 100)
            for panel, key in zip(panels[:, column], ("seconds", "MiB"), strict=True):
                floor, factor, exponent = fit(points, key)
                label = f"{name}: {exponent:.2f}" if axis != name else f"exponent {exponent:.2f}"
                panel.plot(fine, floor + factor * (fine / x.max()) ** exponent, color=COLOURS[place], linewidth=1.2, label=label)
                panel.plot(x, [point[key] for point in points], MARKERS[place], color=COLOURS[place], markerfacecolor="white")
                panel.set_xscale("log"), panel.set_yscale("log")
                panel.legend(frameon=False, fontsize=8)
        for column, axis in enumerate(axes_names):
            panels[0, column].set_title(axis, loc="left", fontweight="bold", fontsize=9)
            panels[1, column].set_xlabel(axis)
        panels[0, 0].set_ylabel("seconds"), panels[1, 0].set_ylabel("MiB")
        figure.savefig(file, dpi=DPI)


def main(argv: list[str]) -> None:
    if argv and argv[0] == "step":
        one_step(*argv[1:])
        return
    if argv and argv[0] in ("draw", "table"):
        content = json.loads(Path(argv[1]).read_text(encoding="utf-8"))
        draw(content, Path(argv[2])) if argv[0] == "draw" else print(table(content))
        return
    machine = {"machine": describe_machine(torch.device("cpu")), "threads": torch.get_num_threads(), "torch": torch.__version__}
    content = machine | {"precision": "bf16" if NATIVE else "fp32", "curves": measure()}
    print(table(content))
    if argv:
        Path(argv[0]).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
