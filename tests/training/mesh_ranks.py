"""One of the ranks that run training stages, one after the other, in one process group. Run under torchrun by test_mesh.py as:
mesh_ranks.py FOLDER …
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch.distributed as dist

from lit_long.stage import quieten
from lit_long.stages.run import run_stage

if __name__ == "__main__":
    quieten()
    for stage in sys.argv[1:]:
        run_stage(Path(stage), lambda message, done: None, int(os.environ["RANK"]))
    dist.destroy_process_group()
