"""The search, and remedies."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest

from lit_long.config import UserError
from lit_long.config.mesh import Mesh
from lit_long.planning.hardware import GPUS, usable
from lit_long.planning.job import why_not
from lit_long.planning.memory import peak
from lit_long.planning.search import NEAR, Machines, estimate, remedy, search
from lit_long.stages.costs import find_fastest
from tests.planning.jobs import LLAMA_7B, LLAMA_70B, job

H100 = Machines(GPUS["H100"], 64)


def test_found_is_the_fastest_that_fits():
    """Against a hand-written sweep over meshes and ways."""
    each = job(LLAMA_70B, context=16_384, sequences=256)
    found = search(each, H100, frozenset())
    assert found.fits and found.job.mesh.ranks == 64
    rivals = [
        estimate(replace(each, mesh=Mesh(1, 64 // (c * t), c, t), checkpointing=way, accumulate=sums).with_rows(rows), H100)
        for c, t, way, rows, sums in itertools.product(
            (1, 2, 4), (1, 2, 4, 8), ("none", "selective", "attention", "full"), (1, 2), ("whole", "sharded")
        )
    ]
    fitting = [rival for rival in rivals if rival.fits and not why_not(rival.job)]
    assert fitting and found.speed.update <= NEAR * min(rival.speed.update for rival in fitting)
    assert all(rival.speed.update >= found.speed.update / NEAR for rival in fitting)


def test_what_is_said_stays():
    each = job(LLAMA_70B, mesh=Mesh(tensor=4), context=16_384, sequences=256, checkpointing="none")
    found = search(each, H100, frozenset({"tensor_parallel", "checkpointing"}))
    assert found.job.mesh.tensor == 4 and found.job.checkpointing == "none"


def test_a_remedy_helps():
    """7B at 32k without checkpointing does not fit, and the first thing to try is the cheapest that helps."""
    each = estimate(job(LLAMA_7B, mesh=Mesh(shard=8), context=32_768, checkpointing="none"), Machines(GPUS["H100"], 8))
    assert not each.fits
    name, size = re.fullmatch(r"checkpointing=(\w+) \(([\d.]+) GiB\)", remedy(each, Machines(GPUS["H100"], 8))).groups()
    cured = replace(each.job, checkpointing=name)
    assert peak(cured).total <= usable(GPUS["H100"]) and peak(cured).total / 2**30 == pytest.approx(float(size), abs=0.06)


def test_a_remedy_says_all_that_it_takes():
    """Micro-batches of so many tokens of each GPU hold as many more sequences as GPUs share one: context_parallel alone would free next to nothing."""
    machines = Machines(GPUS["H100"], 8)
    each = estimate(job(LLAMA_7B, mesh=Mesh(shard=8), context=262_144, sequences=32, checkpointing="full"), machines)
    assert not each.fits
    keys = dict(re.findall(r"(\w+)=(\w+)", remedy(each, machines)))
    assert list(keys) == ["context_parallel", "micro_batch_tokens"]
    mesh = Mesh(shard=8 // int(keys["context_parallel"]), context=int(keys["context_parallel"]))
    cured = replace(each.job, mesh=mesh, micro_batch_tokens=int(keys["micro_batch_tokens"]))
    assert peak(cured).total <= usable(machines.gpu)


def test_remedies_add_up():
    """70B on 8 H100 in mixed precision: 138 GB of states a GPU; checkpointing alone cannot help."""
    each = estimate(
        job(LLAMA_70B, mesh=Mesh(shard=8), context=16_384, sequences=256, checkpointing="none"), Machines(GPUS["H100"], 8)
    )
    text = remedy(each, Machines(GPUS["H100"], 8))
    assert "gpus=" in text and "checkpointing=" in text


def test_no_layout_is_told_with_the_reason():
    with pytest.raises(UserError, match="an update has 4 sequences of 4096 tokens, which 64 data ranks"):
        find_fastest(
            job(LLAMA_7B, context=4096, sequences=4),
            Machines(GPUS["H100"], 64),
            frozenset({"context_parallel", "tensor_parallel", "replicate"}),
        )
