"""Ranks that share sequences train as one process does: losses, gradient norms, validation and weights, over gloo."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_long.batch import Part
from lit_long.config import ModelConfig, UserError
from lit_long.config.mesh import Mesh
from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.training.context_parallel import ContextShare, check_compiled, check_divisible
from lit_long.training.parallel import parallelize
from tests.parallel.context_cases import CASES, CLIP, ROPE, UPDATES, batch_of, fit
from tests.ranks import run_ranks

FAST = ("documents", "whole", "weights", "pose", "randomised", "layers")


def on_ranks(out: Path, sizes: Mesh, *names: str) -> dict[str, dict]:
    """What so many ranks find in the trainings ``names``."""
    run_ranks(sizes.ranks, "tests.parallel.context_cases", out, *sizes, *names)
    return torch.load(out)


def same(ours, theirs, limit=1e-5):
    assert len(theirs["losses"]) == UPDATES and len(theirs["validation"]) == 2
    for kind in ("losses", "norms", "validation"):
        assert ours[kind] == pytest.approx(theirs[kind], abs=limit, rel=limit), kind
    assert ours["weights"].keys() == theirs["weights"].keys()
    for name, weight in theirs["weights"].items():
        torch.testing.assert_close(ours["weights"][name], weight, atol=limit, rtol=limit, msg=lambda text, n=name: f"{n}: {text}")


@pytest.fixture(scope="module")
def alone():
    """What one process finds in each case; computed once."""
    return {name: fit(**CASES[name]) for name in FAST}


@pytest.fixture(scope="module")
def two(tmp_path_factory, alone):
    """What two ranks find that share every sequence: one start for all cases."""
    out = tmp_path_factory.mktemp("two") / "found.pt"
    return on_ranks(out, Mesh(context=2), *FAST)


@pytest.mark.parametrize("name", FAST)
def test_two_ranks_train_as_one_process(name, alone, two):
    assert min(alone[name]["norms"]) > CLIP  # it bites
    same(two[name], alone[name])


def test_the_cases_differ(alone):
    """The comparison can fail: masks, encoders and weights of targets matter here by far more than the limit."""
    for one, other in itertools.combinations(FAST, 2):
        assert abs(alone[one]["losses"][-1] - alone[other]["losses"][-1]) > 1e-3, (one, other)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [Mesh(context=4), Mesh(shard=2, context=2), Mesh(replicate=2, context=2)], ids=str)
def test_four_ranks_train_as_one_process(sizes, alone, tmp_path):
    found = on_ranks(tmp_path / "found.pt", sizes, *FAST)
    for name in FAST:
        same(found[name], alone[name])


@pytest.mark.slow
def test_context_and_tensor_ranks_together(alone, tmp_path):
    found = on_ranks(tmp_path / "found.pt", Mesh(context=2, tensor=2), *FAST)
    for name in FAST:
        same(found[name], alone[name])


@pytest.mark.slow
def test_compiled_blocks_share_sequences_too(tmp_path):
    """Compiled once for each group of layers, whatever the documents are."""
    names = ("compiled", "compiled selective", "compiled layers")
    found = on_ranks(tmp_path / "found.pt", Mesh(context=2), *names)
    for name in names:
        assert found[name]["compilations"] == (2 if "layers" in name else 1)
        same(found[name], fit(**CASES[name] | {"compiled": False, "checkpointing": "none"}), 2e-5)


@pytest.mark.slow
def test_half_precision_is_as_exact_as_on_one_process(tmp_path):
    """Two ranks differ from fp32 by no more than twice what one process in bf16 does at most."""
    names, exact = ("bf16-mixed", "bf16-true"), fit()["losses"]
    found = on_ranks(tmp_path / "found.pt", Mesh(context=2), *names)
    for name in names:
        two, one = (max(abs(a - b) for a, b in zip(x["losses"], exact, strict=True)) for x in (found[name], fit(**CASES[name])))
        assert 0 < two <= 2 * one < 0.02


def attention_and_gathers(way):
    """Of forward and backward: how often attention was computed, how often keys were gathered, and a gradient. One rank shares with nobody."""
    calls = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(str(function))
            return function(*args, **(kwargs or {}))

    def gather(k, v):
        calls.append("gather")
        return k, v

    model = Llama(ModelConfig(100, 64, 2, 4, 2, 16, 96, tie_embeddings=True), build(ROPE, 16))
    model.init_weights(0)
    batch = batch_of(0, True, False)
    with Watch():
        nats, _ = parallelize(model, None, way)(batch._replace(part=Part(0, 1, batch.document_ids, gather)))
        nats.backward()
    return sum("attend_segments.default" in call for call in calls), calls.count("gather"), model.embed_tokens.weight.grad


def test_checkpointing_computes_attention_once_and_gathers_again():
    """In each of two layers; but ``full`` attention, too."""
    expected = {"none": [2, 2], "selective": [2, 4], "attention": [2, 4], "full": [4, 4]}
    results = {way: attention_and_gathers(way) for way in expected}
    assert {way: counts for way, (*counts, _) in results.items()} == expected
    for way in expected:
        torch.testing.assert_close(results[way][2], results["none"][2], atol=1e-6, rtol=1e-5)


def test_a_share_lies_within_the_context_of_the_whole():
    """Of sequences, and of those whose positions reach further."""
    mesh = SimpleNamespace(get_local_rank=lambda: 0, size=lambda: 2, get_group=lambda: SimpleNamespace(group_name=""))
    for batch in (batch_of(0, True, True), batch_of(0, True, True)._replace(reach=1000)):
        assert ContextShare(mesh).cut(batch).length == batch.length


# --------------------------------------------------------------------------------------------------- bad input


def test_sequences_that_cannot_be_cut_are_refused():
    check_divisible(96, 4)
    with pytest.raises(UserError, match=r"trainer\.context_parallel=4 .*sequences of 100 tokens: .* must be a multiple of 8"):
        check_divisible(100, 4)


def test_compiling_where_no_kernel_knows_segments_is_refused(monkeypatch):
    """The choice itself, for hardware that is not here."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    check_compiled(torch.device("cpu"), torch.float32, 128)
    check_compiled(gpu, torch.bfloat16, 128)
    with pytest.raises(UserError, match=r"trainer\.compile=true .*trainer\.context_parallel.*trainer\.precision=bf16-mixed"):
        check_compiled(gpu, torch.float32, 128)
