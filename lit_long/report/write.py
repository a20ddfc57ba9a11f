"""Writes a sweep's report: table.csv, report.md and figures/, each swapped in whole so that no reader sees half a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_long.files import replacing, write_atomically
from lit_long.report.folder import Stage, read_sweep
from lit_long.report.page import page
from lit_long.report.results import aggregate
from lit_long.report.tables import csv_text, perplexity_table, retrieval_tables

FIGURES = ("retrieval.png", "passkey.png", "loss_by_position.png")


@dataclass(frozen=True)
class Report:
    """What was written. ``terminal`` can be given to ``rich.print``; ``missing`` are the stages without a result."""

    folder: Path
    markdown: str
    report_md: Path
    table_csv: Path
    figures: list[Path]
    terminal: Any
    missing: list[Stage]


def write_report(folder: Path) -> Report:
    """Reads the sweep in ``folder`` and writes its report there. Unfinished stages leave gaps, and are named.

    Raises:
        UserError: a file of the sweep is missing or malformed.
    """
    from lit_long.report.figures import drawings

    results = aggregate(read_sweep(folder))
    drawn = drawings(results)
    for name in FIGURES:
        if name in drawn:
            with replacing(folder / "figures" / name) as path, path.open("wb") as file:
                drawn[name](file)
        else:  # an earlier report's figure would be taken for this one's
            (folder / "figures" / name).unlink(missing_ok=True)
    markdown = page(results, [name for name in FIGURES if name in drawn])
    write_atomically(folder / "table.csv", csv_text(results))
    write_atomically(folder / "report.md", markdown)
    return Report(
        folder=folder,
        markdown=markdown,
        report_md=folder / "report.md",
        table_csv=folder / "table.csv",
        figures=[folder / "figures" / name for name in FIGURES if name in drawn],
        terminal=_terminal([table for table in (perplexity_table(results), *retrieval_tables(results)) if table]),
        missing=results.missing,
    )


def _terminal(tables: list[Any]) -> Any:
    from rich.console import Group

    return Group(*(part for table in tables for part in table.terminal()))
