"""A Hopper GPU that is not there, for the rehearsal of `make gpu` on a CPU.

    python -m tests.gpu.pretended -m MODULE [WORDS]      MODULE as on Hopper; so are the Python processes that it starts

lit_long and Lightning are told of a GPU: `torch.cuda` answers them as an H100's would, devices named cuda are the CPU, and a tensor that lit_long asks
for its device says cuda. Everybody else (torch, its compiler, FSDP2) sees the CPU. Attention's kernels are those of tests/model/flash_packages.py:
FlashAttention's own Python files and torch's varlen_attn over kernels for the CPU. Ranks talk over gloo. What is pretended is in this file, and only here.

Which uses of a GPU in lit_long are entered is recorded, line by line, where the variable REHEARSAL_LINES names a folder.
"""

from __future__ import annotations

import ast
import atexit
import json
import os
import runpy
import stat
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, ClassVar

import torch
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily

REPOSITORY = Path(__file__).resolve().parents[2]
# Folders: of entered lines, if they are wanted; of FlashAttention's source distribution, if it is there; of a script that starts Python
LINES, PACKAGES, SCRIPTS = "REHEARSAL_LINES", "REHEARSAL_FLASH_ATTENTION", "REHEARSAL_SCRIPTS"
TOLD = (
    "lit_long",
    "lightning",
    "tests",
    "test_",
    "flash_attn",
    "__main__",
)  # modules that see a GPU, by the beginnings of their names
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
HOPPER = {
    "is_available": lambda: True,
    "device_count": lambda: 2,
    "current_device": lambda: int(os.environ.get("LOCAL_RANK", 0)),
    "set_device": lambda device: None,
    "get_device_name": lambda device=None: "NVIDIA H100 80GB HBM3 (pretended)",
    "get_device_capability": lambda device=None: (9, 0),
    "is_bf16_supported": lambda *_: True,
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
    "reset_peak_memory_stats": lambda device=None: None,
    "max_memory_allocated": lambda device=None: resident(),
    "mem_get_info": lambda device=None: (70 * 2**30, 80 * 2**30),
    "memory_stats": lambda device=None: {},
    "get_rng_state_all": list,
    "set_rng_state_all": lambda states: None,
}
called: list[str] = []  # attention's kernels, as they run


def resident() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def is_told(frame: FrameType) -> bool:
    """Whether the Python code that asks is to be told of a GPU."""
    while frame.f_globals.get("__name__", "").startswith(("torch.utils._device", "torch.overrides", "torch._tensor")):
        frame = frame.f_back
    return frame.f_globals.get("__name__", "").startswith(TOLD)


