"""Writes the table of docs/weights.md from the results of tests/pretrained/test_families.py: python -m tests.docs.families"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from lit_long.pretrained.families import FAMILIES
from tests.pretrained.test_families import CASES, OUT

PAGE = Path(__file__).resolve().parents[2] / "docs" / "weights.md"
BEGIN, END = "<!-- families: python -m tests.docs.families -->\n", "<!-- families end -->\n"
COLUMNS = {  # of the table, and the test that must pass for all cases of a family
    "in": "test_in",
    "out": "test_out",
    "generate": "test_generate",
    "train": "test_train",
    "plan": "test_plan",
}


class Outcomes:
    """What became of each test, by its function and case."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], list[str]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if match := re.search(r"::(\w+)\[(.+)\]$", report.nodeid):
            self.found[match[1], match[2]].append(report.outcome)


def table(outcomes: dict[tuple[str, str], list[str]]) -> str:
    lines = [f"| family | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for family in FAMILIES:
        cases = [case for case, (name, _) in CASES.items() if name == family]
        names = dict.fromkeys(OUT.get(case, family) for case in cases)
        cells = []
        for column, test in COLUMNS.items():
            passed = all(set(outcomes.get((test, case), ["missing"])) == {"passed"} for case in cases)
            words = "yes" if column != "out" or [*names] == [family] else f"as {' or '.join(f'`{name}`' for name in names)}"
            cells.append(words if passed else "no")
        lines.append(f"| `{family}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def in_page() -> str:
    """The table that the page has."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    outcomes = Outcomes()
    pytest.main(["-q", "-p", "no:cacheprovider", "tests/pretrained/test_families.py"], plugins=[outcomes])
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(outcomes.found) + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
