"""The analysis of positional encoders without training: CSV files for scripts, theory.md for people, one page of figures.

It is given plain tables (name → rows; see `lit_long.positions.analysis.analyze`), so that the report stays free of models.

The page of figures of the analysis: decay (Figure 4), base bound, helix (Figure 8), spectrum and granularity by scheme. A second one: what the layers of
each pattern see, and query scales by context.

Lines are labelled where they end, and the schemes share one list of names, so that there is no legend to look up. Okabe and Ito's
palette for lines, cividis for the spectrum: both readable with any colour vision.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lit_long.files import replacing, write_atomically
from lit_long.report.canvas import COLOURS, DPI, GREY, STYLE
from lit_long.report.results import display
from lit_long.report.tables import Table

# Names that others script against.
COLUMNS = {
    "spectrum": ("scheme", "head_dim", "index", "inv_freq", "attention_factor"),
    "decay": ("scheme", "distance", "score"),
    "granularity": ("scheme", "head_dim", "value"),
    "base_bound": ("base", "head_dim", "length"),
    "layers": ("pattern", "layer", "group", "rotated", "window", "reach", "positioned", "pairs"),
    "query_scale": ("form", "context", "beta"),
}
Tables = dict[str, list[dict[str, Any]]]
KINDS = ("png", "svg")  # of figures/theory and figures/layers


def write_theory(folder: Path, tables: Tables, setting: dict[str, Any], left_out: list[str]) -> list[Table]:
    """Write the CSV files, theory.md and figures/ into ``folder``; return the tables of theory.md.

    Args:
        setting: ``head_dim``, ``base``, ``length`` and ``stretched`` (tokens) that the tables were computed for.
        left_out: a line for each scheme that could not be analyzed.
    """
    for name, columns in COLUMNS.items():
        write_atomically(folder / f"{name}.csv", csv_text(tables[name], columns))
    shown = [scheme_table(tables, setting), layer_table(tables, setting), statement_table(tables)]
    write_atomically(folder / "theory.md", markdown(shown, setting, left_out))
    for name, page in (("theory", draw), ("layers", draw_layers)):
        for kind in KINDS:
            with replacing(folder / "figures" / f"{name}.{kind}") as path, path.open("wb") as file:
                page(tables, setting, file, kind)
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


def layer_table(tables: Tables, setting: dict[str, Any]) -> Table:
    """One row a pattern."""
    rows = []
    for name in dict.fromkeys(row["pattern"] for row in tables["layers"]):
        own = [row for row in tables["layers"] if row["pattern"] == name]
        windows = sorted({row["window"] for row in own if row["window"]})
        all_seen = [row["window"] is None for row in own]
        whole = next((str(row["layer"]) for row in own if row["reach"] == setting["stretched"]), "none")
        counts = [f"{len(own)}", f"{sum(all_seen)}", f"{sum(not row['rotated'] for row in own)}"]
        reach = [whole, f"{own[-1]['positioned']:,}", f"{sum(row['pairs'] for row in own) / len(own):.0%}"]
        rows.append([name, *counts, ", ".join(f"{window:,}" for window in windows) or "none", *reach])
    header = [
        "pattern",
        "layers",
        "see\nall",
        "no\npositions",
        "window",
        "first that\nreaches all",
        "reach with\npositions",
        "pairs\nscored",
    ]
    return Table(f"What layers see (trained on {setting['length']:,} tokens, {setting['stretched']:,} now)", header, rows)


def statement_table(tables: Tables) -> Table:
    rows = [[row["statement"], row["paper"], row["ours"], row["verdict"]] for row in tables["statements"]]
    return Table("The papers' statements, computed", ["statement", "paper", "ours", "verdict"], rows)


def setting_words(setting: dict[str, Any]) -> str:
    return f"d = {setting['head_dim']}, base {setting['base']:,g}, {setting['length']:,} → {setting['stretched']:,} tokens"


def markdown(shown: list[Table], setting: dict[str, Any], left_out: list[str]) -> str:
    schemes, layers, statements = shown
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
        f"## {layers.title}",
        "",
        layers.markdown(),
        "",
        "Reach: tokens of the input, its own included, that the output of a layer depends on; with positions: through layers with positions alone, from "
        "the first to the last. Pairs scored: of those that layers without windows score.",
        "",
        "![windows and reach by layer, query scales by context](figures/layers.png)",
        "",
        f"## {statements.title}",
        "",
        statements.markdown(),
        "",
        "Sources: LLaMA 2 Long (2309.16039), App. B, unless a number names another. d = 128, b = 10,000, ABF β = 50.",
    ]
    return "\n".join(lines) + "\n"


INK = "#222222"
BACKED = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
PUBLISHED = {1e3: "1k", 1e4: "10k", 1e5: "100k", 1e6: "1M", 1e7: "10M"}
# Smallest bases for 1k … 64k tokens as published in 2405.14591, Table 2.
PAPER_BOUNDS = {1024: 4.3e3, 2048: 1.6e4, 4096: 2.7e4, 8192: 8.4e4, 16384: 3.1e5, 32768: 6.4e5, 65536: 2.1e6}
PAPER_LIMITS = {"ABF": 0.076, "PI 1/4": 0.027}  # LLaMA 2 Long, App. B
FLOOR = 1 / 64  # of the spectrum's colours


def draw(tables: Tables, setting: dict[str, Any], file: BinaryIO, kind: str) -> None:
    """Write the page to ``file`` as ``kind`` (png or svg). ``tables`` and ``setting`` as in `write_theory`."""
    import matplotlib
    from matplotlib.figure import Figure

    schemes = [row["scheme"] for row in tables["schemes"]]
    rows = 0.62 + 0.19 * len(schemes)  # inches of the lowest panels
    with matplotlib.rc_context(
        STYLE | {"svg.hashsalt": "lit-long", "axes.titlesize": 9, "axes.titleweight": "bold", "font.size": 8}
    ):
        total = 0.35 + 2.75 + 2.5 + rows + 1.0
        figure = Figure(figsize=(7.2, total), dpi=DPI)

        def place(left: float, top: float, width: float, height: float, **more: Any) -> Any:
            """Axes by inches from the upper left corner."""
            return figure.add_axes((left / 7.2, 1 - (top + height) / total, width / 7.2, height / total), **more)

        decay(place(0.5, 0.35, 2.75, 2.2), tables)
        base_bound(place(4.75, 0.35, 2.3, 2.2), tables, setting)
        for index, panel in enumerate(dict.fromkeys(row["panel"] for row in tables["helices"])):
            points = [row for row in tables["helices"] if row["panel"] == panel]
            helix(place(0.3 + 2.3 * index, 3.2, 2.0, 1.9, projection="3d"), panel, points)
        top = 0.35 + 2.75 + 2.5
        strip = place(1.05, top, 3.75, rows - 0.3)
        spectrum(strip, place(1.05, top + rows + 0.22, 3.75, 0.1), tables, setting, schemes)
        granularity(place(4.95, top, 2.1, rows - 0.3), tables, schemes)
        words = (
            f"d = {setting['head_dim']}, base {setting['base']:,g}",
            f"{setting['length']:,} → {setting['stretched']:,} tokens",
            "curves: mean over 250 tokens",
            "bands: lowest to highest",
        )
        figure.text(4.95 / 7.2, 1 - (top + rows + 0.22) / total, "\n".join(words), fontsize=7, color=GREY, va="top")
        figure.savefig(file, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)


def draw_layers(tables: Tables, setting: dict[str, Any], file: BinaryIO, kind: str) -> None:
    """Write the page of patterns and query scales to ``file`` as ``kind`` (png or svg)."""
    import matplotlib
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["pattern"] for row in tables["layers"]))
    rows = -(-(len(names) + 1) // 2)
    with matplotlib.rc_context(
        STYLE | {"svg.hashsalt": "lit-long", "axes.titlesize": 9, "axes.titleweight": "bold", "font.size": 8}
    ):
        total = 0.55 + 2.4 * rows
        figure = Figure(figsize=(7.2, total), dpi=DPI)

        def place(index: int, width: float) -> Any:
            left, top = 0.6 + 3.6 * (index % 2), 0.6 + 2.4 * (index // 2)
            return figure.add_axes((left / 7.2, 1 - (top + 1.75) / total, width / 7.2, 1.75 / total))

        for index, name in enumerate(names):
            pattern(place(index, 2.85), name, [row for row in tables["layers"] if row["pattern"] == name], setting)
        scales(place(len(names), 1.75), tables, setting)
        keys = (
            ("\u25a0", COLOURS[0], "sees, with positions"),
            ("\u25a0", COLOURS[4], "sees, without"),
            ("\u2014", INK, "reach"),
            ("- -", INK, "reach with positions"),
            ("···", GREY, "trained"),
        )
        for index, (mark, colour, words) in enumerate(keys):
            x = 0.6 + 1.4 * index
            figure.text(x / 7.2, 1 - 0.2 / total, mark, color=colour, fontweight="bold", va="center")
            figure.text((x + 0.22) / 7.2, 1 - 0.2 / total, words, color=INK, va="center")
        figure.savefig(file, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)


def pattern(axes: Any, name: str, rows: list[dict[str, Any]], setting: dict[str, Any]) -> None:
    """Bars: tokens that a query sees in each layer; lines: tokens that its output depends on, by whatever way, and through layers with positions."""
    context, layers = setting["stretched"], [row["layer"] for row in rows]
    colours = [COLOURS[0] if row["rotated"] else COLOURS[4] for row in rows]
    least = min(row["window"] or context for row in rows) / 4
    axes.bar(layers, [row["window"] or context for row in rows], 0.72, color=colours, alpha=0.55)
    axes.plot(layers, [row["reach"] for row in rows], color=INK, linewidth=1.2)
    axes.plot(layers, [row["positioned"] for row in rows], color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.set_yscale("log", base=2)
    axes.set_ylim(least, 1.5 * context)
    ticks = [2**power for power in range(int(np.ceil(np.log2(least))), int(np.log2(1.5 * context)) + 1, 2)]
    axes.set_yticks(ticks, [f"{tick // 1024}k" if tick >= 1024 else str(tick) for tick in ticks])
    axes.set_xticks(layers[:: -(-len(layers) // 16)])
    axes.minorticks_off()
    axes.axhline(setting["length"], color=GREY, linewidth=0.8, linestyle=(0, (1, 1.5)))
    axes.grid(False, axis="x")
    axes.set(title=name, xlabel="layer", ylabel="tokens")


def scales(axes: Any, tables: Tables, setting: dict[str, Any]) -> None:
    ends = []
    for form, colour in zip(dict.fromkeys(row["form"] for row in tables["query_scale"]), COLOURS, strict=False):
        rows = [row for row in tables["query_scale"] if row["form"] == form]
        axes.plot([row["context"] for row in rows], [row["beta"] for row in rows], color=colour, linewidth=1.3)
        ends.append((rows[-1]["beta"], form, colour))
    contexts = [row["context"] for row in tables["query_scale"]]
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(contexts), max(contexts))
    ticks = [2**power for power in range(int(np.ceil(np.log2(min(contexts)))), int(np.log2(max(contexts))) + 1, 2)]
    axes.set_xticks(ticks, [f"{tick // 1024}k" if tick >= 1024 else str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.axvline(setting["length"], color=GREY, linewidth=0.8, linestyle=(0, (1, 1.5)))
    axes.set(title="Query scale of the last query", xlabel="context (tokens)", ylabel="β")
    label_ends(axes, ends, 0.1)


def decay(axes: Any, tables: Tables) -> None:
    names = list(dict.fromkeys(row["scheme"] for row in tables["bands"]))
    ends = []
    for name, colour in zip(names, COLOURS, strict=False):
        rows = [row for row in tables["bands"] if row["scheme"] == name]
        x, low, mean, high = (np.array([row[key] for row in rows]) for key in ("distance", "low", "mean", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, mean, color=colour, linewidth=1.3)
        ends.append((float(mean[-len(mean) // 12 :].mean()), display(name), colour))
    axes.axhline(0, color=INK, linewidth=0.7)
    axes.set(title="Score of all-ones q and k (Figure 4)", xlabel="distance (tokens)", ylabel="score before the softmax")
    axes.set_xlim(0, max(row["distance"] for row in tables["bands"]))
    axes.set_xticks(range(0, 30_001, 10_000), ["0", "10k", "20k", "30k"])
    label_ends(axes, ends)


def label_ends(axes: Any, ends: list[tuple[float, str, str]], line: float = 0.075) -> None:
    """Names right of the axes at the heights where their lines end, moved apart to ``line`` of the axes' height."""
    low, high = axes.get_ylim()
    wanted = sorted(((value - low) / (high - low), text, colour) for value, text, colour in ends)
    heights = [height for height, *_ in wanted]
    for _ in range(100):
        for index in range(1, len(heights)):
            overlap = line - (heights[index] - heights[index - 1])
            if overlap > 1e-6:
                heights[index - 1] -= overlap / 2
                heights[index] += overlap / 2
    for (true, text, colour), height in zip(wanted, heights, strict=True):
        place = {"xycoords": "axes fraction", "textcoords": "axes fraction", "va": "center", "annotation_clip": False}
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(text, (1.0, true), (1.05, height), color=colour, fontweight="bold", arrowprops=arrow, **place)


