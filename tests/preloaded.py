"""What the process imports that forks ranks (ranks.py)."""

from importlib import import_module

from lit_long.processor import take_mkl_fast_path
from lit_long.surroundings import hide_from_torchmetrics

hide_from_torchmetrics()
take_mkl_fast_path()
for module in ("lit_long.training.run", "lit_long.evaluation.run"):
    import_module(module)
