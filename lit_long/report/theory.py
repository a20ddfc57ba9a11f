"""The analysis of positional encoders on paper: CSV files for scripts, theory.md for people, one page of figures.

It is given plain tables (name → rows; see `lit_long.positions.analysis.analyze`), so that the report stays free of models.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lit_long.files import replacing, write_atomically
from lit_long.report.results import display
from lit_long.report.tables import Table

# Names that others script against.
COLUMNS = {
    "spectrum": ("scheme", "head_dim", "index", "inv_freq", "attention_factor"),
    "decay": ("scheme", "distance", "score"),
    "granularity": ("scheme", "head_dim", "value"),
    "base_bound": ("base", "head_dim", "length"),
}
FIGURES = ("theory.png", "theory.svg")
Tables = dict[str, list[dict[str, Any]]]


def write_theory(folder: Path, tables: Tables, setting: dict[str, Any], left_out: list[str]) -> list[Table]:
    """Write the four CSV files, theory.md and figures/ into ``folder``; return the two tables of theory.md.

    Args:
        setting: ``head_dim``, ``base``, ``length`` and ``stretched`` (tokens) that the tables were computed for.
        left_out: a line for each scheme that could not be analyzed.
    """
    from lit_long.report.theory_figure import draw

    for name, columns in COLUMNS.items():
        write_atomically(folder / f"{name}.csv", csv_text(tables[name], columns))
    shown = [scheme_table(tables, setting), statement_table(tables)]
    write_atomically(folder / "theory.md", markdown(shown, setting, left_out))
    for name in FIGURES:
        with replacing(folder / "figures" / name) as path, path.open("wb") as file:
            draw(tables, setting, file, Path(name).suffix[1:])
    return shown


def csv_text(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def scheme_table(tables: Tables, setting: dict[str, Any]) -> Table:
    """One row a scheme."""
    distances = (f"{setting['length']:,}", f"{setting['stretched']:,}")
    header = ["scheme", "granu-\nlarity", "adapt.\nmax", "adapt.\nmean", "slowest\n÷ RoPE's", "attn.\nfactor"]
    header += [*(f"score\n{distance}" for distance in distances), "first\n< 0"]
    rows = []
    for row in tables["schemes"]:
        first = "none" if row["first_negative"] is None else f"{row['first_negative']:,}"
        numbers = [f"{row['granularity']:.4f}", f"{row['adaptation']:.3f}", f"{row['adaptation_mean']:.3f}"]
        numbers += [f"{row['slowest']:.4f}", f"{row['attention_factor']:.3f}"]
        numbers += [f"{row['score_original']:.2f}", f"{row['score_stretched']:.2f}", first]
        rows.append([display(row["scheme"]), *numbers])
    return Table(f"Positional encoders before training ({setting_words(setting)})", header, rows)


def statement_table(tables: Tables) -> Table:
    rows = [[row["statement"], row["paper"], row["ours"], row["verdict"]] for row in tables["statements"]]
    return Table("The papers' statements, computed", ["statement", "paper", "ours", "verdict"], rows)


def setting_words(setting: dict[str, Any]) -> str:
    return f"d = {setting['head_dim']}, base {setting['base']:,g}, {setting['length']:,} → {setting['stretched']:,} tokens"


def markdown(shown: list[Table], setting: dict[str, Any], left_out: list[str]) -> str:
    schemes, statements = shown
    lines = [
        f"# {schemes.title}",
        "",
        schemes.markdown(),
        "",
        "Granularity: (2/d)·Σ sin φ_j, how far the images of neighbouring positions lie apart (sine of their angle). Adaptation: how "
        f"far images of positions up to {setting['stretched']:,} lie from the nearest one in {setting['length']:,} trained positions "
        "(unit vectors; 0 = seen, √2 = at right angles), the farthest and the mean. Score: all-ones query and key, before the softmax, "
        "and the first distance at which it is negative.",
        *(f"\nLeft out: {line}" for line in left_out),
        "",
        "![decay, helix, base bound, spectrum and granularity](figures/theory.png)",
        "",
        f"## {statements.title}",
        "",
        statements.markdown(),
        "",
        "Sources: LLaMA 2 Long (2309.16039), App. B, unless a number names another. d = 128, b = 10,000, ABF β = 50.",
    ]
    return "\n".join(lines) + "\n"
