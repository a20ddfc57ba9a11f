"""What a process must not hear from the surroundings that it was started in: that it is one of several."""

from __future__ import annotations

import os

# Set by torchrun, by Kubernetes' operators, and by hand in many images; torch, torchmetrics and Lightning read them.
RANKS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "MPI_LOCALRANKID"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "NNODES", "NPROC_PER_NODE"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
# torchrun's own and the defaults of its arguments (PET_); SLURM, MPI, LSF; and Lightning's, which fill in a Trainer's arguments.
PREFIXES = (
    *("TORCHELASTIC_", "PET_"),
    *("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_"),
    *("OMPI_", "PMI_", "PMIX_", "MV2_", "HYDRA_", "MPIEXEC_", "JSM_NAMESPACE_", "LSB_", "LSF_", "PALS_"),
    *("PL_TRAINER_", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"),
)
KEPT = ("SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS")  # where the cluster is


def forget_ranks() -> None:
    """Take the variables out of this process' environment that would make it a rank of a job that it is not.

    Called first by every process that is no rank, before Lightning is imported, which looks at import. So what a sweep submits from within a
    SLURM job is not taken for a step of that job, either.
    """
    for name in [name for name in os.environ if name not in KEPT and (name in RANKS or name.startswith(PREFIXES))]:
        del os.environ[name]