def base_bound(axes: Any, tables: Tables, setting: dict[str, Any]) -> None:
    base = np.array([row["base"] for row in tables["base_bound"]])
    length = np.array([row["length"] for row in tables["base_bound"]])
    axes.loglog(base, length, color=COLOURS[0], linewidth=1.3)
    if setting["head_dim"] == 128:
        axes.plot(list(PAPER_BOUNDS.values()), list(PAPER_BOUNDS), "o", markerfacecolor="none", markersize=4, color=COLOURS[1])
        axes.annotate("published", (2.7e4, 4096), (-6, 6), textcoords="offset points", ha="right", color=COLOURS[1])
    for marked, text in ((setting["base"], "RoPE"), (50 * setting["base"], "ABF")):
        bound = length[np.searchsorted(base, marked)]
        axes.plot([marked], [bound], "o", color=INK, markersize=4.5, zorder=4)
        axes.annotate(f"{text}: {bound:,}", (marked, bound), (7, -9), textcoords="offset points", color=INK)
    axes.set(title="Context that a base supports", xlabel="base", ylabel="context (tokens)")
    ticks = [2**power for power in range(9, 19, 2) if length.min() <= 2**power <= 2 * length.max()]
    axes.set_yticks(ticks, [f"{tick // 1024}k" if tick >= 1024 else str(tick) for tick in ticks])
    axes.set_xticks(list(PUBLISHED), list(PUBLISHED.values()))
    axes.minorticks_off()


