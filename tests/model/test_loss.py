"""The chunked loss against torch's own, value and gradients."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lit_long.batch import NO_LOSS
from lit_long.config import UserError
from lit_long.model import fused_loss
from lit_long.model.fused_loss import CHUNKED, choose_loss, fused_nats
from lit_long.model.loss import chunk_tokens, summed_nats, token_nats


def inputs(rows=3, length=20, width=16, words=50, dtype=torch.float32):
    torch.manual_seed(0)
    hidden = torch.randn(rows, length, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(words, width, dtype=dtype, requires_grad=True)
    targets = torch.randint(words, (rows, length))
    targets[1:2, 5:] = NO_LOSS
    return hidden, weight, targets


def plain(hidden, weight, targets, reduction="sum"):
    logits = F.linear(hidden, weight).flatten(0, 1).float()
    return F.cross_entropy(logits, targets.flatten(), ignore_index=NO_LOSS, reduction=reduction)


@pytest.mark.parametrize("chunk", [1, 7, 30, 60, 1000])
def test_value_and_gradients_are_torchs(chunk):
    hidden, weight, targets = inputs()
    nats, tokens = summed_nats(hidden, targets, weight, chunk)
    expected = plain(hidden, weight, targets)
    assert int(tokens) == 45
    torch.testing.assert_close(nats, expected)
    ours, theirs = (torch.autograd.grad(loss * 0.3, (hidden, weight)) for loss in (nats, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_weights_of_tokens(chunk):
    hidden, weight, targets = inputs()
    weights = torch.rand(3, 20)
    nats, total = summed_nats(hidden, targets, weight, chunk, weights)
    expected = (plain(hidden, weight, targets, "none") * weights.flatten()).sum()
    torch.testing.assert_close(nats, expected)
    torch.testing.assert_close(total, weights[targets != NO_LOSS].sum())
    for a, b in zip(*(torch.autograd.grad(loss, (hidden, weight)) for loss in (nats, expected)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_errs_no_more_than_torchs(autocast):
    """Against fp64: the gradients in bf16, by autocast or throughout, are at least as near as plain cross-entropy's."""
    own = torch.float32 if autocast else torch.bfloat16
    hidden, weight, targets = inputs(4, 64, 32, 300, own)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    truth = torch.autograd.grad(
        F.cross_entropy(F.linear(*exact).flatten(0, 1), targets.flatten(), ignore_index=NO_LOSS, reduction="sum"), exact
    )
    errors = []
    for loss in (lambda: summed_nats(hidden, targets, weight, 50)[0], lambda: plain(hidden, weight, targets)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss()
        found = torch.autograd.grad(value, (hidden, weight))
        assert [x.dtype for x in found] == [own, own]
        errors.append([float((a.double() - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True)])
    for ours, theirs in zip(*errors, strict=True):
        assert ours <= 1.05 * theirs and theirs > 1e-4


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, targets = inputs()
    weight.requires_grad_(False)
    nats, _ = summed_nats(hidden, targets, weight, 7)
    nats.backward()
    torch.testing.assert_close(hidden.grad, torch.autograd.grad(plain(hidden, weight, targets), hidden)[0])
    assert weight.grad is None


def test_a_second_backward_is_refused():
    hidden, weight, targets = inputs()
    nats, _ = summed_nats(hidden, targets, weight, 7)
    nats.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        nats.backward()


class Watch(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
        return out


def test_only_one_chunk_of_logits_exists_at_once():
    """The largest tensor is a chunk's logits, or the head's gradient."""
    hidden, weight, targets = inputs(1, 512, 8, 4096)
    with Watch() as watch:
        summed_nats(hidden, targets.clamp(min=0), weight, 64)[0].backward()
    assert watch.largest == max(64 * 4096, 8 * 4096)


def test_a_chunk_follows_from_memory():
    assert chunk_tokens(49_152, 2**29) == 1092
    assert chunk_tokens(10**9, 1) == 16


def test_per_token():
    hidden, weight, targets = inputs()
    nats, hits = token_nats(hidden, targets, weight, 7)
    torch.testing.assert_close(nats.flatten(), plain(hidden, weight, targets, "none").detach())
    assert torch.equal(hits, F.linear(hidden, weight).argmax(-1) == targets)


def test_no_target_no_loss():
    nats, tokens = summed_nats(torch.randn(1, 4, 8), torch.full((1, 4), NO_LOSS), torch.randn(5, 8), 2)
    assert float(nats) == 0 and int(tokens) == 0


GPU = torch.device("cuda")
# Where there is no GPU, Liger's kernel runs by hand under Triton's interpreter (TRITON_INTERPRET=1), cut-cross-entropy by its version for CPUs.
HERE = GPU if torch.cuda.is_available() else torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["liger", "cut"])
def test_fused_losses(backend, dtype):
    """Value and gradients against fp64: no worse than plain cross-entropy's by much."""
    kernel = "cce_exact" if HERE == GPU else "torch_compile"
    if HERE == GPU and (reason := fused_loss.why_not(backend, HERE, dtype)):
        pytest.skip(reason)
    hidden, weight, targets = inputs(2, 64, 128, 384, dtype)
    hidden, weight = (x.detach().to(HERE).requires_grad_() for x in (hidden, weight))
    targets = targets.to(HERE)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    truth = F.cross_entropy(F.linear(*exact).flatten(0, 1), targets.flatten(), ignore_index=NO_LOSS, reduction="sum")
    fused = fused_nats(backend, hidden.flatten(0, 1), weight, targets.flatten(), kernel)
    found, plainly = (
        (loss.detach(), *torch.autograd.grad(loss * 0.3, (hidden, weight))) for loss in (fused, plain(hidden, weight, targets))
    )
    right = truth.detach(), *(0.3 * x for x in torch.autograd.grad(truth, exact))
    for ours, theirs, expected in zip(found, plainly, right, strict=True):
        assert (ours.double() - expected).norm() <= 2 * (theirs.double() - expected).norm() + 1e-6 * expected.norm()


def test_the_choice_of_a_loss(monkeypatch, tmp_path):
    assert choose_loss("auto", GPU, torch.bfloat16) == choose_loss("chunked", HERE, torch.float32) == CHUNKED
    with pytest.raises(UserError, match="did you mean 'liger'"):
        choose_loss("ligre", GPU, torch.bfloat16)
    with pytest.raises(UserError, match=r"trainer.loss=cut cannot run here: .*not on cpu; use trainer.loss=chunked"):
        choose_loss("cut", torch.device("cpu"), torch.bfloat16)
    with pytest.raises(UserError, match="bfloat16 or float16, not in float32"):
        choose_loss("cut", GPU, torch.float32)
    monkeypatch.syspath_prepend(tmp_path)
    for name, package in fused_loss.PACKAGES.values():
        monkeypatch.delitem(__import__("sys").modules, name.partition(".")[0], raising=False)
        (tmp_path / f"{name.partition('.')[0]}.py").write_text("raise RuntimeError('no kernel image')")
        backend = next(key for key, value in fused_loss.PACKAGES.items() if value[1] == package)
        assert "installed but broken (RuntimeError: no kernel image" in fused_loss.why_not(backend, GPU, torch.bfloat16)


def test_weighted_tokens_go_through_the_chunked_loss():
    """The fused kernels know no weights; asking for one that is not here would fail otherwise."""
    hidden, weight, targets = inputs()
    weights = torch.rand(3, 20)
    expected = summed_nats(hidden, targets, weight, 7, weights)
    assert all(map(torch.equal, summed_nats(hidden, targets, weight, 7, weights, backend="liger"), expected))


# ------------------------------------------------------------------------------------------------- shared vocabularies


class Part:
    """One of several ranks that share the words: a thread that meets the others at a barrier."""

    def __init__(self, rank, words, given, barrier):
        self.rank, self.words, self.given, self.barrier = rank, words, given, barrier
        self.first = rank * words

    def rows(self, head):
        return head[self.first : self.first + self.words].detach().requires_grad_(head.requires_grad)

    def exchange(self, x, how):
        self.given[self.rank] = x.clone()
        self.barrier.wait(600)
        found = how(torch.stack(self.given))
        self.barrier.wait(600)
        return x.copy_(found)

    def largest(self, x):
        return self.exchange(x, lambda all: all.amax(0))

    def total(self, x):
        return self.exchange(x, lambda all: all.sum(0))


def on_ranks(ranks, hidden, weight, targets, chunk, weights=None):
    """What each rank finds: nats, the gradients of its hidden states and of its own rows of the head, and the largest tensor it made."""
    given, barrier, words = [None] * ranks, threading.Barrier(ranks), len(weight) // ranks

    def one(rank):
        part, own = Part(rank, words, given, barrier), hidden.detach().requires_grad_()
        rows = part.rows(weight)
        part.rows = lambda _: rows
        with Watch() as watch:
            nats, _ = summed_nats(own, targets, weight, chunk, weights, part)
            gradients = torch.autograd.grad(nats * 0.3, (own, rows))
        return nats.detach(), *gradients, watch.largest

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(one, range(ranks)))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("ranks", "chunk", "scale"), [(2, 7, 1.0), (2, 1000, 1.0), (5, 30, 1.0), (5, 30, 100.0)])
def test_words_on_several_ranks_are_torchs(ranks, chunk, scale, weighted):
    """Value and gradients; with logits of hundreds, too, where exponentials without the largest of all ranks would be infinite."""
    hidden, weight, targets = inputs()
    hidden = (hidden.detach() * scale).requires_grad_()
    weights = torch.rand(3, 20) if weighted else None
    expected = (plain(hidden, weight, targets, "none") * (weights.flatten() if weighted else 1.0)).sum()
    hidden_gradient, weight_gradient = torch.autograd.grad(expected * 0.3, (hidden, weight))
    found = on_ranks(ranks, hidden, weight, targets, chunk, weights)
    for nats, gradient, _, _ in found:
        torch.testing.assert_close(nats, expected.detach())
        torch.testing.assert_close(gradient, hidden_gradient, atol=1e-5 * scale, rtol=1e-5)
    torch.testing.assert_close(torch.cat([rows for _, _, rows, _ in found]), weight_gradient, atol=1e-5 * scale, rtol=1e-5)


def test_no_rank_makes_the_logits_of_all_words():
    hidden, weight, targets = inputs(1, 512, 8, 4096)
    for *_, largest in on_ranks(4, hidden, weight, targets, 64):
        assert largest == 64 * 4096 // 4
