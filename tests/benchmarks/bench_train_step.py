"""A training step on the CPU: ours against transformers' LlamaForCausalLM (sdpa), the same work, precision and optimizer in the same run.

Forward, backward and fused AdamW, under bf16 autocast where the processor computes bf16 (else in fp32; the rows say which). Each contestant
has a process of its own and they take turns, step by step, so that all meet the same machine. Ours runs as a stage of a sweep does, with the
settings of its process (memory, launch/local.py; MKL's fast path on AMD's processors, processor.py) and its blocks compiled; theirs as people
run it, eager, and compiled, and eager with our settings, which shows what is ours beside them. The bound is a step's matrix products and
attention alone, by torch's own functions and with our settings: what is left of ours to gain. With `full` also, for the reading: ours eager.
Further rows: peak memory of one step at 8,192 tokens, the loss alone against torch's, and how our memory grows with the context.

make bench, or python -m tests.benchmarks.bench_train_step FILE.json [full] [until=SECONDS] to have the rows in a file; … profile SIZE ROWS LENGTH
says where the time of our eager step goes, and how near matrix products and attention are to what the processor can do.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lit_long.batch import Batch
from lit_long.config import ModelConfig, TrainerConfig
from lit_long.launch.local import KEEP_MEMORY
from lit_long.model.llama import Llama
from lit_long.model.loss import chunk_tokens, summed_nats
from lit_long.planning.flops import matmul_weights
from lit_long.positions import build
from lit_long.processor import describe_machine, intel_check, take_mkl_fast_path
from lit_long.stages.resolve import resolve_precision
from lit_long.training.parallel import parallelize
from lit_long.training.throughput import measured_peak
from tests.integration.mini import REPOSITORY

SIZES = {
    "5M": ModelConfig(4096, 256, 5, 4, 2, 64, 688, 1e-5, True, 8192, 10_000.0),
    "15M": ModelConfig(8192, 384, 8, 6, 3, 64, 1024, 1e-5, True, 8192, 10_000.0),
    "135M": ModelConfig(49_152, 576, 30, 9, 3, 64, 1536, 1e-5, True, 8192, 100_000.0),
    "long": ModelConfig(4096, 64, 2, 1, 1, 64, 172, 1e-5, True, 65_536, 10_000.0),
}
SPEED = [
    ("5M", 8, 512),
    ("5M", 2, 2048),
    ("5M", 1, 8192),
    ("15M", 8, 512),
    ("15M", 2, 2048),
    ("15M", 1, 8192),
    ("135M", 4, 512),
    ("135M", 1, 2048),
]
CONTESTANTS = ("ours compiled", "theirs eager", "theirs eager with our settings", "bound", "theirs compiled", "ours eager")
OURS = ("ours", "bound", "theirs eager with our settings")  # beginnings of those that have the settings of a stage's process
EAGER_TARGET, COMPILED_TARGET, LARGE_TARGET, MEMORY_TARGET = 1.3, 1.05, 1.15, 1 / 0.6
SETTINGS_TARGET, BOUND_TARGET = 1.0, 0.9  # against theirs with our settings; against the bound
LOSS_MEMORY = 2**29
# Within the half hour that all benchmarks have together; `full`: 5 and 3, the rows of 8,192 tokens, and all contestants.
ROUNDS, SLOW_ROUNDS = 3, 1
ROUND_SECONDS = 60  # no further round after so long, unless `full`: a slow machine gets fewer
NATIVE = resolve_precision(TrainerConfig()) == "bf16-mixed"  # as stages choose it
DTYPE = "bf16" if NATIVE else "fp32"
MKL_FAST_PATH = intel_check() is not None  # of those with our settings
Row = dict[str, Any]


def ours(shape: ModelConfig, compiled: bool = False, checkpointing: str = "none", seed: int | None = 0) -> Llama:
    model = Llama(
        shape, build({"scheme": "rope", "base": shape.rope_base}, shape.head_dim), chunk_tokens(shape.vocab_size, LOSS_MEMORY)
    )
    if seed is not None:
        model.init_weights(seed)
    return parallelize(model, None, checkpointing, compiled)


def theirs(shape: ModelConfig, attention: str = "sdpa") -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ffn,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=shape.tie_embeddings,
        use_cache=False,
        max_position_embeddings=shape.context,
        attn_implementation=attention,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
    )
    return LlamaForCausalLM(config)


def stepper(who: str, shape: ModelConfig, rows: int, length: int) -> Callable[[], None]:
    """One update of a contestant, on tokens of its own."""
    torch.manual_seed(0)
    if who == "bound":
        return bound(shape, rows, length)
    tokens = torch.randint(shape.vocab_size, (rows, length))
    if who.startswith("ours"):
        model = ours(shape, "compiled" in who, "full" if "checkpointed" in who else "none")
        targets = torch.roll(tokens, -1, dims=1)
        batch = Batch(tokens, targets, torch.zeros_like(tokens), torch.arange(length).expand_as(tokens))
        loss = lambda: torch.div(*model(batch))  # noqa: E731
    else:
        model = theirs(shape).train()
        if "compiled" in who:
            model.compile()
        loss = lambda: model(tokens, labels=tokens).loss  # noqa: E731
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=NATIVE):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bound(shape: ModelConfig, rows: int, length: int) -> Callable[[], None]:
    """Only the matrix products and the attention of an update, forward and backward, on tensors that are there already."""
    dtype = torch.bfloat16 if NATIVE else torch.float32
    inner, keys = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    sizes = [(shape.d_model, inner), *2 * [(shape.d_model, keys)], (inner, shape.d_model)]
    sizes += [*2 * [(shape.d_model, shape.d_ffn)], (shape.d_ffn, shape.d_model)]

    def matrices(wide: int, out: int) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(torch.randn(*size, dtype=dtype) for size in ((rows * length, wide), (out, wide), (rows * length, out)))

    blocks, head = [matrices(*size) for size in sizes], matrices(shape.d_model, shape.vocab_size)
    heads = [shape.n_heads, shape.n_kv_heads, shape.n_kv_heads]
    q, k, v = (torch.randn(rows, n, length, shape.head_dim, dtype=dtype, requires_grad=True) for n in heads)

    def products(x: Tensor, weight: Tensor, gradient: Tensor) -> None:
        x @ weight.T, gradient @ weight, gradient.T @ x

    def step() -> None:
        for _ in range(shape.n_layers):
            for each in blocks:
                products(*each)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads[0] != heads[1])
            torch.autograd.grad(out, (q, k, v), out.detach())
        products(*head)

    return step


class Contestant:
    """A process that makes one step for every line that it is sent, and answers with its seconds and its peak memory so far in MiB."""

    def __init__(self, who: str, size: str, rows: int, length: int) -> None:
        keep = KEEP_MEMORY if who.startswith(OURS) else {}
        command = [sys.executable, "-m", "tests.benchmarks.bench_train_step", "step", who, size, str(rows), str(length)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))} | keep
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment)
        self.process = subprocess.Popen(command, **pipes)

    def step(self) -> tuple[float, float]:
        self.begin()
        return self.end()

    def begin(self) -> None:
        print(file=self.process.stdin, flush=True)

    def end(self) -> tuple[float, float]:
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process ended: {self.process.args}")
        return tuple(json.loads(answer))

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def contestant(who: str, size: str, rows: int, length: int) -> None:
    if who.startswith(OURS):
        take_mkl_fast_path()
    before = peak_mebibytes()
    step = stepper(who, SIZES[size], rows, length)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(json.dumps([time.perf_counter() - start, peak_mebibytes() - before]), flush=True)


def peak_mebibytes() -> float:
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def row(name: str, peer: str, mine: float, peers: float, ratio: float, target: float | None, unit: str, **more: Any) -> Row:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    found = {"name": name, "peer": peer, "ours": mine, "theirs": peers, "ratio": ratio, "target": target, "unit": unit} | more
    found |= {"threads": torch.get_num_threads(), "machine": describe_machine(torch.device("cpu")), "versions": versions}
    found |= {"mkl_fast_path": MKL_FAST_PATH}
    verdict = "" if target is None else f" (target {target:.2f})" if ratio >= target else f" (BELOW TARGET {target:.2f})"
    print(f"{name}: {mine:,.1f} {unit}, {peer} {peers:,.1f}: {ratio:.2f} ×{verdict} {more or ''}", flush=True)
    return found


def speed_rows(size: str, rows: int, length: int, full: bool = False) -> list[Row]:
    """Tokens/s by the median of the rounds, after steps that compile and warm up. Ratios are medians of those within a round."""
    large, slow = size == "135M", size == "135M" or length > 2048
    rounds = (SLOW_ROUNDS if slow else ROUNDS) + (2 if full else 0)
    quick = 4 if large else 5  # those with a target: the large compiled one has none, and compiles for minutes
    kinds = CONTESTANTS[: quick if not full else 5 if slow else None]
    contestants = {who: Contestant(who, size, rows, length) for who in kinds}
    try:
        for _ in range(2 if full or not slow else 1):  # all at once: that they compile is not what is measured
            for one in contestants.values():
                one.begin()
            for one in contestants.values():
                one.end()
        times, start = [], time.perf_counter()
        while len(times) < rounds and (full or not times or time.perf_counter() - start < ROUND_SECONDS):
            times.append({who: one.step()[0] for who, one in contestants.items()})
    finally:
        for one in contestants.values():
            one.__exit__()
    speed = {who: rows * length / statistics.median(round_[who] for round_ in times) for who in kinds}
    name = f"step, {size}, {rows} × {length:,}, {DTYPE}"
    also = {"rounds": len(times)} | ({"ours_eager": speed["ours eager"]} if "ours eager" in kinds else {})
    found = []
    for peer, target in (
        ("theirs eager", LARGE_TARGET if large else EAGER_TARGET),
        ("theirs eager with our settings", SETTINGS_TARGET),
        ("bound", BOUND_TARGET),
        ("theirs compiled", None if large else COMPILED_TARGET),
    ):
        if peer not in kinds:
            continue
        ratio = statistics.median(round_[peer] / round_["ours compiled"] for round_ in times)
        label = "products and attention alone" if peer == "bound" else peer.replace("theirs", "transformers")
        found.append(row(name, label, speed["ours compiled"], speed[peer], ratio, target, "tokens/s", **also))
    return found


def memory_rows(full: bool = False, size: str = "135M", length: int = 8192) -> list[Row]:
    """Peak of the first step over what the process had before there was a model (compiling included): theirs eager, ours compiled; with
    ``full`` also eager, and with checkpointing."""
    found = {}
    for who in ("ours compiled", "theirs eager", *(("ours eager", "ours eager checkpointed") if full else ())):
        with Contestant(who, size, 1, length) as one:
            found[who] = one.step()
    name = f"peak memory of a step, {size}, 1 × {length:,}, {DTYPE}"
    peers = found["theirs eager"][1]
    return [
        row(label, "transformers eager", found[who][1], peers, peers / found[who][1], MEMORY_TARGET, "MiB", seconds=found[who][0])
        for label, who in (
            (f"{name}, ours eager", "ours eager"),
            (f"{name}, ours compiled", "ours compiled"),
            (f"{name}, ours with checkpointing=full", "ours eager checkpointed"),
        )
        if who in found
    ]


def loss_rows(tokens: int = 4096, words: int = 49_152, width: int = 576) -> list[Row]:
    """The loss alone, forward and backward: seconds of the best of four. Logits have a standard deviation of 2.4, as a model's may; those of
    two normal variables have 24, which makes probabilities denormal numbers, and with these it measures little else."""
    torch.manual_seed(0)
    hidden, head = torch.randn(1, tokens, width).requires_grad_(), (0.1 * torch.randn(words, width)).requires_grad_()
    targets = torch.randint(words, (1, tokens))
    chunk = chunk_tokens(words, LOSS_MEMORY)

    def plain() -> torch.Tensor:
        logits = torch.nn.functional.linear(hidden, head).float()
        return torch.nn.functional.cross_entropy(logits[0], targets[0], reduction="sum")

    ways = {"ours": lambda: summed_nats(hidden, targets, head, chunk)[0], "plain": plain}
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(4):
        for who, way in ways.items():
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=NATIVE):
                value = way()
            value.backward()
            best[who] = min(best[who], time.perf_counter() - start)
            hidden.grad = head.grad = None
    name = f"loss alone, {tokens:,} tokens, {words:,} words, width {width}, {DTYPE}"
    return [row(name, "torch's cross_entropy", best["ours"], best["plain"], best["plain"] / best["ours"], None, "s")]


def growth_row(lengths: tuple[int, ...] = (2048, 8192, 32_768, 65_536)) -> Row:
    """Peak memory of a step by context: the mebibytes a token costs from 32k to 64k, against those from 2k to 8k; quadratic growth gives 10."""
    peaks = []
    for length in lengths:
        with Contestant("ours eager checkpointed", "long", 1, length) as one:
            peaks.append(one.step()[1])
    first, last = ((peaks[b] - peaks[a]) / (lengths[b] - lengths[a]) for a, b in ((0, 1), (-2, -1)))
    peaks_by_length = dict(zip(map(str, lengths), peaks, strict=True))
    return row(
        "memory a token, 32k to 64k", "2k to 8k", last * 1024, first * 1024, first / last, 0.8, "KiB", peaks_mib=peaks_by_length
    )


def profile(size: str, rows: int, length: int) -> None:
    """Shares of a step's time, and GFLOP/s of its two large parts beside those of one large matrix product."""
    from torch.profiler import profile as profiler

    shape = SIZES[size]
    step = stepper("ours eager", shape, rows, length)
    step(), step()
    with profiler() as watch:
        step()
    own = {event.key: event.self_cpu_time_total / 1e6 for event in watch.key_averages()}
    total = sum(own.values())
    products = sum(seconds for name, seconds in own.items() if name in ("aten::mm", "aten::bmm", "aten::addmm"))
    attention = sum(seconds for name, seconds in own.items() if "flash_attention" in name)
    tokens, width = rows * length, shape.n_heads * shape.head_dim
    print(
        f"{size}, {rows} × {length:,}: {total:.2f} s: matrix products {products / total:.0%}, torch's attention kernel {attention / total:.0%}"
    )
    print(f"   matrix products {6 * matmul_weights(shape) * tokens / products / 1e9:,.0f} GFLOP/s")
    if attention:  # 7 products: two forward, five backward; half of each square
        print(f"   attention {7 * shape.n_layers * width * tokens * length / attention / 1e9:,.0f} GFLOP/s")
    print(
        f"   one product of 1,024³: {measured_peak(torch.bfloat16) / 1e9:,.0f} in bf16, {measured_peak(torch.float32) / 1e9:,.0f} in fp32"
    )


