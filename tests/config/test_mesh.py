"""The mesh of a stage follows from its keys, and what does not fit is refused before anything runs."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from lit_long.config import AdapterConfig, ModelConfig, StageConfig, TrainerConfig, UserError
from lit_long.config.mesh import Mesh, check_mesh, mesh_of


@pytest.mark.parametrize(
    ("keys", "mesh"),
    [
        ({"strategy": "single"}, Mesh(1, 1, 1, 1)),
        ({"devices": 2}, Mesh(1, 2, 1, 1)),
        ({"devices": 2, "replicate": 2}, Mesh(2, 1, 1, 1)),
        ({"nodes": 4, "devices": 8}, Mesh(1, 32, 1, 1)),
        ({"nodes": 4, "devices": 8, "replicate": 4, "tensor_parallel": 2}, Mesh(4, 4, 1, 2)),
        ({"nodes": 2, "devices": 8, "context_parallel": 4, "tensor_parallel": 2}, Mesh(1, 2, 4, 2)),
    ],
)
def test_shard_is_what_is_left(keys, mesh):
    found = mesh_of(TrainerConfig(**{"strategy": "fsdp"} | keys))
    assert found == mesh
    assert found.ranks == keys.get("nodes", 1) * keys.get("devices", 1)


def test_who_has_rows_and_tokens_of_their_own():
    mesh = Mesh(replicate=2, shard=3, context=5, tensor=7)
    assert (mesh.ranks, mesh.token_ranks, mesh.data_ranks) == (210, 30, 6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"strategy": "fsd"}, "trainer.strategy must be single or fsdp, not 'fsd'; did you mean 'fsdp'?"),
        ({"strategy": "single", "devices": 2}, "single runs on one device, not trainer.devices=2; use trainer=fsdp"),
        ({"strategy": "single", "tensor_parallel": 2}, "single runs on one device, not trainer.tensor_parallel=2"),
        ({"devices": 4, "replicate": 3}, "is 4 ranks, which is no multiple of replicate=3"),
        ({"devices": 2, "tensor_parallel": 2, "context_parallel": 2}, "is 2 ranks, which is no multiple of .*that is 4"),
    ],
)
def test_meshes_that_do_not_fit_the_ranks(keys, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        mesh_of(TrainerConfig(**{"strategy": "fsdp"} | keys))


def sharing(**model):
    """A stage on two tensor ranks."""
    shape = {"vocab_size": 300, "n_heads": 4, "n_kv_heads": 2, "d_ffn": 64} | model
    return StageConfig(model=ModelConfig(**shape), trainer=TrainerConfig(strategy="fsdp", devices=2, tensor_parallel=2))


@pytest.mark.parametrize(("name", "size"), [("n_heads", 3), ("n_kv_heads", 1), ("d_ffn", 63), ("vocab_size", 301)])
def test_models_that_cannot_be_shared_equally(name, size):
    message = f"my.yaml: stages.base: model.{name}={size} cannot be shared equally by trainer.tensor_parallel=2 ranks"
    with pytest.raises(UserError, match=re.escape(message)):
        check_mesh(sharing(**{name: size}), "my.yaml: stages.base")


def test_adapters_are_not_shared():
    config = sharing()
    assert check_mesh(config) == Mesh(tensor=2)
    config.adapter = AdapterConfig(rank=4)
    with pytest.raises(UserError, match="adapter=none with trainer.tensor_parallel=2"):
        check_mesh(config)


def test_updates_that_cannot_be_shared_equally():
    stage = StageConfig(context=64, tokens_per_update=192, trainer=TrainerConfig(strategy="fsdp", devices=2))
    with pytest.raises(UserError, match=r"192 has 3 sequences of context=64, which 2 ranks .* trainer.context_parallel"):
        check_mesh(stage)
    shared = replace(stage, trainer=replace(stage.trainer, context_parallel=2))
    assert check_mesh(shared).data_ranks == 1
