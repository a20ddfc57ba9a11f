"""Write the commands' output in the pages again: `make docs`, or `python -m tests.docs`; slow=true also that of real sweeps (an hour on two cores).

Pages are README.md and docs/**/*.md, blocks those below a marker (blocks.py). A test compares the quick ones with what the commands print.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.docs.blocks import REPOSITORY, clone, pages, write


def main(argv: list[str]) -> int:
    if unknown := [word for word in argv if word not in ("slow=true", "slow=false")]:
        print(__doc__)
        return 0 if unknown[0] == "--help" else 2
    with tempfile.TemporaryDirectory() as folder:
        place = clone(Path(folder))
        for page in pages():
            for command in write(page, place, "slow=true" in argv, f"Printed on {datetime.date.today()} at commit {commit()}."):
                print(f"{page.relative_to(REPOSITORY)}: {command}", flush=True)
    return 0


def commit() -> str:
    """The commit that is checked out, and whether the code was changed since."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    code = ["lit_long", "configs", "experiments"]
    changed = subprocess.run(["git", "status", "--porcelain", *code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
