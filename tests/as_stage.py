"""Runs a script as the process of a stage does, which starts in three fifths of the time: python -m tests.as_stage FILE|MODULE WORD …"""

import runpy
import sys

from lit_long.processor import take_mkl_fast_path
from lit_long.surroundings import hide_from_torchmetrics

if __name__ == "__main__":
    hide_from_torchmetrics()
    take_mkl_fast_path()
    del sys.argv[0]
    (runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module)(sys.argv[0], run_name="__main__")