def here(value: Any) -> Any:
    """The CPU, where a GPU is meant."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return CPU
    return CPU if isinstance(value, str) and value.partition(":")[0] == "cuda" else value


class Devices(TorchFunctionMode):
    """Tensors that say that they are on a GPU to who is told of one, and are made on the CPU."""

    answers: ClassVar[dict[Any, Any]] = {
        torch.Tensor.device.__get__: GPU,
        torch.Tensor.is_cuda.__get__: True,
        torch.Tensor.is_cpu.__get__: False,
    }

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if function in self.answers:
            asks = sys._getframe(1)
            here_yet = asks.f_globals.get("__name__") == "lit_long.batch"  # which moves what the loader made
            is_mine = args[0].device.type == "cpu" and is_told(asks) and not here_yet
            return self.answers[function] if is_mine else function(*args)
        if function in (torch.Tensor.pin_memory, torch.Tensor.cuda):
            return args[0]
        if kwargs and "pin_memory" in kwargs:
            kwargs = kwargs | {"pin_memory": False}
        if function is torch.device or getattr(function, "__name__", "") == "_parse_to":  # of Module.to: they only name a device
            return function(*args, **kwargs or {})
        if function is torch.Tensor.backward:
            with self:
                return backward(*args, **kwargs or {})
        return function(*map(here, args), **{key: here(value) for key, value in (kwargs or {}).items()})


def backward(
    tensor: torch.Tensor, gradient: Any = None, retain_graph: Any = None, create_graph: bool = False, inputs: Any = None
) -> None:
    torch.autograd.backward(tensor, gradient, retain_graph, create_graph, inputs=inputs)


def answered(real: Callable[..., Any], pretended: Callable[..., Any]) -> Callable[..., Any]:
    def answer(*args: Any, **kwargs: Any) -> Any:
        return (pretended if is_told(sys._getframe(1)) else real)(*args, **kwargs)

    return answer


def install(packages: tuple[int, ...] = (2, 3)) -> None:
    """Pretend, in this process from now on. ``packages``: the generations of FlashAttention that are installed."""
    for name, pretended in HOPPER.items():
        setattr(torch.cuda, name, answered(getattr(torch.cuda, name), pretended))
    compile_, autocast = torch.compile, torch.autocast
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype

    def compiled(model: Any = None, **how: Any) -> Any:
        """Compiled code sees the CPU that it is made for."""
        fast = compile_(model, **how)

        def call(*args: Any, **kwargs: Any) -> Any:
            with _pop_mode_temporarily():
                return fast(*args, **kwargs)

        return call

    class Autocast(autocast):
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    torch.compile, torch.autocast = compiled, Autocast
    torch.is_autocast_enabled = answered(enabled, lambda kind=None: enabled("cpu" if kind == "cuda" else kind))
    torch.get_autocast_dtype = answered(dtype, lambda kind: dtype("cpu" if kind == "cuda" else kind))
    torch.autograd.has_torch_function = lambda *_: False  # the mode stays on in backward, where blocks are computed again
    over_gloo()
    install_kernels(packages)
    Devices().__enter__()


def over_gloo() -> None:
    """Ranks, and the meshes of FSDP2 and tensor parallelism."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    from lit_long.training import parallel

    join, from_group, init_mesh = dist.init_process_group, DeviceMesh.from_group, parallel.init_device_mesh

    def init_process_group(backend: str | None = None, *args: Any, device_id: Any = None, **kwargs: Any) -> None:
        join("gloo" if backend == "nccl" else backend, *args, **kwargs)

    dist.init_process_group = init_process_group
    DeviceMesh.from_group = staticmethod(lambda group, device_type, *args, **kwargs: from_group(group, "cpu", *args, **kwargs))
    parallel.init_device_mesh = lambda device_type, *args, **kwargs: init_mesh("cpu", *args, **kwargs)


def install_kernels(packages: tuple[int, ...]) -> None:
    from tests.model import flash_packages

    kept.append(flash_packages.install_varlen(called))
    if source := os.environ.get(PACKAGES):
        flash_packages.install_2(Path(source))
        kept.append(flash_packages.install_3(Path(source)))
        compiled = sys.modules["flash_attn_2_cuda"]
        for name in ("fwd", "varlen_fwd"):
            real = getattr(compiled, name)
            setattr(compiled, name, lambda *x, real=real, name=name: called.append(f"flash_attn_2_cuda.{name}") or real(*x))
    leave_only(packages)


kept: list[torch.library.Library] = []  # operations are gone with their library
MODULES = {2: "flash_attn", 3: "flash_attn_interface"}
_modules: dict[str, Any] = {}


def leave_only(packages: tuple[int, ...]) -> None:
    """Hide the other generations of FlashAttention; nothing is chosen yet."""
    from lit_long.model import flash

    for generation, name in MODULES.items():
        if sys.modules.get(name) is not None:
            _modules[name] = sys.modules[name]
        if generation in packages and name in _modules:
            sys.modules[name] = _modules[name]
        else:
            sys.modules[name] = None  # importing it fails as if it were not there
    flash._kernels.clear()
    flash.find.cache_clear()
    if torch.nn.attention.current_flash_attention_impl():
        torch.nn.attention.restore_flash_attention_impl(_raise_warn=False)


