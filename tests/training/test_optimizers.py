from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from lit_long.config import ModelConfig, OptimConfig
from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.training import optimizers
from lit_long.training.optimizers import MuonFp32, make_optimizer, orthogonalize

SHAPE = ModelConfig(
    vocab_size=64, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, d_ffn=48, tie_embeddings=False, rope_base=100.0
)
MUON = OptimConfig(name="muon", lr=3e-3, eps=1e-8, weight_decay=0.2)


def model() -> Llama:
    made = Llama(SHAPE, build({"scheme": "rope", "base": 100.0}, 16))
    made.init_weights(0)
    return made


def set_gradients(llama: Llama, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in llama.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def is_hidden(name: str) -> bool:
    return "_proj" in name


def test_adamw_is_torchs():
    ours, theirs = model(), model()
    optim = OptimConfig(lr=3e-3, weight_decay=0.2)
    optimizer = make_optimizer(ours, optim)
    norms = [p for p in theirs.parameters() if p.ndim == 1]
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    groups = [{"params": matrices, "weight_decay": 0.2}, {"params": norms, "weight_decay": 0.0}]
    expected = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-5)
    for step in range(3):
        set_gradients(ours, step), set_gradients(theirs, step)
        optimizer.step(), expected.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bf16_products", [True, False])
def test_muon_moves_hidden_matrices_as_torchs_does_and_the_rest_as_adamw(monkeypatch, bf16_products):
    monkeypatch.setattr(optimizers, "has_bf16_products", lambda: bf16_products)
    ours, theirs = model(), model()
    optimizer = make_optimizer(ours, MUON)
    schedule = LambdaLR(optimizer, lambda update: 1 / (update + 1))
    hidden = [p for name, p in theirs.named_parameters() if is_hidden(name)]
    words = [p for name, p in theirs.named_parameters() if not is_hidden(name) and p.ndim > 1]
    norms = [p for p in theirs.parameters() if p.ndim == 1]
    assert len(hidden) == 14 and len(words) == 2 and len(norms) == 5
    for step in range(3):
        lr = 3e-3 / (step + 1)
        if step == 0:
            muon = torch.optim.Muon(hidden, lr=lr, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
            groups = [{"params": words, "weight_decay": 0.2}, {"params": norms, "weight_decay": 0.0}]
            adamw = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8)
        for group in (*muon.param_groups, *adamw.param_groups):
            group["lr"] = lr
        set_gradients(ours, step), set_gradients(theirs, step)
        optimizer.step(), muon.step(), adamw.step(), schedule.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        rounding = (
            {} if bf16_products or not is_hidden(name) else {"rtol": 0, "atol": 0.05 * 3e-3}
        )  # torch's is in bf16; an update moves 0.2 · 3e-3
        torch.testing.assert_close(a, b, msg=name, **rounding)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32), (1, 7)])
def test_newton_schulz_in_fp32_is_its_polynomial_of_the_singular_values(shape):
    """Applied to numbers in fp64: s → a s + b s³ + c s⁵, from the singular values over the matrix' norm; the singular vectors stay."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    (group,) = torch.optim.Muon([torch.nn.Parameter(matrix)]).param_groups
    a, b, c = group["ns_coefficients"]
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(group["ns_steps"]):
        values = a * values + b * values**3 + c * values**5
    made = orthogonalize(matrix, (a, b, c), group["ns_steps"], group["eps"])
    torch.testing.assert_close(made.double(), left * values @ right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_in_fp32_goes_on_from_a_checkpoint_of_torchs_and_back(nesterov):
    """To bf16's rounding: the momentum, which is the state, is the same."""
    made = [torch.nn.Parameter(torch.randn(24, 40, generator=torch.Generator().manual_seed(2))) for _ in range(2)]
    settings = {"lr": 1e-2, "weight_decay": 0.2, "nesterov": nesterov, "adjust_lr_fn": "match_rms_adamw"}
    for pair in [(torch.optim.Muon, MuonFp32), (MuonFp32, torch.optim.Muon)]:
        first, second = (kind([parameter], **settings) for kind, parameter in zip(pair, made, strict=True))
        for step in range(3):
            for parameter in made:
                parameter.grad = torch.randn(24, 40, generator=torch.Generator().manual_seed(step))
            first.step(), second.step()
        torch.testing.assert_close(first.state[made[0]], second.state[made[1]])
        torch.testing.assert_close(*made, rtol=0, atol=0.05 * 1e-2)
        second.load_state_dict(first.state_dict())
        assert second.state[made[1]]["momentum_buffer"].equal(first.state[made[0]]["momentum_buffer"])


def test_an_update_of_muon_is_as_large_as_one_of_adamw():
    """Liu et al. 2025, section 2.2: a root mean square of 0.2 times the rate, whatever the matrix' shape."""
    llama = model()
    before = {name: parameter.detach().clone() for name, parameter in llama.named_parameters()}
    optimizer = make_optimizer(llama, OptimConfig(name="muon", lr=1e-2, weight_decay=0.0))
    set_gradients(llama, 0)
    optimizer.step()
    for name, parameter in llama.named_parameters():
        if is_hidden(name):
            assert (parameter - before[name]).square().mean().sqrt().item() == pytest.approx(0.2 * 1e-2, rel=0.2), name


@pytest.mark.parametrize(("name", "bf16_products"), [("adamw", True), ("muon", True), ("muon", False)])
def test_a_resumed_optimizer_goes_on(monkeypatch, name, bf16_products):
    monkeypatch.setattr(optimizers, "has_bf16_products", lambda: bf16_products)
    optim = OptimConfig(name=name, lr=3e-3, eps=1e-8)
    whole, first, second = model(), model(), model()
    optimizer = make_optimizer(whole, optim)
    for step in range(4):
        set_gradients(whole, step)
        optimizer.step()
    early = make_optimizer(first, optim)
    for step in range(2):
        set_gradients(first, step)
        early.step()
    second.load_state_dict(first.state_dict())
    late = make_optimizer(second, optim)
    late.load_state_dict(early.state_dict())
    for step in range(2, 4):
        set_gradients(second, step)
        late.step()
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_frozen_parameters_stay():
    llama = model()
    llama.embed_tokens.weight.requires_grad_(False)
    llama.layers[0].requires_grad_(False)
    optimizer = make_optimizer(llama, MUON)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 7 + 2 + 1 + 1
