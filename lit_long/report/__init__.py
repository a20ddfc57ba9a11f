"""Results → tables and figures: reads a sweep's folder, writes report.md, table.csv and figures/ beside its results.

    results.py ──► tables.py ──► page.py ──► write.py
    (read, mean, sd)         └► figures.py ──┘

Imports neither torch nor lightning nor MLflow; matplotlib and rich only when something is drawn or printed.
"""

from __future__ import annotations

from lit_long.report.results import find_sweep
from lit_long.report.write import Report, write_report

__all__ = ["Report", "find_sweep", "write_report"]