# ---- which lines of lit_long that ask for a GPU are entered


def uses() -> dict[str, dict[int, str]]:
    """File → line → source of every use of a GPU in lit_long: torch.cuda, a device's type, is_cuda, is_cpu, pin_memory."""
    found: dict[str, dict[int, str]] = {}
    for file in sorted((REPOSITORY / "lit_long").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "cuda" not in text and "is_cpu" not in text:
            continue
        lines = text.splitlines()
        numbers = sorted({node.lineno for node in ast.walk(ast.parse(text)) if is_use(node)})
        if numbers:
            found[str(file.relative_to(REPOSITORY))] = {number: lines[number - 1].strip() for number in numbers}
    return found


def is_use(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in ("is_cuda", "is_cpu", "pin_memory") or (
            isinstance(node.value, ast.Attribute) and node.value.attr == "cuda"
        )
    if isinstance(node, ast.Compare):
        left, words = node.left, ast.unparse(node.comparators[0])
        named = isinstance(left, ast.Attribute) and left.attr in ("type", "accelerator")
        return named and "cuda" in words
    return False


def record() -> None:
    """Write the lines of `uses` that this process enters into a file, when it ends."""
    if not (folder := os.environ.get(LINES)):
        return
    wanted = {str(REPOSITORY / name): set(lines) for name, lines in uses().items()}
    entered: dict[str, set[int]] = {}
    watched: dict[CodeType, set[int]] = {}

    def begin(frame: FrameType, event: str, _: Any) -> Callable | None:
        code = frame.f_code
        if code not in watched:
            lines = wanted.get(code.co_filename, set())
            watched[code] = lines & {line for _, _, line in code.co_lines() if line}
        return step if watched[code] else None

    def step(frame: FrameType, event: str, _: Any) -> Callable:
        if event == "line" and frame.f_lineno in watched[frame.f_code]:
            entered.setdefault(str(Path(frame.f_code.co_filename).relative_to(REPOSITORY)), set()).add(frame.f_lineno)
        return step

    def write() -> None:
        sys.settrace(None)
        Path(folder, f"{uuid.uuid4().hex}.json").write_text(json.dumps({name: sorted(lines) for name, lines in entered.items()}))

    atexit.register(write)
    sys.settrace(begin)


def reached(folder: Path) -> list[tuple[str, int, str, bool]]:
    """(File, line, source, entered) of every use of a GPU in lit_long."""
    entered: dict[str, set[int]] = {}
    for file in folder.glob("*.json"):
        for name, lines in json.loads(file.read_text()).items():
            entered.setdefault(name, set()).update(lines)
    return [
        (name, number, source, number in entered.get(name, ()))
        for name, lines in uses().items()
        for number, source in lines.items()
    ]


# ---- whole processes


@contextmanager
def for_children(folder: Path) -> Iterator[None]:
    """Within: `sys.executable`, which lit_long starts stages and ranks with, is a script in ``folder`` that pretends, too."""
    script, real = folder / "python-on-hopper", sys.executable
    script.write_text(f'#!/bin/sh\nexport PYTHONPATH="{REPOSITORY}"\nexec "{real}" -m tests.gpu.pretended "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    sys.executable = str(script)
    try:
        yield
    finally:
        sys.executable = real


def main(argv: list[str]) -> None:
    """As `python`, for `-m lit_long…`; anything else is started as it is."""
    words = [word for word in argv if word != "-u"]
    if words[:1] != ["-m"] or not words[1].startswith("lit_long"):
        os.execv(sys.executable, [sys.executable, *argv])
    with for_children(Path(os.environ[SCRIPTS])):
        if words[1] not in ("lit_long.sweep", "lit_long.launch.ranks"):  # which compute nothing
            install()
            record()
        sys.argv = [words[1], *words[2:]]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
