"""Which kernel is chosen, every kernel against fp32 math attention (those of a GPU are marked so), and packages that are missing or broken."""

from __future__ import annotations

import re
import sys

import pytest
import torch

from lit_long.batch import PADDING, Batch
from lit_long.config import UserError
from lit_long.model import flash
from lit_long.model.attention import (
    KERNELS,
    AttentionMask,
    attention,
    attention_masks,
    choose,
    describe,
    document_cu_seqlens,
    use,
)
from lit_long.training.parallel import ATTENTION
from tests.training.test_parallel import Operations

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
IDS = torch.tensor([[0] * 21 + [1] * 1 + [2] * 15, [3] * 30 + [PADDING] * 7])  # odd lengths, one of 1, padding


@pytest.fixture
def kernels(monkeypatch):
    """Nothing is found yet, and what a test finds is forgotten."""
    monkeypatch.setattr(flash, "_kernels", {})
    flash.find.cache_clear()
    yield
    flash.find.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        del sys.modules[name]


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
    found = attention(q, k, v, AttentionMask(cu_seqlens, kernel, 37))
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


@pytest.mark.parametrize(
    ("capability", "installed", "whole", "documents", "insisted"),
    [
        (8, (), "sdpa", "varlen", None),
        (8, ("FlashAttention 2",), "flash", "flash", "FlashAttention 2"),
        (8, ("FlashAttention 3", "FlashAttention 4"), "sdpa", "varlen", None),  # written for others
        (9, (), "sdpa", "varlen", None),
        (9, ("FlashAttention 2",), "sdpa", "varlen", "FlashAttention 2"),  # cuDNN is faster
        (9, ("FlashAttention 2", "FlashAttention 4"), "sdpa", "varlen", "FlashAttention 4"),
        (9, ("FlashAttention 2", "FlashAttention 3"), "flash", "flash", "FlashAttention 3"),
        (10, ("FlashAttention 2", "FlashAttention 3"), "sdpa", "varlen", None),
        (10, ("FlashAttention 4",), "flash", "flash", "FlashAttention 4"),
        (12, ("FlashAttention 2",), "flash", "flash", "FlashAttention 2"),
        (7, ("FlashAttention 2",), "sdpa", "varlen", None),
    ],
)
def test_the_order_of_kernels_on_a_gpu(capability, installed, whole, documents, insisted, kernels, monkeypatch):
    """The choice itself, for hardware and packages that are not here."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (capability, 0))
    monkeypatch.setattr(flash, "why_not", lambda own: "" if own.name in installed else f"{own.name} is not installed")
    monkeypatch.setattr(flash, "ready", lambda *_: None)
    for dtype, head_dim in ((torch.float32, 128), (torch.bfloat16, 512)):
        assert choose(GPU, dtype, head_dim, False) == "sdpa"
    assert [choose(GPU, torch.bfloat16, 128, masked) for masked in (False, True)] == [whole, documents]
    text = describe(GPU, torch.bfloat16, 128)
    assert (
        (installed[-1] in text)
        if whole == "flash"
        else text.startswith("torch's SDPA, torch's varlen_attn where documents are masked")
    )
    with use("flash"):
        if insisted:
            assert choose(GPU, torch.bfloat16, 128, True) == "flash" and insisted in describe(GPU, torch.bfloat16, 128)
        else:
            with pytest.raises(
                UserError, match=r"trainer.attention=flash cannot run here: .*(not installed|compute capability 7)"
            ):
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


@pytest.mark.parametrize(
    ("queries", "dtype", "shared"),
    [(37, torch.float32, 4), (37, torch.bfloat16, 2), (5, torch.float32, 4), (5, torch.bfloat16, 4)],  # the last 5 need a mask
    ids=str,
)
def test_no_gpu_computes_all_scores(queries, dtype, shared, monkeypatch):
    """Where heads share keys, SDPA has nothing for fp32, nor for a mask, on a GPU but its math kernel, of T × T scores: every head gets keys of its own."""
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *x, **how: seen.append((x, how)) or real(*x, **how)
    )
    q, k, v = (
        torch.empty(2, heads, tokens, 32, dtype=dtype, device="meta") for heads, tokens in ((4, queries), (2, 37), (2, 37))
    )
    assert attention(q, k, v, AttentionMask()).shape == q.shape
    (((_, keys, values), how),) = seen
    assert keys.shape[1] == values.shape[1] == shared and how["enable_gqa"] == (shared != 4)


PACKAGES = {
    "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2')": "flash_attn is installed but broken .ImportError: flash_attn_2_cuda.so",
    "import einops_that_nobody_has": "flash_attn is installed but lacks the package einops_that_nobody_has",
    "__version__ = '0.1'": "flash_attn is installed but has no flash_attn_varlen_func",
}


@pytest.mark.parametrize("code", PACKAGES)
def test_a_broken_package_is_a_sentence(code, tmp_path, monkeypatch, kernels):
    """Real imports that fail as one built for another torch does, for want of another package, and for being another one; and none at all."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert flash.find(8).why_not == "FlashAttention 2 (flash_attn) is not installed"
    flash.find.cache_clear()
    (tmp_path / "flash_attn.py").write_text(code)
    found = flash.find(8)
    assert found.generation is None and re.search(PACKAGES[code], found.why_not)


