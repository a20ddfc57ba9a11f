"""Make the report of an experiment again, from the results on disk.

    python -m lit_long.report experiment=position_tiny            its latest sweep
    python -m lit_long.report experiment=position_tiny root=DIR   below another root

Writes report.md, table.csv and figures/ into the sweep's folder and prints the table. Exit codes: 0 written, 2 bad input.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from lit_long.config import UserError, nearest, project_root
from lit_long.report import find_sweep, write_report


def main(argv: list[str]) -> int:
    if {"--help", "-h"} & set(argv):
        print(__doc__)
        return 0
    try:
        options = dict(word.partition("=")[::2] for word in argv)
        if unknown := set(options) - {"experiment", "root"}:
            raise UserError(f"command line: unknown key {min(unknown)!r}{nearest(min(unknown), ['experiment', 'root'])}")
        root = Path(options["root"]).expanduser().resolve() if "root" in options else project_root()
        report = write_report(find_sweep(root, options.get("experiment", "position_tiny")))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console()
    console.print(report.terminal)
    console.print(f"report   {report.report_md}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
