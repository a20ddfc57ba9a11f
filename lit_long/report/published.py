"""A paper's tables with ours beside them: paper | ours | difference, row by row.

The numbers of the paper are data of the experiment (``report.published``). A column of which we measured nothing of the same kind shows the
paper's number alone. A difference says how far apart two numbers are, not that the smaller model did worse or better: text and models differ.
"""

from __future__ import annotations

from lit_long.config import MeasuredConfig, PublishedConfig
from lit_long.report.results import Cell, Results, display
from lit_long.report.tables import MISSING, Table, format_cell


def published_tables(results: Results) -> list[Table]:
    """One for each published table, the variants of the sweep first, then rows that only the paper has."""
    return [published_table(results, table) for table in results.sweep.report.published]


def published_table(results: Results, published: PublishedConfig) -> Table:
    rows = list(dict.fromkeys([*results.rows, *published.rows]))
    table = Table(published.title, ["variant"], [[display(row)] for row in rows])
    columns = dict.fromkeys([column for values in published.rows.values() for column in values] + list(published.measured))
    for column in columns:
        paper = [published.rows.get(row, {}).get(column) for row in rows]
        cells = [MISSING if value is None else f"{value:g}" for value in paper]
        add(table, f"{column}\npaper", cells)
        wanted = published.measured.get(column)
        ours = [measured(results, row, wanted) for row in rows] if wanted else []
        if any(ours):
            add(table, f"{column}\nours", [format_cell(cell, wanted.scale, 2) for cell in ours])
            pairs = zip(ours, paper, strict=True)
            add(table, f"{column}\nours − paper", [difference(cell, value, wanted.scale) for cell, value in pairs])
    return table


def measured(results: Results, row: str, wanted: MeasuredConfig) -> Cell | None:
    """Our cell; of the longest measured length where none is named."""
    lengths = results.lengths(wanted.metric, wanted.domain)
    length = wanted.length or (lengths[-1] if lengths else 0)
    return results.get(row, wanted.metric, wanted.domain, length)


def difference(ours: Cell | None, paper: float | None, scale: float) -> str:
    return MISSING if ours is None or paper is None else f"{ours.mean * scale - paper:+.2f}"


def add(table: Table, header: str, cells: list[str]) -> None:
    table.header.append(header)
    for row, cell in zip(table.rows, cells, strict=True):
        row.append(cell)
