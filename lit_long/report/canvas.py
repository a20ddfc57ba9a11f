"""What all figures of a report share: palette, type, panels with their titles and legend, lines with bands, and a logarithmic axis.

Okabe and Ito's palette and a marker per variant keep lines apart without colour; the reference is grey and dashed. The
legend sits above the axes, where it cannot cover a line. `matplotlib.figure.Figure` is used directly: pyplot costs a second
to import, keeps global state, and looks for a display.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from lit_long.report.page import model_size, seed_words
from lit_long.report.results import Results

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))  # a second and third round of the palette
GREY = "#6E6E6E"
WIDTH, DPI = 7.2, 150  # inches; 1080 pixels: sharp at the ~900 that a README shows
LEFT, RIGHT, BOTTOM, LEGEND_ROW = 0.58, 0.16, 0.5, 0.21  # inches
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.7,
    "lines.markersize": 5.5,
    "svg.hashsalt": "lit-long",  # the same results give the same bytes
}


@dataclass(frozen=True)
class Point:
    x: float
    mean: float
    low: float
    high: float
    seeds: int


@contextmanager
def panels_of(results: Results, title: str, domains: list[str], height: float, file: BinaryIO, kind: str) -> Iterator[list[Any]]:
    """Axes side by side (at most three a row) under a title, what was measured, and the legend; writes the figure on leaving."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        columns = columns_of(len(domains))
        rows = math.ceil(len(domains) / columns)
        per_row, legend_rows = legend_shape(results)
        top = 0.56 + LEGEND_ROW * legend_rows + (0.3 if len(domains) > 1 else 0.12)
        total = top + rows * height + (rows - 1) * (BOTTOM + 0.3) + BOTTOM
        figure = Figure(figsize=(WIDTH, total), dpi=DPI)
        figure.subplots_adjust(
            left=LEFT / WIDTH,
            right=1 - RIGHT / WIDTH,
            bottom=BOTTOM / total,
            top=1 - top / total,
            wspace=0.2,
            hspace=(BOTTOM + 0.3) / height,
        )
        panels = [figure.add_subplot(rows, columns, index + 1) for index in range(len(domains))]
        yield panels
        if len(domains) > 1:
            for domain, axes in zip(domains, panels, strict=True):
                axes.set_title(domain, loc="left", fontsize=9, fontweight="bold", pad=4)
        else:
            title += f" ({domains[0]})"
        left = LEFT / WIDTH
        figure.text(left, 1 - 0.2 / total, title, fontsize=10.5, fontweight="bold", va="center")
        figure.text(
            left,
            1 - 0.4 / total,
            subtitle(results, any(axes.collections for axes in panels)),
            fontsize=8.5,
            color="#444444",
            va="center",
        )
        handles = {text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        place = {"loc": "upper left", "bbox_to_anchor": (left, 1 - 0.56 / total), "borderaxespad": 0, "borderpad": 0}
        figure.legend(handles.values(), handles.keys(), ncols=per_row, frameon=False, columnspacing=1.6, **place)
        undated = {"metadata": {"Date": None}} if kind == "svg" else {}
        figure.savefig(file, format=kind, dpi=DPI, **undated)


def columns_of(panels: int) -> int:
    return 2 if panels == 4 else min(3, panels)


def legend_shape(results: Results) -> tuple[int, int]:
    """Entries a row, and rows: estimated from the names, because measuring them would mean drawing twice."""
    inches = sum(0.068 * len(results.label(row)) + 0.6 for row in results.rows)
    rows = math.ceil(inches / (WIDTH - LEFT - RIGHT))
    per_row = math.ceil(len(results.rows) / rows)
    return per_row, math.ceil(len(results.rows) / per_row)


def subtitle(results: Results, bands: bool) -> str:
    words = [model_size(results), seed_words(results)]
    contexts = list(dict.fromkeys(r["context"] for runs in results.train().values() for r in runs if r.get("context")))
    if contexts:
        words.append("trained in contexts of " + ", then ".join(f"{context:,}" for context in contexts))
    if bands:
        words.append("band: lowest to highest")
    return " · ".join(words)


def colour_of(results: Results, row: str) -> str:
    return GREY if row in results.references else COLOURS[results.variants.index(row) % len(COLOURS)]


def style_of(results: Results, row: str) -> dict[str, Any]:
    """Colour, dashes and markers of a row, the same in every figure; no two of 77 variants have all in common."""
    if row in results.references:
        return {"color": GREY, "linestyle": "--", "linewidth": 1.4}
    index, colour = results.variants.index(row), colour_of(results, row)
    dashes = DASHES[index // len(COLOURS) % len(DASHES)]
    # White-faced markers: where two lines coincide, the lower one still shows through.
    face = {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.3}
    return {"color": colour, "linestyle": dashes, "marker": MARKERS[index % len(MARKERS)], **face}


def draw_line(axes: Any, results: Results, row: str, points: list[Point]) -> None:
    points = [point for point in points if math.isfinite(point.mean)]
    if not points:
        return
    x, y = [point.x for point in points], [point.mean for point in points]
    if row in results.references:
        axes.plot(x, y, label=results.label(row), zorder=2, **style_of(results, row))
        return
    if any(point.seeds > 1 for point in points):
        low, high = [point.low for point in points], [point.high for point in points]
        axes.fill_between(x, low, high, color=colour_of(results, row), alpha=0.16, linewidth=0, zorder=1)
    axes.plot(x, y, label=results.label(row), zorder=3, clip_on=True, **style_of(results, row))


def log2_axis(axes: Any, span: list[float], ticks: list[int], panels: list[Any]) -> None:
    """Log₂ x axis with the actual lengths as ticks; labels that would touch the one to their right are left out."""
    low, high = math.log2(span[0]), math.log2(span[-1])
    margin = 0.04 * (high - low) or 0.5
    low, high = low - margin, high + margin
    axes.set_xscale("log", base=2)
    axes.set_xlim(2**low, 2**high)
    ticks = [tick for tick in ticks if low <= math.log2(tick) <= high]
    panel_inches = (WIDTH - LEFT - RIGHT) / columns_of(len(panels))
    labels, right = [], math.inf
    for tick in reversed(ticks):
        text = f"{tick:,}"
        at = (math.log2(tick) - low) / (high - low) * panel_inches
        half = 0.04 * len(text) + 0.04  # inches, at 9 points
        fits = at + half <= right
        labels.append(text if fits else "")
        right = at - half if fits else right
    axes.set_xticks(ticks, labels[::-1])
    axes.minorticks_off()
