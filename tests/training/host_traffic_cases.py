"""How often one update makes the host wait for the device, or copies something to it."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from lit_long.batch import pack, unpack
from lit_long.config import (
    CorpusConfig,
    DataConfig,
    LayerGroupConfig,
    LayersConfig,
    ModelConfig,
    SourceConfig,
    StageConfig,
    TrainerConfig,
)
from lit_long.config.mesh import Mesh
from lit_long.config.schema import ValidationConfig
from lit_long.data.prepare import prepare
from lit_long.model import flash
from lit_long.model.attention import attention_masks
from lit_long.training import run
from lit_long.training.context_parallel import ContextShare
from lit_long.training.strategy import MeshStrategy
from tests.data.own import TEXTS, write_text
from tests.model.test_llama import batch_of
from tests.training.host_traffic import DEVICE, HostTraffic

CONTEXT, ROWS, UPDATES = 64, 4, 3


class Asks(torch.autograd.Function):
    """In its backward pass."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * gradient[0].item() * gradient.new_tensor([2.0])


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: int(x[0]),
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x.masked_select(x > 0),
        lambda x: x[x > 0],
        lambda x: x.__setitem__(x > 0, 0.0),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x[[0, 1]],
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x.new_tensor([1.0]),
        lambda x: x.equal(x),
    ],
)
def test_what_is_planted_is_seen(ask):
    traffic = HostTraffic()
    with traffic.count():
        ask(torch.ones(3, device=DEVICE))
    assert traffic.found.total() == 1


def test_what_is_planted_in_backward_is_seen():
    traffic = HostTraffic()
    with traffic.count():
        Asks.apply(torch.ones(3, device=DEVICE, requires_grad=True)).sum().backward()
    assert traffic.found.total() == 2


def test_packed_tensors_come_out_as_they_were():
    given = [
        torch.randn(3, 5),
        torch.arange(7).view(7, 1),
        torch.arange(5, dtype=torch.int32),
        torch.rand(2, 3).double(),
        torch.rand(3) > 0.5,
    ]
    for x, y in zip(given, unpack(pack(given), given), strict=True):
        assert x.dtype == y.dtype and x.equal(y) and y.data_ptr() % 8 == 0


def test_what_stays_on_one_side_is_not_counted():
    traffic = HostTraffic()
    with traffic.count():
        for x in (torch.ones(3, device=DEVICE, requires_grad=True), torch.ones(3, requires_grad=True)):
            (x * torch.tensor(2.0) + torch.full((3,), 1.0, device=x.device)).sum().backward()
            x.detach()[1:].fill_(3.0)
        torch.ones(3).nonzero(), torch.ones(3)[torch.ones(3) > 0], torch.tensor([1.0]).item()
    assert not traffic.found


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traffic")
    short = [text[:40] for text in TEXTS if len(text) > 40]  # every row has several documents
    source = SourceConfig(path=str(write_text(folder / "text", short)), validation_share=0.1)
    prepare(CorpusConfig(vocab_size=300), folder / "store", sources={"text": source}, builtin=False, processes=1)
    return folder / "store"


@pytest.fixture
def traffic(store, tmp_path, monkeypatch):
    """Counts those of the last update of a real training stage whose device is not the host. It has torch's varlen_attn for documents."""
    enabled, autocast = torch.is_autocast_enabled, torch.autocast
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind != "meta" and enabled(kind))
    monkeypatch.setattr(torch, "autocast", lambda kind, *_, **how: nullcontext() if kind == "meta" else autocast(kind, *_, **how))
    monkeypatch.setattr(run, "make_strategy", lambda config, writer: SingleDeviceStrategy(DEVICE))
    monkeypatch.setattr(CPUAccelerator, "setup_device", lambda self, device: None)
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["meta"])
    monkeypatch.setattr(flash, "why_no_varlen", lambda device, dtype: "")

    def count(layers=1, micro_batches=1, chunk=ROWS * CONTEXT, documents=True, pattern=(), **position) -> Counter:
        config = StageConfig(
            context=CONTEXT,
            tokens=UPDATES * ROWS * CONTEXT,
            tokens_per_update=ROWS * CONTEXT,
            model=ModelConfig(300, 32, layers, 4, 2, 8, 96, 1e-5, False, CONTEXT, 10_000.0),
            position={"scheme": "rope", "base": 10_000.0} | position,
            layers=LayersConfig({f"{i}": group for i, group in enumerate(pattern)}, [f"{i}" for i in range(len(pattern))]),
            data=DataConfig(weights={"text": 1.0}, mask_documents=documents),
            validation=ValidationConfig(times=0),
            trainer=TrainerConfig(
                precision="bf16-true", micro_batch_tokens=ROWS * CONTEXT // micro_batches, loss_memory=10 * 300 * chunk
            ),
        )
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        each, counter = [], HostTraffic()

        def report(message: str, share: float) -> None:
            if message.startswith("update"):
                each.append(counter.take())
            if len(each) == UPDATES:
                raise Enough

        with counter.count(), pytest.raises(Enough):
            run.train(config, folder, store, None, report)
        return each[-1]

    return count


class Enough(Exception):
    pass


def test_an_update_hardly_waits(traffic):
    """Per layer and per chunk of the loss never, per micro-batch once, per update at most four times; ranks ask once more whether to stop."""
    once = traffic()
    assert traffic(layers=3) == traffic(chunk=16) == once
    assert traffic(training={"transform": "randomised", "length": CONTEXT}) == once
    more = traffic(micro_batches=4)
    a_micro_batch = (more.total() - once.total()) // 3
    assert a_micro_batch == 1, more
    assert once.total() - a_micro_batch + 1 <= 4, once
    assert traffic(documents=False).total() == once.total() - 1, "where documents begin is a copy to the device"


def test_layers_that_differ_ask_no_more(traffic):
    """Another window, no rotation, another base: the frequencies of each rotation stay on the device."""
    alike = traffic(2, micro_batches=2)
    for own in ({}, {"scheme": "nope"}, {"scheme": "rope", "base": 625.0}):
        assert traffic(2, micro_batches=2, pattern=[LayerGroupConfig(own, window=16), LayerGroupConfig()]) == alike, own


def test_ranks_ask_once_whether_to_stop():
    class Alone(MeshStrategy):
        root_device, world_size = DEVICE, 1

        def reduce(self, tensor, group=None, reduce_op="mean"):
            return tensor

    traffic = HostTraffic()
    with traffic.count():
        assert Alone(Mesh()).reduce_boolean_decision(True)
    assert traffic.found.total() == 1


def test_ranks_that_share_sequences_hardly_wait(traffic):
    """A rank's tokens are cut out without a copy; what they see comes in one."""
    batch = batch_of(torch.zeros(2, 64, dtype=torch.int64), torch.arange(128).view(2, 64) // 9, True)
    share = ContextShare.__new__(ContextShare)
    share.rank, share.ranks, share.gather = 1, 2, None
    found, batch = HostTraffic(), batch.to(DEVICE)
    with found.count():
        mask = attention_masks(share.cut(batch), torch.bfloat16, 8, [None])[0]
    assert mask.kernel == "varlen" and found.found.total() == 1
