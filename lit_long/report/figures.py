"""The figures: retrieval by task length (the paper's Figure 5b) and loss by position, drawn for the width of a README.

Okabe and Ito's palette and a marker per variant keep lines apart without colour; the reference is grey and dashed. The
legend sits above the axes, where it cannot cover a line. `matplotlib.figure.Figure` is used directly: pyplot costs a second
to import, keeps global state, and looks for a display.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from lit_long.report.laws import fitted_laws
from lit_long.report.page import model_size, papers_curves, seed_words
from lit_long.report.results import ACCURACY, BY_POSITION, CONTROL, CONTROL_ROUGE, PASSKEY, ROUGE, Results, display

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))  # a second and third round of the palette
GREY = "#6E6E6E"
CONTROLS = {ACCURACY: CONTROL, ROUGE: CONTROL_ROUGE}
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


def drawings(results: Results) -> dict[str, Callable[[BinaryIO, str], None]]:
    """Name → function that writes the figure as png or svg; only figures whose metric was measured."""
    found: dict[str, Callable[[BinaryIO, str], None]] = {}
    if results.domains(ROUGE):
        found["retrieval"] = partial(_by_length, results, ROUGE, "First-sentence retrieval", "ROUGE-L (%)")
    elif results.domains(ACCURACY):
        title = "First-sentence retrieval: teacher-forced token accuracy"
        found["retrieval"] = partial(_by_length, results, ACCURACY, title, "token accuracy (%)")
    if results.domains(PASSKEY):
        found["passkey"] = partial(_by_length, results, PASSKEY, "Passkey: found in the text", "found (%)")
    if results.domains(BY_POSITION):
        found["loss_by_position"] = partial(_loss_by_position, results)
    if fitted_laws(results):
        found["context_law"] = partial(_context_law, results)
    return found


def _by_length(results: Results, metric: str, title: str, label: str, file: BinaryIO, kind: str) -> None:
    """A task's score in % over its length."""
    domains = results.domains(metric)
    with _panels(results, title, domains, 2.5, file, kind) as panels:
        for domain, axes in zip(domains, panels, strict=True):
            lengths = results.lengths(metric, domain)
            for row in results.rows:
                points = []
                for length in lengths:
                    cell = results.get(row, metric, domain, length)
                    if cell:
                        points.append(Point(length, 100 * cell.mean, 100 * cell.low, 100 * cell.high, cell.seeds))
                _line(axes, results, row, points)
            _papers_curve(axes, results)
            if metric in CONTROLS:
                _control(axes, results, CONTROLS[metric], domain)
            _log2_axis(axes, lengths, lengths, panels)
            _base_context(axes, results, lengths, at_top=False)  # good accuracies are at the top
            axes.set(ylim=(-2, 102), yticks=range(0, 101, 20), xlabel="task length (tokens)")
        panels[0].set_ylabel(label)


def _loss_by_position(results: Results, file: BinaryIO, kind: str) -> None:
    domains = results.domains(BY_POSITION)
    with _panels(results, "Loss by position in held-out documents", domains, 2.7, file, kind) as panels:
        for domain, axes in zip(domains, panels, strict=True):
            edges = results.lengths(BY_POSITION, domain)
            middles = {high: (low + high) / 2 for low, high in zip([0, *edges], edges, strict=False)}
            shown: list[float] = []
            for row in results.rows:
                cells = [(edge, results.get(row, BY_POSITION, domain, edge)) for edge in edges]
                points = [Point(middles[edge], c.mean, c.low, c.high, c.seeds) for edge, c in cells if c]
                _line(axes, results, row, points)
                if row != results.reference:
                    shown += [value for p in points for value in (p.low, p.high) if math.isfinite(value)]
            powers = [2**k for k in range(math.floor(math.log2(middles[edges[0]])), math.ceil(math.log2(edges[-1])) + 1)]
            _log2_axis(axes, [middles[edges[0]], edges[-1]], powers, panels)
            _base_context(axes, results, edges, at_top=True)
            _fit_variants(axes, results, domain, edges, shown)
            axes.set(xlabel="position (tokens)")
        panels[0].set_ylabel("loss (nats per token)")


