"""What this machine has, what lit-long will use, and what is missing, with the command that installs it: one screen.

    python -m lit_long.doctor
    python -m lit_long.doctor root=FOLDER       the folder of runs/, as for a sweep

Nothing is changed or downloaded. How to install on a machine with GPUs: docs/guides/installation.md. Exit codes: 0 even if something is missing; 2 bad input.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from lit_long import __version__
from lit_long.config import TrainerConfig, parse_words, project_root, typed
from lit_long.config.ranges import FilePath
from lit_long.files import cache_folder
from lit_long.planning.hardware import GIB
from lit_long.terminal import answer, run_command

if TYPE_CHECKING:
    import torch

WIDTH, LABEL = 100, 13  # columns of the screen, and of what stands before a line
HEAD_DIM = 128  # Llama 2's
CORE = ("lightning", "mlflow", "transformers", "triton")
EXTRAS = {  # extra: a distribution that it brings, and what wants it
    "datasets": ("datasets", "sources hf:NAME"),
    "instruct": ("openai", "generator=endpoint"),
    "lora": ("peft", "adapters"),
    "eval": ("lm-eval", "lm-eval's tasks"),
    "cluster": ("submitit", "SLURM, Ray"),
    "server": ("psycopg", "mlflow/serve.sh for a team"),
}
TORCH_WITH_CUDA = "a torch with CUDA: the selector on PyTorch's page Get Started has the command"
NEWER_DRIVER = "a driver that knows torch's CUDA: nvidia-smi says which it knows"
Line = tuple[str, str]  # what it is about, and what there is


@dataclass
class DoctorConfig:
    root: FilePath = ""


def main(argv: list[str]) -> int:
    return answer(argv, __doc__, run)


def run(argv: list[str]) -> None:
    config = typed(DoctorConfig, parse_words(argv, DoctorConfig), "command line")
    for name, text in examine(Path(config.root).expanduser().resolve() if config.root else project_root()):
        for place, line in enumerate(textwrap.wrap(text, WIDTH - LABEL, break_on_hyphens=False)):
            print(f"{'' if place else name:<{LABEL}}{line}")


def examine(root: Path) -> Iterator[Line]:
    """All there is to say, from the general to what is missing."""
    missing: list[str] = []
    yield (
        "lit-long",
        f"{__version__}; Python {platform.python_version()}; {platform.system()} {platform.release()}, {platform.machine()}",
    )
    yield from host()
    yield from accelerators(missing)
    for name, folder in (("runs/", root / "runs"), ("cache", cache_folder())):
        yield name, f"{free_space(folder) / GIB:,.0f} GiB free in {folder}"
    yield (
        "packages",
        ", ".join(f"{name} {number}" for name in (*CORE, *(name for name, _ in EXTRAS.values())) if (number := version(name))),
    )
    missing += [f"for {use}: pip install 'lit-long[{extra}]'" for extra, (name, use) in EXTRAS.items() if not version(name)]
    for place, line in enumerate(missing or ["nothing"]):
        yield "" if place else "missing", line


def host() -> Iterator[Line]:
    """Processor, threads and memory."""
    import psutil
    import torch

    from lit_long.data.pool import available_cores
    from lit_long.processor import describe_machine
    from lit_long.stages.resolve import resolve_precision

    memory = psutil.virtual_memory()
    yield (
        "CPU",
        f"{describe_machine(torch.device('cpu'))}; a stage takes {available_cores()} threads, in {resolve_precision(TrainerConfig())}",
    )
    yield "memory", f"{memory.total / GIB:,.0f} GiB, {memory.available / GIB:,.0f} GiB available"


def accelerators(missing: list[str]) -> Iterator[Line]:
    """torch, GPUs, and the kernels that ``trainer.attention=auto`` and ``trainer.loss=auto`` take; what would be faster is added to ``missing``."""
    import torch

    from lit_long.launch.local import visible_gpus
    from lit_long.model import flash, fused_loss

    gpu = torch.cuda.is_available()
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    nccl = f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}" if gpu and torch.distributed.is_nccl_available() else "no NCCL"
    yield "torch", f"{torch.__version__}, {built}; for several ranks {nccl} on GPUs, gloo on CPUs"
    if not gpu:
        driven = len(visible_gpus())  # as the driver says
        yield "GPUs", f"torch sees none{f' of {driven}' if driven else ''}; trainer=cpu"
        if driven:
            missing.append("for the GPUs: " + (NEWER_DRIVER if torch.version.cuda else TORCH_WITH_CUDA))
        yield "attention", f"auto takes {chosen(torch.device('cpu'), torch.bfloat16)}"
        return
    properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    for (name, major, minor, memory), alike in groupby(
        properties, key=lambda one: (one.name, one.major, one.minor, one.total_memory)
    ):
        kind = f" ({flash.ORDERS[major].gpus})" if major in flash.ORDERS else ""
        yield (
            "GPUs",
            f"{len(list(alike))} × {name}, {memory / GIB:.0f} GiB, compute capability {major}.{minor}{kind}; trainer=gpu",
        )
    device, order = torch.device("cuda", 0), flash.ORDERS.get(properties[0].major)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        yield "attention", f"auto takes in {precision} {chosen(device, dtype)}"
    for generation in order.generations if order else ():
        reason = flash.why_not(generation)
        yield "", reason or f"{generation.name} is installed"
        if reason and generation in order.faster:
            missing.append(f"{generation.name}, faster here: {generation.install}")
    for backend, (_, package) in fused_loss.PACKAGES.items():
        reason = fused_loss.why_not(backend, device, torch.bfloat16)
        yield "loss", reason or f"trainer.loss={backend} can run ({package} {version(package)}); auto takes chunked"


def chosen(device: torch.device, dtype: torch.dtype) -> str:
    """The kernels, as a stage's log has them."""
    from lit_long.model.attention import describe

    text = describe(device, dtype, HEAD_DIM)
    return text if "where documents are masked" in text else f"for whole sequences and documents {text}"


def version(distribution: str) -> str:
    """Of what is installed; "" of what is not."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def free_space(folder: Path) -> int:
    """Bytes on the disk on which ``folder`` is, or will be."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(there).free


if __name__ == "__main__":
    run_command(main)