def test_flash_attention_4_is_an_operation(tmp_path, monkeypatch, kernels):
    """Put behind torch's own, which compile and selective checkpointing know. Tensors have no values: what comes to the package is not run."""
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    for file in ("flash_attn/__init__.py", "flash_attn/cute/__init__.py", "flash_attn/cute/interface.py"):
        (tmp_path / file).write_text("_flash_attn_fwd = _flash_attn_bwd = flash_attn_varlen_func = None\n")
    (tmp_path / "flash_attn_4-4.0.0.dist-info").mkdir()
    (tmp_path / "flash_attn_4-4.0.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: flash-attn-4\nVersion: 4.0.0\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (10, 0))
    q, k, v = (torch.empty(1, heads, 64, 32, dtype=torch.bfloat16, device="meta", requires_grad=True) for heads in (4, 2, 2))
    try:
        assert choose(GPU, torch.bfloat16, 32, True) == "flash"
        assert torch.nn.attention.current_flash_attention_impl() == "FA4"
        with Operations() as found:
            attention(
                q, k, v, AttentionMask(torch.tensor([0, 20, 64], dtype=torch.int32, device="meta"), "flash", 64)
            ).sum().backward()
    finally:
        torch.nn.attention.restore_flash_attention_impl(_raise_warn=False)
    kept = [name for name in found.names if any(word in name for word in ATTENTION)]
    assert len(kept) == 2 and "backward" in kept[1], found.names


@pytest.mark.parametrize(
    ("lengths", "expected"), [([20, 1000], 1020), ([200, 820], 1020), ([300, 300, 420], 512), ([10] * 102, 256)]
)
def test_the_longest_document_bounds_the_kernels_grid(lengths, expected, monkeypatch):
    """By a power of two, so that compiled code meets few of them; not by the whole sequence."""
    monkeypatch.setattr(flash, "why_no_varlen", lambda device, dtype: "")
    ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
    (mask,) = attention_masks(Batch(ids, ids, ids, ids, True), torch.bfloat16, 32, [None])
    assert mask.kernel == "varlen" and mask.longest == expected >= max(lengths)


def test_an_old_copy_of_flash_attention_4_is_not_it(tmp_path, monkeypatch, kernels):
    """FlashAttention 2.8's wheel has a flash_attn.cute that imports, and cannot train."""
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    for file in ("flash_attn/__init__.py", "flash_attn/cute/__init__.py", "flash_attn/cute/interface.py"):
        (tmp_path / file).write_text("def flash_attn_varlen_func(): ...\n_flash_attn_fwd = _flash_attn_bwd = None\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert flash.find(10).why_not == "FlashAttention 4 (flash-attn-4) is not installed"