def main(argv: list[str]) -> None:
    if argv and argv[0] == "profile":
        profile(argv[1], int(argv[2]), int(argv[3]))
        return
    if argv and argv[0] == "step":
        contestant(argv[1], argv[2], int(argv[3]), int(argv[4]))
        return
    until = next((float(word.removeprefix("until=")) for word in argv if word.startswith("until=")), float("inf"))
    files = [word for word in argv if word != "full" and not word.startswith("until=")]
    measure("full" in argv, until, Path(files[0]) if files else None)


def measure(full: bool = False, until: float = float("inf"), file: Path | None = None) -> None:
    """All parts, the rows in ``file`` as each part ends. Left out, and named, is what would last beyond ``until`` (as time.time() counts), judged
    by what the parts before took and by the minutes that each took on two slow cores (Intel Xeon, 2.5 GHz, fp32)."""
    parts = [
        (f"{size} at {length:,}", 2.0, lambda case=(size, rows, length): speed_rows(*case, full)) for size, rows, length in SPEED
    ]
    parts = [part for part, case in zip(parts, SPEED, strict=True) if full or case[2] <= 2048]
    parts += [("loss", 0.9, loss_rows), ("growth", 1.8, lambda: [growth_row()]), ("peak memory", 7.0, lambda: memory_rows(full))]
    found: list[Row] = []
    start, done = time.time(), 0.0
    for name, minutes, part in parts:
        now = time.time()
        if now + (minutes * (now - start) / done if done else 0.0) > until:
            print(f"{name}: left out, there is no time for it (make bench ARGS=only=train)", flush=True)
            continue
        found += part()
        done += minutes
        if file:
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def test_a_training_step() -> None:
    print()
    measure()


if __name__ == "__main__":
    main(sys.argv[1:])
