"""Which kernel is chosen, every kernel against fp32 math attention (those of a GPU are marked so), and packages that are missing or broken."""

from __future__ import annotations

import sys

import pytest
import torch

from lit_long.batch import PADDING, Batch
from lit_long.config import UserError
from lit_long.model import flash
from lit_long.model.attention import KERNELS, AttentionMask, attention, choose, describe, document_cu_seqlens, use

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
IDS = torch.tensor([[0] * 21 + [1] * 1 + [2] * 15, [3] * 30 + [PADDING] * 7])  # odd lengths, one of 1, padding


def inputs(heads, shared, dtype, device=CPU, K=32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 37, heads, K), (2, 37, shared, K), (2, 37, shared, K), (2, 37, heads, K))
    return [torch.randn(shape, generator=generator).to(device, dtype).transpose(1, 2).requires_grad_() for shape in shapes]


def by_hand(q, k, v, ids):
    """Softmax of masked scores in fp64."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    allowed = torch.ones(37, 37, dtype=torch.bool, device=q.device).tril()
    if ids is not None:
        allowed = allowed & (ids[:, None, :, None] == ids[:, None, None, :])
    scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5
    return scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ v


def check(kernel, heads, shared, masked, dtype, device=CPU):
    q, k, v, weight = inputs(heads, shared, dtype, device)
    ids = IDS.to(device) if masked else None
    cu_seqlens = document_cu_seqlens(Batch(ids, ids, ids, ids, True)) if masked else None
    expected = by_hand(q, k, v, ids)
    found = attention(q, k, v, AttentionMask(cu_seqlens, kernel))
    assert found.dtype == dtype
    ours, truth = (torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (found, expected.to(weight.dtype)))
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    for a, b in zip((found, *ours), (expected, *truth), strict=True):
        assert (a.double() - b.double()).norm() <= limit * b.double().norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (6, 2), (4, 1)])
def test_sdpa_on_a_cpu(heads, shared, masked, dtype):
    check("sdpa", heads, shared, masked, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_on_a_gpu(kernel, heads, shared, masked, dtype):
    with use(kernel):
        try:
            choose(GPU, dtype, 32, masked)
        except UserError as error:
            pytest.skip(str(error))
    check(kernel, heads, shared, masked, dtype, GPU)


@pytest.mark.parametrize("lengths", [[600], [40, 560], [513, 87], [512, 88]], ids=str)
def test_documents_shorter_and_longer_than_where_the_kernels_change(lengths):
    """bf16, values and gradients against fp64: no worse than torch's own kernel under the full mask."""
    ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
    generator = torch.Generator().manual_seed(0)
    q, k, v, weight = (torch.randn(1, h, 600, 32, generator=generator).bfloat16().requires_grad_() for h in (4, 2, 2, 4))
    allowed = (ids[:, None, :, None] == ids[:, None, None, :]) & torch.ones(600, 600, dtype=torch.bool).tril()
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    cu_seqlens = document_cu_seqlens(Batch(ids, ids, ids, ids, True))
    outs = [attention(q, k, v, AttentionMask(cu_seqlens))] + [
        torch.nn.functional.scaled_dot_product_attention(*x, attn_mask=allowed, enable_gqa=True) for x in ((q, k, v), exact)
    ]
    found, torchs, truth = (
        (out, *torch.autograd.grad((out * weight.to(out.dtype)).sum(), x)) for out, x in zip(outs, ((q, k, v), (q, k, v), exact))
    )
    for ours, theirs, right in zip(found, torchs, truth, strict=True):
        assert (ours.double() - right).norm() <= 1.2 * (theirs.double() - right).norm() <= 0.02 * right.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operation_keeps_torchs_rules(dtype):
    """torch's own check of custom operations: schema, shapes without data, gradients under tracing, changing sizes."""
    q, k, v, _ = inputs(4, 2, dtype)
    cu_seqlens = document_cu_seqlens(Batch(IDS, IDS, IDS, IDS, True))
    torch.library.opcheck(torch.ops.lit_long.attend_documents, (q, k, v, cu_seqlens))


def test_a_gpu_gets_the_fastest_that_is_there(monkeypatch):
    """The choice itself, for hardware that is not here."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(flash, "find", lambda capability: flash.Found("FlashAttention 3"))
    assert choose(GPU, torch.bfloat16, 128, True) == choose(GPU, torch.bfloat16, 128, False) == "flash"
    assert choose(GPU, torch.float32, 128, True) == "sdpa" and choose(GPU, torch.bfloat16, 512, False) == "sdpa"
    assert "FlashAttention 3" in describe(GPU, torch.bfloat16, 128)
    monkeypatch.setattr(flash, "find", lambda capability: flash.Found(why_not="flash-attn is not installed"))
    assert choose(GPU, torch.bfloat16, 128, True) == "varlen" and choose(GPU, torch.bfloat16, 128, False) == "sdpa"
    assert choose(GPU, torch.float32, 128, True) == "sdpa"
    text = describe(GPU, torch.bfloat16, 128)
    assert "varlen_attn where documents are masked" in text and "flash-attn is not installed" in text
    with use("flash"), pytest.raises(UserError, match=r"trainer.attention=flash cannot run here: flash-attn is not installed"):
        choose(GPU, torch.bfloat16, 128, True)


def test_a_cpu_uses_sdpa_and_says_what_it_cannot():
    assert choose(CPU, torch.bfloat16, 64, True) == "sdpa" and describe(CPU, torch.float32, 64) == "torch's SDPA"
    for kernel in ("flash", "varlen"):
        with (
            use(kernel),
            pytest.raises(UserError, match=rf"trainer.attention={kernel} cannot run here: .*NVIDIA.*trainer.attention=auto"),
        ):
            choose(CPU, torch.bfloat16, 64, True)
    with pytest.raises(UserError, match="did you mean 'flash'"), use("flahs"):
        pass


def test_a_broken_package_is_a_sentence(tmp_path, monkeypatch):
    """A real import that fails as one built for another torch does; and none at all."""
    flash.find.cache_clear()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert "not installed" in flash.find(8).why_not
    flash.find.cache_clear()
    (tmp_path / "flash_attn.py").write_text("raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2')")
    found = flash.find(8)
    assert (
        found.dense is None
        and "flash_attn is installed but broken (ImportError: flash_attn_2_cuda.so: undefined symbol" in found.why_not
    )
    flash.find.cache_clear()
