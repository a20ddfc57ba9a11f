"""The scores of one model as tables, a task a row and a length a column, for the terminal and for scores.md.

Shares and overlaps are in %; perplexity is as it is. Behind each value stands its standard error; where there is none (one sample, a
value that is no mean), nothing is claimed. Nothing is bold: one model has no best.

Figures (`draw_scores`): the scaling law through its points, the loss by position, and the needle's heat map.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lit_long.evaluation.measurement import BY_POSITION, Measurement
from lit_long.evaluation.registry import BUILT_IN
from lit_long.files import replacing
from lit_long.report.canvas import COLOURS, DPI, GREY, MARKERS, STYLE
from lit_long.report.tables import MISSING, Table


def score_tables(rows: list[Measurement], title: str) -> list[Table]:
    """Our own tasks, and those that went through lm-eval; of each what there is."""
    return [table for table in (score_table(rows, title), through_table(rows, f"{title}, through lm-eval")) if table.rows]


def through_table(rows: list[Measurement], title: str) -> Table:
    """lm-eval's tasks, the number that counts of each; last whether this project ever scored it on the real data."""
    shown = [row for row in rows if row.settings.get("main")]
    lengths = sorted({row.length for row in shown})
    lines: dict[tuple[str, str], dict[int, Measurement]] = {}
    for row in shown:
        lines.setdefault((row.task, row.domain), {})[row.length] = row
    body = []
    for (task, domain), cells in lines.items():
        first = next(iter(cells.values()))
        numbers = [value(cells.get(length), share=True) for length in lengths]
        real = {True: "yes", False: "never"}.get(first.settings["verified"], MISSING)  # a user's own task
        body.append(
            [task if domain == "all" else f"  {domain}", first.metric, str(first.settings["shots"]), *numbers, str(first.n), real]
        )
    for row in rows:
        if row.task == "paper_average":
            body.append(
                [f"Table 1: {row.metric}", "mean", "", *[MISSING] * (len(lengths) - 1), value(row, share=True), "", "never"]
            )
    return Table(title, ["task", "metric", "shots", *(f"≤{length:,}" for length in lengths), "n", "on real data"], body)


def score_table(rows: list[Measurement], title: str) -> Table:
    """Main metrics by length; of the user's own tasks all metrics, as they are."""
    shown = [row for row in rows if in_table(row)]
    lengths = sorted({row.length for row in shown})
    lines: dict[tuple[str, bool, str], dict[int, Measurement]] = {}
    for row in shown:
        known = BUILT_IN.get(row.task)
        title, share = (known.title, known.share) if known else (f"{row.task}, {row.metric}", False)
        lines.setdefault((title, share, row.domain), {})[row.length] = row
    body = []
    for (title, share, domain), cells in lines.items():
        counts = sorted({cell.n for cell in cells.values()})
        n = "–".join(map(str, dict.fromkeys([counts[0], counts[-1]])))
        body.append([title, domain, *(value(cells.get(length), share) for length in lengths), n])
    return Table(title, ["task", "texts", *(f"{length:,}" for length in lengths), "n"], body)


def in_table(row: Measurement) -> bool:
    """Whether the row stands in `score_table`: the main metric of a task of ours, or any of the user's own."""
    if row.task in BUILT_IN:
        return row.metric == BUILT_IN[row.task].metric
    return row.task not in ("scaling_law", "paper_average") and "main" not in row.settings and row.is_whole


def value(row: Measurement | None, share: bool) -> str:
    """``61.2 ± 3.4``; where all samples hit or missed, the end of the 95 % interval: ``100 (≥51)``."""
    if row is None:
        return MISSING
    scale, digits = (100, 1) if share else (1, 2)
    text = f"{scale * row.value:.{digits}f}"
    if row.stderr is None:
        return text
    if row.stderr == 0:  # all hit or all missed, which does not make it certain
        bound = f"≥{scale * row.low:.0f}" if row.value else f"≤{scale * row.high:.0f}"
        return text if row.low == row.high else f"{scale * row.value:.0f} ({bound})"
    return f"{text} ± {scale * row.stderr:.{digits}f}"


def remarks(rows: list[Measurement]) -> list[str]:
    """What the table leaves out: the scaling law, k_max, truncation, and the provenance of every score."""
    lines = []
    for domain in dict.fromkeys(row.domain for row in rows if row.task == "scaling_law"):
        law = {row.metric.removeprefix("law_"): row for row in rows if row.task == "scaling_law" and row.domain == domain}
        names = {"alpha": "α", "beta": "β", "gamma": "γ"}
        parts = [f"{sign} {law[name].value:.3g}{interval(law[name])}" for name, sign in names.items()]
        lines.append(
            f"scaling law, {domain}: L(c) = (α/c)^β + γ, {', '.join(parts)}; R² {law['r2'].value:.4f} of {law['r2'].n} lengths"
        )
    for row in rows:
        if row.metric == "k_max":
            lines.append(f"k_max: {row.value:,} tokens of {row.length:,} ({row.n} trials; at least 20 % found)")
    if any(row.settings.get("verified") is False for row in rows):
        lines.append(
            "on real data, never: this project has tested the task on small files of its schema only; check against a known model"
        )
    cut = sorted({f"{row.task} {row.length:,}: {row.settings['truncated']:.0%}" for row in rows if row.settings["truncated"]})
    lines.append("perplexities as they are, all else in %; ± one standard error over n samples, or the end of the 95 % interval")
    lines.append(f"prompts cut to the model's range: {', '.join(cut) if cut else 'none'}")
    return lines


def of_data(about: dict[str, Any]) -> list[str]:
    """What a reader must know of the tasks' data."""
    return [f"{task}: {line}" for task, lines in about.get("remarks", {}).items() for line in lines]


def interval(row: Measurement) -> str:
    return "" if row.low is None else f" [{row.low:.3g}, {row.high:.3g}]"


def markdown(rows: list[Measurement], about: dict[str, Any], figures: list[str]) -> str:
    """scores.md."""
    prompts = {task: each["prompt"] for task, each in about["tasks"].items() if each["prompt"] != "none"}
    return "\n\n".join(
        [
            f"# Scores of {about['model']}",
            f"Suite `{about['suite']}`; ± is one standard error over n samples; empty cells were not measured.",
            *(table.markdown() for table in score_tables(rows, "")),
            "\n".join(
                f"* {line}"
                for line in [*remarks(rows), *of_data(about), *(f"left out: {why}" for why in about["left_out"].values())]
            ),
            "\n".join(f"![{name}]({name})" for name in figures),
            f"Weights `{about['weights'][:16]}`, tokenizer `{about['tokenizer'][:16]}`, encoder `{about['position'].get('scheme')}`, "
            f"precision {about['precision']}, lit-long {about['lit_long']}. Prompt versions: "
            + ("; ".join(f"{task} {version}" for task, version in prompts.items()) or "none")
            + ".",
            "",
        ]
    )


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
