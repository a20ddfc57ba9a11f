"""FlashAttention's own Python files (2 and 3), from their source distribution, and torch's varlen_attn, over kernels for the CPU in the place of compiled ones,
and only of those.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

VERSION = "2.8.3"


def download(folder: Path) -> Path:
    """The unpacked source distribution. Raises CalledProcessError where there is no index of packages."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:"]
    words = [*pip, "--no-build-isolation", f"flash-attn=={VERSION}", "-d", str(folder)]
    environment = os.environ | {"FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE"}
    subprocess.run(words, env=environment, check=True, capture_output=True, timeout=240)
    (archive,) = folder.glob("flash_attn-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def scores(q_NHK: Tensor, k_MGK: Tensor, scale: float, left: int) -> Tensor:
    """[H, N, M], −∞ above the diagonal that ends in the lower right corner, and more than ``left`` keys before it, unless that is -1."""
    k = k_MGK.repeat_interleave(q_NHK.shape[1] // k_MGK.shape[1], dim=1)
    found = torch.einsum("nhk,mhk->hnm", q_NHK.float(), k.float()) * scale
    seen = torch.ones(found.shape[1:], dtype=torch.bool).tril(found.shape[2] - found.shape[1])
    if left >= 0:
        seen = seen.triu(found.shape[2] - found.shape[1] - left)
    return found.masked_fill(~seen, float("-inf"))


def varlen_fwd(
    q, k, v, out, cu_q, cu_k, seqused, leftpad, table, alibi, longest_q, longest_k, dropout, scale, zero, causal, left, *_
):
    """As flash_api.cpp's mha_varlen_fwd: outputs [N, H, K] and the logarithms of the softmax's sums [H, N]."""
    assert causal and not dropout and cu_q.dtype == cu_k.dtype == torch.int32
    out, sums = torch.empty_like(q), torch.empty(q.shape[1], len(q))
    for (start, stop), (first, last) in zip(cu_q.unfold(0, 2, 1).tolist(), cu_k.unfold(0, 2, 1).tolist(), strict=True):
        assert stop - start <= longest_q and last - first <= longest_k
        found = scores(q[start:stop], k[first:last], scale, left)
        values = v[first:last].repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        sums[:, start:stop] = found.logsumexp(-1)
        out[start:stop] = torch.einsum("hnm,mhk->nhk", found.softmax(-1), values.float()).to(q.dtype)
    return out, sums, q.new_empty(0), torch.zeros(2, dtype=torch.int64)


def varlen_bwd(
    dout, q, k, v, out, sums, dq, dk, dv, cu_q, cu_k, alibi, longest_q, longest_k, dropout, scale, zero, causal, left, *_
):
    dk.zero_(), dv.zero_()
    for (start, stop), (first, last) in zip(cu_q.unfold(0, 2, 1).tolist(), cu_k.unfold(0, 2, 1).tolist(), strict=True):
        own_q, own_k, own_v, own_dout = (x.float() for x in (q[start:stop], k[first:last], v[first:last], dout[start:stop]))
        group = q.shape[1] // k.shape[1]
        wide_k, wide_v = (x.repeat_interleave(group, dim=1) for x in (own_k, own_v))
        shares = scores(own_q, own_k, scale, left).softmax(-1)
        change = torch.einsum("nhk,mhk->hnm", own_dout, wide_v)
        change = shares * (change - (shares * change).sum(-1, keepdim=True)) * scale
        dq[start:stop] = torch.einsum("hnm,mhk->nhk", change, wide_k).to(q.dtype)
        dk[first:last] = torch.einsum("hnm,nhk->mhk", change, own_q).unflatten(1, (-1, group)).sum(2).to(q.dtype)
        dv[first:last] = torch.einsum("hnm,nhk->mhk", shares, own_dout).unflatten(1, (-1, group)).sum(2).to(q.dtype)
    return dq, dk, dv, torch.zeros_like(sums)


def rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of one length, one after the other, and where they begin."""
    return x.flatten(0, 1), torch.arange(0, x.shape[0] * x.shape[1] + 1, x.shape[1], dtype=torch.int32)


def fwd(q, k, v, out, alibi, dropout, scale, causal, left, *_):
    (q_N, cu_q), (k_N, cu_k), (v_N, _) = rows(q), rows(k), rows(v)
    found, sums, *rest = varlen_fwd(
        q_N, k_N, v_N, None, cu_q, cu_k, None, None, None, None, q.shape[1], k.shape[1], dropout, scale, False, causal, left
    )
    return found.view_as(q), sums.unflatten(1, (len(q), -1)).transpose(0, 1).contiguous(), *rest


def bwd(dout, q, k, v, out, sums, dq, dk, dv, alibi, dropout, scale, causal, left, *_):
    cu_q, cu_k = rows(q)[1], rows(k)[1]
    flat = [x.flatten(0, 1) for x in (dout, q, k, v, out)]
    into = [x.flatten(0, 1) for x in (dq, dk, dv)]
    varlen_bwd(*flat, sums, *into, cu_q, cu_k, None, q.shape[1], k.shape[1], dropout, scale, False, causal, left)
    for whole, part in zip((dq, dk, dv), into, strict=True):
        whole.copy_(part.view_as(whole))
    return dq, dk, dv, torch.zeros_like(sums)


def left_of(window: int | None) -> int:
    return -1 if window is None else window


def import_from(folder: Path, name: str) -> ModuleType:
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def install_2(source: Path) -> None:
    """The package flash_attn, from ``source``."""
    compiled = ModuleType("flash_attn_2_cuda")
    compiled.fwd, compiled.bwd, compiled.varlen_fwd, compiled.varlen_bwd = fwd, bwd, varlen_fwd, varlen_bwd
    sys.modules["flash_attn_2_cuda"] = compiled
    interface = import_from(source, "flash_attn.flash_attn_interface")
    for name in ("_flash_attn_forward", "_flash_attn_backward", "_flash_attn_varlen_forward", "_flash_attn_varlen_backward"):
        operation = getattr(interface, name)
        operation.register_kernel("cpu")(operation._init_fn)  # its operations are declared for CUDA alone


def install_3(source: Path) -> torch.library.Library:
    """The module flash_attn_interface, from ``source``. torch asks whether its operations are there, and calls them on GPUs."""
    sys.modules["flash_attn_3"] = package = ModuleType("flash_attn_3")
    sys.modules["flash_attn_3._C"] = package._C = ModuleType("flash_attn_3._C")
    library = torch.library.Library("flash_attn_3", "FRAGMENT")
    for name in ("fwd", "bwd"):
        library.define(f"{name}(Tensor x) -> Tensor")
    import_from(source / "hopper", "flash_attn_interface")
    return library


def install_varlen(called: list[str]) -> torch.library.Library:
    """Kernels for torch's own operation behind varlen_attn, which the CPU has none for; ``called`` gets their names."""
    library = torch.library.Library("aten", "IMPL")

    def forward(
        q,
        k,
        v,
        cu_q,
        cu_k,
        longest_q,
        longest_k,
        dropout,
        causal,
        debug,
        *,
        scale=None,
        window_size_left=None,
        window_size_right=None,
        **_,
    ):
        called.append("varlen_fwd")
        assert causal or window_size_right == 0
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        out, sums, debug, rng = varlen_fwd(
            q,
            k,
            v,
            None,
            cu_q,
            cu_k,
            None,
            None,
            None,
            None,
            longest_q,
            longest_k,
            dropout,
            scale,
            False,
            True,
            left_of(window_size_left),
        )
        return out, sums, rng, debug, debug

    def backward(
        dout,
        q,
        k,
        v,
        out,
        sums,
        cu_q,
        cu_k,
        longest_q,
        longest_k,
        dropout,
        causal,
        rng,
        unused,
        *,
        scale=None,
        window_size_left=None,
        window_size_right=None,
        **_,
    ):
        assert causal or window_size_right == 0
        found = [torch.empty_like(x) for x in (q, k, v)]
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        varlen_bwd(
            dout,
            q,
            k,
            v,
            out,
            sums,
            *found,
            cu_q,
            cu_k,
            None,
            longest_q,
            longest_k,
            dropout,
            scale,
            False,
            True,
            left_of(window_size_left),
        )
        return tuple(found)

    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    return library
