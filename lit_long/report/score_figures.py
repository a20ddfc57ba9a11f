"""Figures of one model's scores: the scaling law through its points, the loss by position, and the needle's heat map."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lit_long.evaluation.measurement import BY_POSITION, Measurement
from lit_long.files import replacing
from lit_long.report.canvas import COLOURS, DPI, GREY, MARKERS, STYLE

Rows = list[Measurement]
LAW, POSITIONS, NEEDLE = "scaling_law.png", "loss_by_position.png", "needle.png"


def draw_scores(rows: Rows, folder: Path) -> list[Path]:
    """Write those figures that the rows have numbers for; returns their files."""
    found = []
    for name, metric, draw in (
        (LAW, "law_r2", law),
        (POSITIONS, BY_POSITION, positions),
        (NEEDLE, "score_at_depth", needle),
    ):
        if any(row.metric == metric for row in rows):
            found.append(save(folder / name, rows, draw))
    return found


def save(file: Path, rows: Rows, draw: Callable[[Any, Rows], None]) -> Path:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.6), dpi=DPI, layout="constrained")
        draw(figure.add_subplot(), rows)
        with replacing(file) as writing, writing.open("wb") as stream:
            figure.savefig(stream, format="png")
    return file


def law(axes: Any, rows: Rows) -> None:
    """Points with 95 % intervals, and the fitted curve; the constants stand in the legend."""
    for index, domain in enumerate(dict.fromkeys(row.domain for row in rows if row.metric == "law_r2")):
        points = sorted((row.length, row.value, row.low, row.high) for row in of(rows, "nats", domain))
        lengths, nats = (np.array(column, dtype=float) for column in list(zip(*points, strict=True))[:2])
        alpha, beta, gamma, r2 = (of(rows, f"law_{name}", domain)[0].value for name in ("alpha", "beta", "gamma", "r2"))
        curve = np.geomspace(lengths[0] / 1.5, lengths[-1] * 1.5, 100)
        label = f"{domain}: α {alpha:.3g}, β {beta:.3g}, γ {gamma:.3g}, R² {r2:.3f}"
        axes.plot(curve, (alpha / curve) ** beta + gamma, color=COLOURS[index], label=label)
        reach = [
            [0 if low is None else abs(value - low), 0 if high is None else abs(high - value)] for _, value, low, high in points
        ]
        axes.errorbar(lengths, nats, np.transpose(reach), fmt=MARKERS[index], color=COLOURS[index], capsize=3, linewidth=1)
    axes.set(xlabel="context (tokens)", ylabel="loss (nats per token)", title="Context-length scaling law: L(c) = (α/c)^β + γ")
    powers(axes, sorted({row.length for row in rows if row.metric == "nats"}))
    axes.legend(frameon=False)


def positions(axes: Any, rows: Rows) -> None:
    """Mean loss in each bin of positions, with 95 % intervals over documents."""
    for index, domain in enumerate(dict.fromkeys(row.domain for row in rows if row.metric == BY_POSITION)):
        found = sorted(of(rows, BY_POSITION, domain), key=lambda row: row.length)
        edges = [0, *(row.length for row in found)]
        middles = [(low + high) / 2 for low, high in pairwise(edges)]
        axes.plot(middles, [row.value for row in found], color=COLOURS[index], marker=MARKERS[index], label=domain)
        if found[0].low is not None:
            axes.fill_between(
                middles,
                [row.low for row in found],
                [row.high for row in found],
                color=COLOURS[index],
                alpha=0.15,
                linewidth=0,
            )
    axes.set(
        xlabel="position (tokens)", ylabel="loss (nats per token)", title="Loss by position, and 95 % intervals over documents"
    )
    powers(axes, [2**k for k in range(3, int(np.log2(edges[-1])) + 1)])
    axes.legend(frameon=False)


def needle(axes: Any, rows: Rows) -> None:
    """Share of the needle's words found, in % and in colour, by length and depth."""
    cells = [row for row in rows if row.metric == "score_at_depth"]
    lengths, depths = sorted({row.length for row in cells}), sorted({row.settings["depth"] for row in cells})
    grid = np.full((len(depths), len(lengths)), np.nan)
    for row in cells:
        grid[depths.index(row.settings["depth"]), lengths.index(row.length)] = 100 * row.value
    image = axes.imshow(grid, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
    axes.set(xlabel="prompt and answer (tokens)", ylabel="depth of the needle (%)", title="Needle in a haystack: words found (%)")
    axes.grid(visible=False)
    if grid.size <= 120:  # beyond, the numbers would not fit
        for (y, x), number in np.ndenumerate(grid):
            axes.text(x, y, f"{number:.0f}", ha="center", va="center", fontsize=8, color="black" if number > 55 else "white")
    axes.figure.colorbar(image, ax=axes).outline.set_edgecolor(GREY)


def of(rows: Rows, metric: str, domain: str) -> Rows:
    return [row for row in rows if row.metric == metric and row.domain == domain]


def powers(axes: Any, ticks: list[int]) -> None:
    """A logarithmic axis of tokens, labelled at ``ticks`` alone."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