def _papers_curve(axes: Any, results: Results) -> None:
    """The paper's retrieval by length behind ours, as far as our lengths go."""
    curves = papers_curves(results)
    for row, points in curves.items():
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=_colour(results, row), linewidth=3.5, alpha=0.25, zorder=0.5)
    if curves:
        place = {"textcoords": "offset points", "xycoords": "axes fraction", "ha": "right", "va": "bottom"}
        axes.annotate("broad and pale: the paper's", (1.0, 0.0), (-2, 3), fontsize=7.5, color=GREY, **place)


def _control(axes: Any, results: Results, metric: str, domain: str) -> None:
    """A line at what a model scores that cannot look back, the mean of all variants."""
    cells = [results.get(row, metric, domain, length) for length in results.lengths(metric, domain) for row in results.rows]
    scores = [100 * cell.mean for cell in cells if cell]
    if scores:
        axes.axhline(sum(scores) / len(scores), color=GREY, linewidth=1.0, linestyle=(0, (1, 2)), zorder=0.6)
        place = {"textcoords": "offset points", "xycoords": ("axes fraction", "data"), "ha": "left", "va": "top"}
        axes.annotate("after another text", (0.0, sum(scores) / len(scores)), (3, -2), fontsize=7.5, color=GREY, **place)


def _context_law(results: Results, file: BinaryIO, kind: str) -> None:
    """Points and fitted law of every variant, a panel a domain; the paper's curves in the last panel."""
    laws, published = fitted_laws(results), results.sweep.report.law.rows
    domains = list(dict.fromkeys(one.domain for one in laws))
    with _panels(results, "Loss by context: (α/c)^β + γ", [*domains, "the paper's"], 2.5, file, kind) as panels:
        for domain, axes in zip(domains, panels, strict=False):
            mine = [one for one in laws if one.domain == domain]
            for one in mine:
                colour = _colour(results, one.row)
                axes.plot(one.lengths, one.losses, "o", color=colour, markerfacecolor="white", label=_label(results, one.row))
                fine = [
                    2 ** (k / 8) for k in range(round(8 * math.log2(one.lengths[0])), round(8 * math.log2(one.lengths[-1])) + 1)
                ]
                axes.plot(fine, [one.law.loss(c) for c in fine], color=colour)
            _log2_axis(axes, mine[0].lengths, mine[0].lengths, panels)
        contexts = [2**k for k in range(5, 16)]
        for index, (name, law) in enumerate(published.items()):
            losses = [(law["alpha"] / c) ** law["beta"] + law["gamma"] for c in contexts]
            panels[-1].plot(contexts, losses, color=GREY, linewidth=0.8 + 0.5 * index)
            place = {"textcoords": "offset points", "ha": "right", "va": "bottom"}
            panels[-1].annotate(name, (contexts[-1], losses[-1]), (0, 1), fontsize=7, color=GREY, **place)
        _log2_axis(panels[-1], contexts, contexts, panels)
        for axes in panels:
            axes.set(xlabel="context (tokens)")
        panels[0].set_ylabel("loss (nats per token)")


