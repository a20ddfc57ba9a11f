"""Writes a sweep's report: table.csv, differences.csv, report.md, report.html, tables.tex and figures/, each swapped in whole so that no reader sees half a file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_long.files import write_atomically
from lit_long.report.differences import difference_tables, differences_csv
from lit_long.report.page import failed_count, failures, page, page_html, warnings
from lit_long.report.predictors import predictors_table
from lit_long.report.results import Results, StageResult, aggregate, read_sweep
from lit_long.report.tables import Table, bound_table, csv_text, law_table, perplexity_table, published_tables, retrieval_tables

DIFFERENCES = "differences.csv"
FIGURES, KINDS = ("retrieval_rouge", "retrieval", "passkey", "loss_by_position", "context_law", "base_bound"), ("png", "svg")


@dataclass(frozen=True)
class Report:
    """What was written. ``terminal`` can be given to ``rich.print``; ``missing`` are the stages without a result; ``failures`` says in lines
    what failed and why, "" where nothing did."""

    folder: Path
    markdown: str
    report_md: Path
    table_csv: Path
    figures: list[Path]
    terminal: Any
    missing: list[StageResult]
    failures: str

    @property
    def files(self) -> list[Path]:
        """All but the figures."""
        more = [self.folder / DIFFERENCES] if (self.folder / DIFFERENCES).is_file() else []
        return [self.table_csv, *more, self.report_md, self.folder / "report.html", self.folder / "tables.tex"]


def write_report(folder: Path) -> Report:
    """Reads the sweep in ``folder`` and writes its report there. Unfinished stages leave gaps, and are named.

    Raises:
        UserError: a file of the sweep is missing or malformed.
    """
    results = aggregate(read_sweep(folder))
    figures = write_figures(results, folder)
    top, below = page(results, list(figures))
    markdown = f"{top}\n\n{below}"
    differences = difference_tables(results)
    made = (
        perplexity_table(results),
        *retrieval_tables(results),
        *published_tables(results),
        predictors_table(results),
        law_table(results),
        bound_table(results),
        *differences,
    )
    tables = [table for table in made if table and results.cells]
    title = results.sweep.report.title or results.sweep.experiment
    pictures = {f"figures/{name}.png": content for name, content in figures.items()}
    write_atomically(folder / "table.csv", csv_text(results))
    if differences:
        write_atomically(folder / DIFFERENCES, differences_csv(results))
    else:  # of an earlier report
        (folder / DIFFERENCES).unlink(missing_ok=True)
    write_atomically(folder / "report.md", markdown)
    write_atomically(folder / "report.html", page_html(title, top, below, pictures))
    write_atomically(folder / "tables.tex", "\n\n".join(table.latex() for table in tables) + "\n")
    return Report(
        folder=folder,
        markdown=markdown,
        report_md=folder / "report.md",
        table_csv=folder / "table.csv",
        figures=[folder / "figures" / f"{name}.{kind}" for name in figures for kind in KINDS],
        terminal=_terminal(tables, warnings(results)),
        missing=results.missing,
        failures=_failures(results),
    )


def write_figures(results: Results, folder: Path) -> dict[str, bytes]:
    """Every figure that there is something to draw for, in both kinds; its PNG by name."""
    from lit_long.report.figures import drawings

    drawn, pictures = drawings(results), {}
    for name in FIGURES:
        for kind in KINDS:
            file = folder / "figures" / f"{name}.{kind}"
            if name not in drawn:  # an earlier report's figure would be taken for this one's
                file.unlink(missing_ok=True)
                continue
            picture = io.BytesIO()
            drawn[name](picture, kind)
            write_atomically(file, picture.getvalue())
            if kind == "png":
                pictures[name] = picture.getvalue()
    return pictures


def _failures(results: Results) -> str:
    """A line for each stage that failed, under one that counts them."""
    lines = [f"  {label}: {why}  ({typed_here(stage.folder / 'log.txt')})" for stage, label, why in failures(results)]
    return "\n".join([failed_count(results), *lines]) if lines else ""


def typed_here(path: Path) -> Path:
    """As a user would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _terminal(tables: list[Table], said: list[str]) -> Any:
    from rich.console import Group
    from rich.text import Text

    return Group(*(part for table in tables for part in table.terminal()), *(Text(warning, style="bold") for warning in said))
