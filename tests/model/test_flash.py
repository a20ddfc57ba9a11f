"""The kernels of GPUs in our blocks: plain and compiled, with every kind of checkpointing; their own Python code, over kernels for the CPU."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch

from lit_long.model import flash
from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.positions.layers import LayerGroup, LayerPattern
from lit_long.training.parallel import CHECKPOINTING, parallelize
from tests.model import flash_packages
from tests.model.test_llama import SMALL, batch_of

CAPABILITY = {"FlashAttention 2": 8, "FlashAttention 3": 9, "varlen_attn": 10}
PACKAGES = ("flash_attn", "flash_attn_2_cuda", "flash_attn_3", "flash_attn_interface")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    try:
        yield flash_packages.download(tmp_path_factory.mktemp("flash"))
    except (subprocess.SubprocessError, OSError):
        pytest.skip("flash-attn's source distribution cannot be downloaded here")
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def installed(source):
    called: list[str] = []
    flash_packages.install_2(source)
    libraries = [flash_packages.install_3(source), flash_packages.install_varlen(called)]
    compiled = sys.modules["flash_attn_2_cuda"]
    for name in ("fwd", "varlen_fwd"):
        real = getattr(compiled, name)
        setattr(compiled, name, lambda *x, real=real, name=name: called.append(name) or real(*x))
    yield called
    for library in libraries:
        library._destroy()


@pytest.fixture
def on_a_gpu(installed, monkeypatch):
    """As on a GPU of that capability: what is chosen, found and made ready there is here, too."""
    monkeypatch.setattr(flash, "_kernels", {})
    flash.find.cache_clear()

    def pretend(capability: int) -> list[str]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (capability, 0))
        monkeypatch.setattr(
            flash, "why_no_flash", lambda device, dtype, head_dim, insists=False: flash.find(capability, insists).why_not
        )
        monkeypatch.setattr(flash, "why_no_varlen", lambda device, dtype: "")
        installed.clear()
        return installed

    yield pretend
    flash.find.cache_clear()
    torch.nn.attention.restore_flash_attention_impl(_raise_warn=False)
    torch.compiler.reset()


def losses(documents: bool, compiled: bool = False, checkpointing: str = "none", window: int | None = None):
    """Loss and gradients of a small model on two rows."""
    encoder = build({"scheme": "rope"}, SMALL.head_dim)
    model = Llama(SMALL, LayerPattern((LayerGroup(encoder), LayerGroup(encoder, window)), (0, 1)))
    model.init_weights(0)
    parallelize(model, None, checkpointing, compiled)
    batch = batch_of(torch.randint(SMALL.vocab_size, (2, 48), generator=torch.Generator().manual_seed(0)))
    if documents:
        ids = torch.arange(48).div(20, rounding_mode="floor").expand(2, -1).clone()
        batch = batch._replace(document_ids=ids, mask_documents=True)
    nats, _ = model(batch)
    nats.backward()
    return nats.detach(), [parameter.grad for parameter in model.parameters()]


def cases():
    for case in itertools.product(CAPABILITY, (False, True), (False, True), CHECKPOINTING):
        kernel, documents, compiled, checkpointing = case
        if documents or kernel != "varlen_attn":  # without documents that is SDPA
            slow = compiled  # one of them, varlen_attn's, is in the rehearsal (tests/test_gpu_script.py)
            names = f"{kernel}-{'documents' if documents else 'whole'}-{'compiled' if compiled else 'eager'}-{checkpointing}"
            yield pytest.param(*case, id=names, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(("kernel", "documents", "compiled", "checkpointing"), cases())
def test_kernels_of_gpus_in_our_blocks(kernel, documents, compiled, checkpointing, on_a_gpu):
    nats, gradients = losses(documents)
    called = on_a_gpu(CAPABILITY[kernel])
    found, own = losses(documents, compiled, checkpointing)
    runs = 2 if checkpointing == "full" else 1  # selective keeps what attention gives
    name = "fwd" if kernel == "FlashAttention 2" and not documents else "varlen_fwd"
    assert called == [name] * SMALL.n_layers * runs
    assert torch.nn.attention.current_flash_attention_impl() == ("FA3" if kernel == "FlashAttention 3" else None)
    assert torch.allclose(found, nats, rtol=1e-5)
    for ours, theirs in zip(own, gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("kernel", CAPABILITY)
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("window", [2, 13])
def test_windows_by_kernels_of_gpus(kernel, documents, window, on_a_gpu):
    """Of one layer; the kernels' own count of its tokens is without the query's."""
    nats, gradients = losses(documents, window=window)
    called = on_a_gpu(CAPABILITY[kernel])
    found, own = losses(documents, window=window)
    assert len(called) == (2 if documents or kernel != "varlen_attn" else 1)  # whole sequences without a window are SDPA's
    assert torch.allclose(found, nats, rtol=1e-5)
    for ours, theirs in zip(own, gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()))
