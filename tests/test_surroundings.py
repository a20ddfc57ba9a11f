"""Variables by which others say which rank a process is: forgotten by all that is none."""

from __future__ import annotations

import os
import subprocess
import sys

OF_OTHERS = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "NODE_RANK": "1",
    "MASTER_ADDR": "192.0.2.1",
    "MASTER_PORT": "1",
    "PET_NNODES": "3",
    "PET_NPROC_PER_NODE": "5",
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "train",
    "SLURM_LOCALID": "1",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "PMI_RANK": "1",
    "PMIX_RANK": "1",
    "JSM_NAMESPACE_RANK": "1",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "PL_TRAINER_LIMIT_TRAIN_BATCHES": "3",
    "PL_TRAINER_FAST_DEV_RUN": "1",
    "PL_GLOBAL_SEED": "5",
}


def test_a_command_forgets_ranks_and_a_rank_does_not():
    """`run_command` is how every command starts (tests/test_terminal.py)."""
    script = "import os; from lit_long.terminal import run_command; run_command(lambda _: print(*os.environ) or 0, rank={})"
    kept = {"RANKING": "x", "SLURM_CONF": "/etc/slurm.conf"}
    for rank in (False, True):
        words = [sys.executable, "-c", script.format(rank)]
        done = subprocess.run(words, env=os.environ | OF_OTHERS | kept, capture_output=True, text=True, check=True)
        found = set(done.stdout.split())
        assert kept.keys() <= found and found & OF_OTHERS.keys() == (OF_OTHERS.keys() if rank else set())
