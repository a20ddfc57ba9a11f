"""Everything that only a GPU can show, in order of worth, within 25 minutes: `make gpu`, or `python -m tests.gpu [small=true] [out=DIR] [only=PART]`.

    numerics    the tests marked gpu: every attention kernel against fp64 mathematics, values and gradients, in fp32 and bf16
    train       tokens/s, both MFUs and peak memory of a training step: Llama 2 7B at 4k, 16k, 32k, and 1B and 135M, against transformers
    loss        the chunked loss alone against torch's cross-entropy, and Liger's and cut-cross-entropy's where they are installed
    growth      peak memory of a step from 2k to 64k tokens
    ablation    experiments/extend_smollm2.yaml with fewer tokens, without MLflow; it wants SmolLM2's weights (`make smollm2`)

Each part runs in a process of its own, with a limit of time, and writes DIR/PART.json as it goes; what has been measured stays. Weights of
speed measurements are random. ``small=true`` takes tiny models on whatever device there is: it proves that the script works, and measures nothing.
It needs no MLflow.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_long.batch import Batch
from lit_long.config import ModelConfig
from lit_long.model.attention import describe
from lit_long.model.fused_loss import PACKAGES, fused_nats, why_not
from lit_long.model.loss import chunk_tokens, summed_nats
from lit_long.training.throughput import describe_machine, peak_flops, peak_memory_gib, update_flops
from tests.benchmarks.bench_train_step import LOSS_MEMORY, SIZES, ours, theirs

PARTS = {"numerics": 180, "train": 600, "loss": 90, "growth": 150, "ablation": 480}  # seconds; 25 minutes in all
LLAMA_7B = ModelConfig(context=32_768)
LLAMA_1B = ModelConfig(32_000, 2048, 22, 32, 4, 64, 5632, 1e-5, False, 32_768, 10_000.0)
TINY = ModelConfig(512, 64, 2, 2, 1, 32, 128, 1e-5, True, 1024, 10_000.0)
TARGETS = {("7B", 4096): 9600, ("7B", 16_384): 7500, ("7B", 32_768): 6000}
PACKAGES_MEASURED = ("torch", "transformers", "flash-attn", "flash-attn-3", "flash-attn-4", "liger-kernel", "cut-cross-entropy")
Row = dict[str, Any]


class Bench:
    """Where rows go, and on what they are measured."""

    def __init__(self, file: Path, small: bool) -> None:
        self.file, self.small, self.rows = file, small, []
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        versions = {name: version for name in PACKAGES_MEASURED if (version := version_of(name))}
        self.about = {
            "machine": describe_machine(self.device),
            "python": platform.python_version(),
            "versions": versions,
            "small": small,
        }

    def add(self, **values: Any) -> None:
        self.rows.append(values | self.about)
        self.file.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
        print(
            "   "
            + " · ".join(
                f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
            ),
            flush=True,
        )

    def tried(self, measure: Callable[[], dict[str, Any]], **values: Any) -> dict[str, Any]:
        """Add what ``measure`` finds; when it does not fit, or fails, that is the finding."""
        try:
            found = measure()
        except torch.OutOfMemoryError:
            found = {"failed": "out of memory"}
        except Exception as error:
            found = {"failed": f"{type(error).__name__}: {error}"[:300]}
        self.add(**values, **found)
        gc.collect()  # blocks that are checkpointed hold themselves; a model of 7B must not outlive its case
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return found

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def version_of(distribution: str) -> str | None:
    """As its package says it: not every module has a ``__version__``, and none is imported for it."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def train(bench: Bench) -> None:
    """Pure bf16: parameters, gradients and AdamW's state, so that 7B fits one GPU of 80 GB."""
    bench.add(attention=describe(bench.device, torch.bfloat16, 128))
    cases = [("7B", LLAMA_7B, 4096, 2, "full"), ("7B", LLAMA_7B, 32_768, 1, "full"), ("7B", LLAMA_7B, 16_384, 1, "full")]
    cases += [
        ("7B", LLAMA_7B, 8192, 1, "selective"),  # at 32,768 it needs 104 GiB, as planned
        ("1B", LLAMA_1B, 32_768, 1, "full"),
        ("135M", SIZES["135M"], 8192, 4, "none"),
    ]
    if bench.small:
        cases = [("tiny", TINY, 256, 2, way) for way in ("full", "selective", "none")]
    for name, shape, length, rows, checkpointing in cases:
        what = dict(name=f"step, {name}, {rows} × {length:,}, bf16-true", checkpointing=checkpointing)
        mine = bench.tried(
            lambda case=(shape, rows, length, checkpointing): step(bench, "ours", *case),
            **what,
            who="ours",
            target=TARGETS.get((name, length)),
        )
        if checkpointing != "selective":
            peer = bench.tried(
                lambda case=(shape, rows, length, checkpointing): step(bench, "theirs", *case), **what, who="transformers sdpa"
            )
            if "tokens_per_second" in mine and "tokens_per_second" in peer:
                bench.add(**what, ratio=mine["tokens_per_second"] / peer["tokens_per_second"], target=1.2)


