from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_long.batch import NO_LOSS
from lit_long.config import UserError
from lit_long.data.datamodule import LongContextDataModule
from lit_long.data.held_out import held_out_sequences

UPDATES = 8


class Interruption(Exception):
    pass


class Recorder(LightningModule):
    """Learns nothing; remembers the tokens of each training step."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []
        self.validated = []
        self.fail_at = fail_at

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_index):
        if batch_index == self.fail_at:
            raise Interruption
        self.seen.append(batch.tokens.clone())
        self.manual_backward((self.weight - 1) ** 2)
        self.optimizers().step()

    def validation_step(self, batch, batch_index, dataloader_idx=0):
        self.validated.append((dataloader_idx, batch))


def data(store, **changes):
    settings = {
        "weights": {"code": 0.5, "docs": 0.3, "retrieval": 0.2},
        "context": 128,
        "tokens_per_update": 512,
        "updates": UPDATES,
    }
    return LongContextDataModule(store, **settings | changes)


def trainer(folder):
    checkpoints = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    return Trainer(
        max_steps=UPDATES,
        val_check_interval=2,
        accelerator="cpu",
        callbacks=[checkpoints],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def fit(store, folder, fail_at=None, checkpoint=None):
    recorder = Recorder(fail_at)
    with warnings.catch_warnings(action="ignore"):  # Lightning's advice on folders and intervals
        trainer(folder).fit(recorder, datamodule=data(store), ckpt_path=checkpoint)
    return recorder


@pytest.fixture(scope="module")
def uninterrupted(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return fit(store, folder), folder


def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(store, uninterrupted, tmp_path):
    whole, _ = uninterrupted
    assert len(whole.seen) == UPDATES
    with pytest.raises(Interruption):
        fit(store, tmp_path, fail_at=4)  # one update after the checkpoint
    resumed = fit(store, tmp_path, checkpoint=tmp_path / "step=3.ckpt")
    assert torch.equal(torch.stack(resumed.seen), torch.stack(whole.seen[3:]))


def test_resuming_a_second_time(store, uninterrupted, tmp_path):
    whole, folder = uninterrupted
    with pytest.raises(Interruption):
        fit(store, tmp_path, fail_at=7, checkpoint=folder / "step=3.ckpt")
    resumed = fit(store, tmp_path, checkpoint=tmp_path / "step=6.ckpt")
    assert torch.equal(torch.stack(resumed.seen), torch.stack(whole.seen[6:]))


def test_the_checkpoint_counts_the_updates_handed_out(uninterrupted):
    _, folder = uninterrupted
    for step in (3, 6):
        checkpoint = torch.load(folder / f"step={step}.ckpt", weights_only=False)
        assert checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"step": step}]


def test_validation_runs_over_every_domain(store, uninterrupted):
    recorder, _ = uninterrupted
    batches = dict(recorder.validated)
    assert list(batches) == [0, 1] and data(store).domains == ["code", "docs"]
    for index, domain in enumerate(data(store).domains):
        expected = held_out_sequences(store, domain, 128, 8, 128)
        assert torch.equal(batches[index].tokens, expected.tokens)


def test_the_loader_continues_from_its_state(store):
    whole = [batch.tokens for batch in data(store).train_dataloader()]
    loader = data(store).train_dataloader()
    iterator = iter(loader)
    for _ in range(5):
        next(iterator)
    assert loader.state_dict() == {"step": 5} and len(loader) == UPDATES
    other = data(store).train_dataloader()
    other.load_state_dict(loader.state_dict())
    rest = [batch.tokens for batch in other]
    assert torch.equal(torch.stack(rest), torch.stack(whole[5:]))


def test_a_trainer_that_wants_more_updates_is_told(store):
    with pytest.raises(UserError, match="All 3 updates .* max_steps"), warnings.catch_warnings(action="ignore"):
        Trainer(max_steps=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False).fit(
            Recorder(), datamodule=data(store, updates=3)
        )


def test_resuming_a_finished_run_does_nothing(store, tmp_path):
    with warnings.catch_warnings(action="ignore"):
        first = trainer(tmp_path)
        first.fit(Recorder(), datamodule=data(store))
        first.save_checkpoint(tmp_path / "end.ckpt")
    assert fit(store, tmp_path, checkpoint=tmp_path / "end.ckpt").seen == []


def test_a_checkpoint_from_a_longer_run(store):
    with pytest.raises(UserError, match="after 9 updates, but this run has only 8"):
        data(store).train_dataloader().load_state_dict({"step": 9})


def on_rank(store, rank, world, **changes):
    module = data(store, **changes)
    module.trainer = SimpleNamespace(distributed_sampler_kwargs={"rank": rank, "num_replicas": world})
    return module


def test_ranks_share_updates_and_validation(store):
    whole = data(store, validation_sequences=5)
    ranks = [on_rank(store, rank, 2, validation_sequences=5) for rank in range(2)]
    steps = zip(whole.train_dataloader(), *(module.train_dataloader() for module in ranks), strict=True)
    for expected, *shares in steps:
        assert torch.equal(torch.cat([share.tokens for share in shares]), expected.tokens)
    for expected, *shares in zip(whole.val_dataloader(), *(module.val_dataloader() for module in ranks), strict=True):
        (expected,), shares = list(expected), [batch for loader in shares for batch in loader]
        assert [len(share.tokens) for share in shares] == [3, 3]
        targets = torch.cat([share.targets for share in shares])
        assert torch.equal(targets[:5], expected.targets)
        assert (targets[5:] == NO_LOSS).all()
        assert sum(share.loss_tokens() for share in shares) == expected.loss_tokens()


def test_more_ranks_than_sequences(store):
    shares = [batch for rank in range(4) for batch in on_rank(store, rank, 4, validation_sequences=1).val_dataloader()[0]]
    assert [int(share.loss_tokens()) for share in shares] == [128, 0, 0, 0]


def test_a_store_can_be_given_by_its_folder(store):
    module = data(store.folder)
    assert module.store.manifest == store.manifest


@pytest.mark.parametrize("tokens", [500, 64, 0])
def test_updates_hold_whole_sequences(store, tokens):
    with pytest.raises(UserError, match=rf"tokens_per_update \({tokens}\) must be a multiple of context \(128\)"):
        data(store, tokens_per_update=tokens)
