"""What a process must not hear from the surroundings that it was started in: that it is one of several; and what a stage need not hear of: packages
that only take time."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError

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


NOT_NEEDED = ("transformers", "matplotlib", "scipy")


def hide_from_torchmetrics() -> None:
    """To torchmetrics, which Lightning imports, none of `NOT_NEEDED` is installed: it imports them for metrics that no stage asks for, which would be
    two fifths of the time in which one starts. For processes of our own that run none of the user's metrics; others import these packages as ever.
    """
    from lightning_utilities.core import imports

    if not {"_version", "package_available"} <= vars(imports).keys():  # a release that looks in another way
        return
    version, available = imports._version, imports.package_available

    def version_of_others(name: str) -> str:
        if name in NOT_NEEDED:
            raise PackageNotFoundError(name)
        return version(name)

    imports._version = version_of_others
    imports.package_available = lambda name: name not in NOT_NEEDED and available(name)