@contextmanager
def _panels(results: Results, title: str, domains: list[str], height: float, file: BinaryIO, kind: str) -> Iterator[list[Any]]:
    """Axes side by side (at most three a row) under a title, what was measured, and the legend; writes the figure on leaving."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        columns = _columns(len(domains))
        rows = math.ceil(len(domains) / columns)
        per_row, legend_rows = _legend_shape(results)
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
        figure.text(left, 1 - 0.4 / total, _subtitle(results), fontsize=8.5, color="#444444", va="center")
        handles = {text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        place = {"loc": "upper left", "bbox_to_anchor": (left, 1 - 0.56 / total), "borderaxespad": 0, "borderpad": 0}
        figure.legend(handles.values(), handles.keys(), ncols=per_row, frameon=False, columnspacing=1.6, **place)
        undated = {"metadata": {"Date": None}} if kind == "svg" else {}
        figure.savefig(file, format=kind, dpi=DPI, **undated)


def _columns(panels: int) -> int:
    return 2 if panels == 4 else min(3, panels)


def _legend_shape(results: Results) -> tuple[int, int]:
    """Entries a row, and rows: estimated from the names, because measuring them would mean drawing twice."""
    inches = sum(0.068 * len(_label(results, row)) + 0.6 for row in results.rows)
    rows = math.ceil(inches / (WIDTH - LEFT - RIGHT))
    per_row = math.ceil(len(results.rows) / rows)
    return per_row, math.ceil(len(results.rows) / per_row)


def _label(results: Results, row: str) -> str:
    return f"{display(row)} (reference)" if row == results.reference else display(row)


def _subtitle(results: Results) -> str:
    words = [model_size(results), seed_words(results)]
    contexts = list(dict.fromkeys(r["context"] for runs in results.train().values() for r in runs if r.get("context")))
    if contexts:
        words.append("trained in contexts of " + ", then ".join(f"{context:,}" for context in contexts))
    if len(results.sweep.seeds) > 1:
        words.append("band: lowest to highest")
    return " · ".join(words)


def _colour(results: Results, row: str) -> str:
    return GREY if row == results.reference else COLOURS[results.variants.index(row) % len(COLOURS)]


def _line(axes: Any, results: Results, row: str, points: list[Point]) -> None:
    points = [point for point in points if math.isfinite(point.mean)]
    if not points:
        return
    x, y = [point.x for point in points], [point.mean for point in points]
    if row == results.reference:
        axes.plot(x, y, color=GREY, linestyle="--", linewidth=1.4, label=_label(results, row), zorder=2)
        return
    index, colour = results.variants.index(row), _colour(results, row)
    dashes = DASHES[index // len(COLOURS) % len(DASHES)]
    if any(point.seeds > 1 for point in points):
        low, high = [point.low for point in points], [point.high for point in points]
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0, zorder=1)
    marker = MARKERS[index % len(MARKERS)]
    # White-faced markers: where two lines coincide, the lower one still shows through.
    face = {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.3}
    axes.plot(x, y, color=colour, linestyle=dashes, marker=marker, label=_label(results, row), zorder=3, clip_on=True, **face)


def _log2_axis(axes: Any, span: list[float], ticks: list[int], panels: list[Any]) -> None:
    """Log₂ x axis with the actual lengths as ticks; labels that would touch the one to their right are left out."""
    low, high = math.log2(span[0]), math.log2(span[-1])
    margin = 0.04 * (high - low) or 0.5
    low, high = low - margin, high + margin
    axes.set_xscale("log", base=2)
    axes.set_xlim(2**low, 2**high)
    ticks = [tick for tick in ticks if low <= math.log2(tick) <= high]
    panel_inches = (WIDTH - LEFT - RIGHT) / _columns(len(panels))
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


def _base_context(axes: Any, results: Results, lengths: list[int], at_top: bool) -> None:
    context = results.base_context()
    if context and min(lengths) <= context < max(lengths):
        axes.axvline(context, color=GREY, linestyle=":", linewidth=1.2, zorder=1.5)
        place = {"textcoords": "offset points", "xycoords": ("data", "axes fraction")}
        name = display(results.reference or "base")
        y, va = (1.0, "top") if at_top else (0.06, "bottom")
        axes.annotate(f"context of {name}", (context, y), (3, -1), fontsize=7.5, color=GREY, va=va, **place)


def _fit_variants(axes: Any, results: Results, domain: str, edges: list[int], shown: list[float]) -> None:
    """Scales y to the variants when the reference, past its context, would flatten them; says how far it goes."""
    cells = [results.get(results.reference or "", BY_POSITION, domain, edge) for edge in edges]
    peak = max((cell.mean for cell in cells if cell and math.isfinite(cell.mean)), default=-math.inf)
    if not shown or peak <= (top := max(shown)) + 0.5 * max(top - min(shown), 0.1):
        return
    pad = 0.12 * max(top - min(shown), 0.1)
    axes.set_ylim(min(shown) - pad, top + 2.5 * pad)
    words = f"{display(results.reference or '')} rises to {peak:.1f}"
    place = {"textcoords": "offset points", "xycoords": "axes fraction", "ha": "right", "va": "top"}
    axes.annotate(words, (1.0, 1.0), (-2, -12), fontsize=7.5, color=GREY, **place)