def step(bench: Bench, who: str, shape: ModelConfig, rows: int, length: int, checkpointing: str) -> dict[str, Any]:
    """The median of five steps after three that compile and warm up."""
    tokens = torch.randint(shape.vocab_size, (rows, length), device=bench.device)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with bench.device:
            model = ours(shape, True, checkpointing, seed=None) if who == "ours" else theirs(shape).train()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02) if parameter.ndim > 1 else parameter.fill_(1)
    batch = Batch(
        tokens, tokens.roll(-1, 1), torch.zeros_like(tokens), torch.arange(length, device=bench.device).expand_as(tokens)
    )
    if who != "ours" and checkpointing == "full":
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    times = []
    for _ in range(3 + (2 if bench.small else 5)):
        bench.wait()
        start = time.perf_counter()
        loss = torch.div(*model(batch)) if who == "ours" else model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        bench.wait()
        times.append(time.perf_counter() - start)
    seconds = sorted(times[3:])[len(times[3:]) // 2]
    found: dict[str, Any] = {
        "tokens_per_second": rows * length / seconds,
        "loss": float(loss.detach()),
        "peak_memory_gib": peak_memory_gib(bench.device),
    }
    if peak := peak_flops(bench.device, "bf16-true"):
        full, causal = update_flops(shape, batch)
        found |= {"mfu": full / seconds / peak, "mfu_causal": causal / seconds / peak}
    return found


def loss(bench: Bench) -> None:
    tokens, words, width = (512, 1000, 64) if bench.small else (16_384, 32_000, 4096)
    hidden, head = (torch.randn(n, width, device=bench.device, dtype=torch.bfloat16).requires_grad_() for n in (tokens, words))
    targets = torch.randint(words, (tokens,), device=bench.device)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: summed_nats(hidden[None], targets[None], head, chunk_tokens(words, LOSS_MEMORY))[0],
        "torch": lambda: torch.nn.functional.cross_entropy((hidden @ head.t()).float(), targets, reduction="sum"),
    }
    for backend in PACKAGES:
        if reason := why_not(backend, bench.device, torch.bfloat16):
            bench.add(name="loss alone", who=backend, left_out=reason)
        else:
            ways[backend] = lambda backend=backend: fused_nats(backend, hidden, head, targets)

    def measure(way: Callable[[], torch.Tensor]) -> dict[str, Any]:
        best = float("inf")
        for _ in range(5):
            bench.wait()
            start = time.perf_counter()
            value = way()
            value.backward()
            bench.wait()
            best = min(best, time.perf_counter() - start)
            norm, hidden.grad, head.grad = float(hidden.grad.float().norm()), None, None
        return {
            "seconds": best,
            "nats_a_token": float(value.detach()) / tokens,
            "gradient_norm": norm,
            "peak_memory_gib": peak_memory_gib(bench.device),
        }

    for who, way in ways.items():
        bench.tried(lambda way=way: measure(way), name=f"loss alone, {tokens:,} tokens, {words:,} words, width {width}", who=who)


def growth(bench: Bench) -> None:
    shape, lengths = (TINY, (256, 512, 1024)) if bench.small else (LLAMA_1B, (2048, 8192, 32_768, 65_536))
    for length in lengths:
        bench.tried(lambda length=length: step(bench, "ours", shape, 1, length, "full"), name="growth", length=length)


def ablation(bench: Bench) -> None:
    words = ["experiment=extend_smollm2", "tracking=none", f"root={bench.file.parent}", "stages.extend.tokens=4M", "seed=1"]
    if bench.small:
        words = ["tracking=none", f"root={bench.file.parent}", *small_sweep()]
    finished = subprocess.run([sys.executable, "-m", "lit_long.sweep", *words], capture_output=True, text=True)
    tables = sorted(bench.file.parent.glob("runs/*/latest/table.csv"))
    bench.add(
        name="ablation",
        exit_code=finished.returncode,
        table=tables[0].read_text() if tables else "",
        said=finished.stdout[-2000:] + finished.stderr[-2000:],
    )
    if finished.returncode:
        raise SystemExit(finished.stderr[-2000:])


def small_sweep() -> list[str]:
    from tests.integration.mini import MINI

    return [*MINI, "grid.position=[rope,abf]"]


def numerics(bench: Bench) -> None:
    import pytest

    marked = "not slow and not gpu" if bench.small else "gpu"
    code = pytest.main(["-q", "-p", "no:xdist", "-m", marked, "tests/model/test_attention.py", "tests/model/test_loss.py"])
    bench.add(name="numerics", exit_code=int(code))
    if code:
        raise SystemExit(int(code))


def main(argv: list[str]) -> int:
    words = dict(word.split("=", 1) for word in argv)
    small, out = words.get("small") == "true", Path(words.get("out", "runs/gpu")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    if "part" in words:
        globals()[words["part"]](Bench(out / f"{words['part']}.json", small))
        return 0
    if not small and not torch.cuda.is_available():
        print("make gpu: torch finds no GPU here; small=true proves the script on any machine", file=sys.stderr)
        return 2
    failed = []
    for part in words.get("only", ",".join(PARTS)).split(","):
        print(f"── {part}", flush=True)
        command = [sys.executable, "-m", "tests.gpu", f"part={part}", f"small={str(small).lower()}", f"out={out}"]
        try:
            code = subprocess.run(command, timeout=PARTS[part]).returncode
        except subprocess.TimeoutExpired:
            code = f"stopped after {PARTS[part]} s"
        if code:
            failed.append(part)
            print(f"   {part} failed: {code}", flush=True)
    print(f"results in {out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
