"""MKL's fast path on AMD's processors: taken in a process of its own, where it changes rounding and nothing else."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys

import pytest
import torch

from lit_long import processor
from tests.evaluation.models import bytes_folder
from tests.integration.mini import REPOSITORY

ON_AMD = processor.intel_check() is not None
COMPUTE = """
import json, sys, torch
import torch.nn.functional as F
from lit_long.processor import describe_machine, take_mkl_fast_path
said = take_mkl_fast_path() if sys.argv[1] == "fast" else ""
torch.manual_seed(0)
q, k, v = (torch.randn(1, 2, 600, 64, requires_grad=True) for _ in range(3))
out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
out.square().sum().backward()
product = torch.randn(300, 400) @ torch.randn(400, 500)
torch.save([out.detach(), q.grad, k.grad, v.grad, product], sys.argv[2])
print(json.dumps([said, describe_machine(torch.device("cpu")), take_mkl_fast_path()]))
"""


def compute(which, file):
    """In a process of its own: MKL asks once, at its first product."""
    done = subprocess.run(
        [sys.executable, "-c", COMPUTE, which, str(file)], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), torch.load(file)


@pytest.mark.skipif(not ON_AMD, reason="needs a processor of AMD's and a torch with MKL")
def test_the_fast_path_differs_by_rounding(tmp_path):
    (said, machine, again), fast = compute("fast", tmp_path / "fast.pt")
    (_, other, _), slow = compute("slow", tmp_path / "slow.pt")
    assert "its fast path" in said and again == ""
    assert machine == f"{other}, MKL's fast path"
    exact = {name: torch.equal(a, b) for name, a, b in zip(("out", "q", "k", "v", "product"), fast, slow, strict=True)}
    assert not all(exact.values())  # other kernels did compute
    for one, two in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5 * two.abs().max().item())


@pytest.mark.parametrize(("wanted", "accelerator"), [(True, "cpu"), (False, "cpu"), (True, "gpu")])
def test_a_stage_on_a_cpu_takes_it_unless_told_not_to(wanted, accelerator, monkeypatch, capsys, tmp_path):
    from lit_long.config import StageConfig, TrainerConfig
    from lit_long.evaluation import run
    from lit_long.stages.run import compute

    monkeypatch.setattr("lit_long.stages.run.take_mkl_fast_path", lambda: "MKL: fast")
    monkeypatch.setattr(run, "evaluate", lambda *_: {"kind": "evaluate"})
    compute(
        StageConfig(kind="evaluate", trainer=TrainerConfig(accelerator=accelerator, mkl_fast_path=wanted)),
        tmp_path,
        tmp_path,
        None,
        print,
    )
    assert capsys.readouterr().out == ("MKL: fast\n" if wanted and accelerator == "cpu" else "")


@pytest.mark.parametrize("wanted", [True, False])
def test_so_does_the_command_that_evaluates(wanted, monkeypatch):
    from lit_long.stages import scores

    def no_model(*_):
        raise LookupError

    said = []
    monkeypatch.setattr(scores, "take_mkl_fast_path", lambda: "MKL: fast")
    monkeypatch.setattr(scores, "load_model", no_model)  # what comes next
    with pytest.raises(LookupError):
        scores.evaluate_model(scores.EvaluateConfig(out="scores", device="cpu", mkl_fast_path=wanted), {}, said.append, print)
    assert said == ["MKL: fast"] * wanted


@pytest.fixture
def another(monkeypatch):
    """Gives processor_info another vendor."""

    def change(vendor):
        monkeypatch.setattr(processor, "processor_info", lambda: {"vendor_id": vendor})
        processor.intel_check.cache_clear()

    yield change
    monkeypatch.undo()
    processor.intel_check.cache_clear()


@pytest.mark.parametrize("vendor", ["GenuineIntel", None])
def test_nothing_on_other_processors(another, vendor):
    another(vendor)
    assert processor.intel_check() is None and processor.take_mkl_fast_path() == "" and not processor.has_mkl_fast_path()


def test_a_torch_without_mkl_has_nothing_to_take(another, monkeypatch):
    another(processor.AMD)
    monkeypatch.setattr(processor, "INTEL_CHECK", "no_such_function")
    assert processor.take_mkl_fast_path() == ""


@pytest.mark.skipif(not ON_AMD, reason="needs a processor of AMD's and a torch with MKL")
def test_a_system_that_refuses_leaves_all_as_it_was(monkeypatch):
    class Refusing:
        def mprotect(self, *_):
            ctypes.set_errno(13)
            return -1

    library = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda name, **how: Refusing() if name is None else library(name, **how))
    monkeypatch.setattr(processor, "has_mkl_fast_path", lambda: False)
    assert processor.take_mkl_fast_path() == "MKL: not its fast path, the system refuses: Permission denied"


@pytest.mark.parametrize(
    ("flags", "slow"), [("sse2 avx2 fma", True), ("avx2 avx512f", False), ("avx2 avx512f avx512_bf16", False), ("", False)]
)
def test_bf16_is_noted_where_torch_multiplies_it_slowly(flags, slow, monkeypatch, tmp_path):
    from lit_long.config import read_command
    from lit_long.stages.model import load_model
    from lit_long.stages.plan import make_plan

    monkeypatch.setattr(processor, "processor_info", lambda: {"flags": flags} if flags else {})

    def notes(*words):
        return [note for note in make_plan(read_command([f"root={tmp_path}", *words])).notes if "AVX-512" in note]

    assert notes() == []  # auto
    asked = notes("trainer.precision=bf16-mixed", "evaluation.precision=bf16-true")
    assert len(asked) == (2 if slow else 0)
    assert not slow or (asked[0].startswith("trainer.precision: this") and "evaluation.precision=32-true avoids it" in asked[1])
    assert notes("trainer=gpu", "trainer.precision=bf16-true", "evaluation.precision=bf16-true") == []
    said, folder = [], bytes_folder(tmp_path / "model")
    for dtype in ("float32", "bfloat16"):
        load_model({"model": {"init": str(folder)}}, "", "cpu", dtype, said.append)
    assert [line for line in said if "AVX-512" in line] == (
        [f"note: {processor.note_on_bf16('dtype=bfloat16')}; dtype=float32 avoids it"] if slow else []
    )
