"""What `python -m lit_long.doctor` says: of this machine, and as if on machines that are not here; and that the page of commands says the same."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import pytest
import torch

from lit_long import doctor
from lit_long.model import flash
from lit_long.model.attention import choose, use
from tests.docs.blocks import REPOSITORY

PAGE = (REPOSITORY / "docs" / "guides" / "installation.md").read_text(encoding="utf-8")
GPUS = {8: "NVIDIA A100-SXM4-80GB", 9: "NVIDIA H100 80GB HBM3", 10: "NVIDIA B200", 12: "NVIDIA GeForce RTX 5090"}


@pytest.fixture
def machine(monkeypatch):
    """Makes torch speak of eight GPUs of a capability, with these generations of FlashAttention."""

    def pretend(capability: int, *installed: flash.Generation) -> None:
        gpu = SimpleNamespace(name=GPUS[capability], major=capability, minor=0, total_memory=85e9)
        for name, value in {
            "is_available": True,
            "device_count": 8,
            "get_device_properties": gpu,
            "get_device_capability": (capability, 0),
        }.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(flash, "why_not", lambda own: "" if own in installed else f"{own.name} is not installed")
        monkeypatch.setattr(flash, "ready", lambda *_: None)
        flash.find.cache_clear()

    yield pretend
    flash.find.cache_clear()


def screen(capsys, *words) -> str:
    assert doctor.main(list(words)) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 100, text
    return text


def test_this_machine(tmp_path):
    done = subprocess.run([sys.executable, "-m", "lit_long.doctor", f"root={tmp_path}"], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    for said in (torch.__version__, f"free in {tmp_path}", "attention", "memory", "packages", "missing"):
        assert said in done.stdout


@pytest.mark.parametrize("capability", flash.ORDERS)
def test_a_bare_machine_with_gpus(capability, machine, monkeypatch, capsys):
    """Nothing optional is installed: still one screen, with the command for each thing."""
    machine(capability)
    monkeypatch.setattr(doctor, "version", lambda name: "")
    text = " ".join(screen(capsys).split())
    order = flash.ORDERS[capability]
    assert f"8 × {GPUS[capability]}, 79 GiB, compute capability {capability}.0 ({order.gpus})" in text
    assert "auto takes in bf16 torch's SDPA, torch's varlen_attn where documents are masked" in text
    for command in (order.faster[0].install, "pip install 'lit-long[eval]'", "pip install liger-kernel"):
        assert command in text


def test_what_is_installed_is_taken(machine, capsys):
    machine(9, flash.FLASH_3)
    text = screen(capsys)
    assert "in bf16 for whole sequences and documents FlashAttention 3" in text and "FlashAttention 3 is installed" in text
    assert not re.search(r"^missing .*FlashAttention", text, re.M)


def test_a_gpu_that_torch_cannot_see(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for built, remedy in ((None, "a torch with CUDA"), ("13.0", "a driver that knows")):
        monkeypatch.setattr(torch.version, "cuda", built)
        text = screen(capsys)
        assert "torch sees none of 2" in text and re.search(rf"^missing +for the GPUs: {remedy}", text, re.M)


def test_every_extra_has_a_line():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*doctor.EXTRAS, "dev", "flash"} == set(extras)  # flash depends on the GPU: the generations' own commands
    for extra, (distribution, _) in doctor.EXTRAS.items():
        assert any(re.match(rf"{distribution}\b", needed) for needed in extras[extra])


def test_the_page_has_the_codes_table_and_commands(machine):
    """Per capability: what runs with the best package, what without any, and what one who insists gets."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]
    said = {int(row[1].split(".")[0]): [row[0], *row[2:]] for row in rows if re.fullmatch(r"\d+\.x", row[1])}
    gpu, found = torch.device("cuda", 0), {}
    for capability, order in flash.ORDERS.items():
        machine(capability)
        without = [choose(gpu, torch.bfloat16, 128, documents) for documents in (False, True)]
        taken, insisted = [], []
        for generation in order.generations:
            machine(capability, generation)
            taken += [generation.name[-1]] * (choose(gpu, torch.bfloat16, 128, True) == "flash")
            with use("flash"):
                insisted += [generation.name[-1]] * (choose(gpu, torch.bfloat16, 128, True) == "flash")
        found[capability] = [order.gpus, ", ".join(taken), *without, ", ".join(insisted)]
    assert said == found
    commands = {row[0]: row[1].strip("`") for row in rows if row[0].startswith("FlashAttention ")}
    assert commands == {each.name: each.install for each in (flash.FLASH_2, flash.FLASH_3, flash.FLASH_4)}