def helix(axes: Any, panel: str, rows: list[dict[str, Any]]) -> None:
    curve, dots = (np.array([[r["x"], r["y"], r["z"]] for r in rows if r["kind"] == kind]).T for kind in ("curve", "dots"))
    axes.plot(*curve, color=COLOURS[0], linewidth=1.2)
    axes.plot(*dots, "o", color=COLOURS[1], markersize=4)
    axes.set_title(panel, y=0.97)
    axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), zlim=(-1, 1), xticks=[-1, 0, 1], yticks=[-1, 0, 1], zticks=[-1, 0, 1])
    axes.tick_params(labelsize=6.5, pad=-3)
    axes.set_xlabel("Re $f_0$", labelpad=-9)
    axes.set_ylabel("Im $f_0$", labelpad=-9)
    axes.set_zlabel("Im $f_j$", labelpad=-10)
    axes.set_box_aspect((1, 1, 1), zoom=0.92)
    axes.view_init(elev=22, azim=-58)


def spectrum(axes: Any, bar: Any, tables: Tables, setting: dict[str, Any], schemes: list[str]) -> None:
    """Each pair's frequency as a share of RoPE's; pairs that do not turn at all are hatched."""
    from matplotlib.colors import LogNorm

    half = setting["head_dim"] // 2
    frequencies = np.array([row["inv_freq"] for row in tables["spectrum"]]).reshape(len(schemes), half)
    ratio = frequencies / setting["base"] ** (-np.arange(half) / half)
    still = ratio == 0
    shown = np.ma.masked_where(still, np.clip(ratio, FLOOR, 1))
    edges, heights = np.arange(half + 1) - 0.5, np.arange(len(schemes) + 1) - 0.5
    mesh = axes.pcolormesh(edges, heights, shown, cmap="cividis", norm=LogNorm(FLOOR, 1), rasterized=True)
    for row, column in zip(*np.nonzero(still), strict=True):
        axes.fill_between(
            [column - 0.5, column + 0.5], row - 0.5, row + 0.5, facecolor="white", edgecolor="#BBBBBB", hatch="////", lw=0
        )
    for height in heights[1:-1]:
        axes.axhline(height, color="white", linewidth=1.5)
    turn = half * np.log(setting["length"] / (2 * np.pi)) / np.log(setting["base"])
    if 0 < turn < half:
        axes.axvline(turn, color=INK, linewidth=1, linestyle=(0, (3, 2)))
        words = f"< 1 turn in {setting['length']:,} →"
        axes.annotate(words, (turn, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=7)
    axes.set_title("Frequency ÷ RoPE's", loc="left", pad=14)
    axes.set(xlabel="pair j (fast to slow)", xlim=(-0.5, half - 0.5))
    axes.set_ylim(len(schemes) - 0.5, -0.5)
    axes.set_yticks(range(len(schemes)), [display(name) for name in schemes])
    axes.tick_params(axis="y", length=0)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    ticks = [1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, FLOOR]
    axes.figure.colorbar(mesh, cax=bar, orientation="horizontal", ticks=ticks)
    bar.set_xticks(ticks, ["1", "1/2", "1/4", "1/8", "1/16", "1/32", "≤ 1/64"])
    bar.minorticks_off()
    bar.set_xlabel("colour: share of RoPE's frequency; hatched: does not turn", fontsize=7)


def granularity(axes: Any, tables: Tables, schemes: list[str]) -> None:
    values = {row["scheme"]: row["value"] for row in tables["granularity"]}
    for row, name in enumerate(schemes):
        axes.plot([0, values[name]], [row, row], color="#C8C8C8", linewidth=1)
        axes.plot([values[name]], [row], "o", color=COLOURS[0], markersize=4.5)
        axes.annotate(
            f"{values[name]:.3f}", (values[name], row), (5, 0), textcoords="offset points", va="center", fontsize=7, bbox=BACKED
        )
    for name, limit in PAPER_LIMITS.items():
        axes.axvline(limit, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center", "fontsize": 7}
        axes.annotate(f"{name}: {limit}", (limit, 1), (0, 3), color=GREY, **place)
    axes.set_title("Granularity", loc="left", pad=14)
    axes.set(xlabel="(2/d) Σ sin φ (dashed: limits)", xlim=(0, max([0.13, *(1.25 * value for value in values.values())])))
    axes.set_ylim(len(schemes) - 0.5, -0.5)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=4)
    axes.grid(False, axis="y")
