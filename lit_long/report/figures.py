"""The figures: retrieval by task length (the paper's Figure 5b), loss by position, loss by context, and retrieval by RoPE base, drawn for the
width of a README."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

from lit_long.evaluation.measurement import BY_POSITION
from lit_long.report.canvas import COLOURS, GREY, MARKERS, Point, colour_of, draw_line, log2_axis, panels_of, style_of
from lit_long.report.page import papers_curves
from lit_long.report.results import ACCURACY, CONTROL, CONTROL_ROUGE, PASSKEY, ROUGE, Results, display
from lit_long.report.tables import BOUND_TITLE, bases, fitted_laws

CONTROLS = {ACCURACY: CONTROL, ROUGE: CONTROL_ROUGE}


def drawings(results: Results) -> dict[str, Callable[[BinaryIO, str], None]]:
    """Name → function that writes the figure as png or svg; only figures whose metric was measured."""
    found: dict[str, Callable[[BinaryIO, str], None]] = {}
    if results.domains(ROUGE):
        found["retrieval_rouge"] = partial(_by_length, results, ROUGE, "First-sentence retrieval: what is written", "ROUGE-L (%)")
    if results.domains(ACCURACY):
        title = "First-sentence retrieval: teacher-forced token accuracy"
        found["retrieval"] = partial(_by_length, results, ACCURACY, title, "token accuracy (%)")
    if results.domains(PASSKEY):
        found["passkey"] = partial(_by_length, results, PASSKEY, "Passkey: found in the text", "found (%)")
    if results.domains(BY_POSITION):
        found["loss_by_position"] = partial(_loss_by_position, results)
    if fitted_laws(results):
        found["context_law"] = partial(_context_law, results)
    if bases(results) and results.domains(ACCURACY):
        found["base_bound"] = partial(_base_bound, results)
    return found


def _by_length(results: Results, metric: str, title: str, label: str, file: BinaryIO, kind: str) -> None:
    """A task's score in % over its length."""
    domains = results.domains(metric)
    with panels_of(results, title, domains, 2.5, file, kind) as panels:
        for domain, axes in zip(domains, panels, strict=True):
            lengths = results.lengths(metric, domain)
            for row in results.rows:
                points = []
                for length in lengths:
                    cell = results.get(row, metric, domain, length)
                    if cell:
                        points.append(Point(length, 100 * cell.mean, 100 * cell.low, 100 * cell.high, cell.seeds))
                draw_line(axes, results, row, points)
            if metric != PASSKEY:
                _papers_curve(axes, results)
            if metric in CONTROLS:
                _control(axes, results, CONTROLS[metric], domain)
            log2_axis(axes, lengths, lengths, panels)
            _base_context(axes, results, lengths, at_top=False)  # good accuracies are at the top
            axes.set(ylim=(-2, 102), yticks=range(0, 101, 20), xlabel="task length (tokens)")
        panels[0].set_ylabel(label)


def _loss_by_position(results: Results, file: BinaryIO, kind: str) -> None:
    domains = results.domains(BY_POSITION)
    with panels_of(results, "Loss by position in held-out documents", domains, 2.7, file, kind) as panels:
        for domain, axes in zip(domains, panels, strict=True):
            edges = results.lengths(BY_POSITION, domain)
            middles = {high: (low + high) / 2 for low, high in zip([0, *edges], edges, strict=False)}
            shown: list[float] = []
            for row in results.rows:
                cells = [(edge, results.get(row, BY_POSITION, domain, edge)) for edge in edges]
                points = [Point(middles[edge], c.mean, c.low, c.high, c.seeds) for edge, c in cells if c]
                draw_line(axes, results, row, points)
                if row not in results.references:
                    shown += [value for p in points for value in (p.low, p.high) if math.isfinite(value)]
            powers = [2**k for k in range(math.floor(math.log2(middles[edges[0]])), math.ceil(math.log2(edges[-1])) + 1)]
            log2_axis(axes, [middles[edges[0]], edges[-1]], powers, panels)
            _base_context(axes, results, edges, at_top=True)
            _fit_variants(axes, results, domain, edges, shown)
            axes.set(xlabel="position (tokens)")
        panels[0].set_ylabel("loss (nats per token)")


def _papers_curve(axes: Any, results: Results) -> None:
    """The paper's retrieval by length behind ours, as far as our lengths go."""
    curves = papers_curves(results)
    for row, points in curves.items():
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour_of(results, row), linewidth=3.5, alpha=0.25, zorder=0.5)
    if curves:
        place = {"textcoords": "offset points", "xycoords": "axes fraction", "ha": "right", "va": "bottom"}
        axes.annotate("broad and pale: the paper's", (1.0, 0.0), (-2, 3), fontsize=7.5, color=GREY, **place)


def _control(axes: Any, results: Results, metric: str, domain: str) -> None:
    """A line at what a model scores that cannot look back, the mean of all rows."""
    cells = [results.get(row, metric, domain, length) for length in results.lengths(metric, domain) for row in results.rows]
    scores = [100 * cell.mean for cell in cells if cell]
    if scores:
        axes.axhline(sum(scores) / len(scores), color=GREY, linewidth=1.0, linestyle=(0, (1, 2)), zorder=0.6)
        place = {"textcoords": "offset points", "xycoords": ("axes fraction", "data"), "ha": "center", "va": "bottom"}
        axes.annotate("after another text", (0.46, sum(scores) / len(scores)), (0, 1), fontsize=7.5, color=GREY, **place)


def _context_law(results: Results, file: BinaryIO, kind: str) -> None:
    """Points and fitted law of every variant, a panel a domain; the paper's curves in the last panel."""
    laws, published = fitted_laws(results), results.sweep.report.law.rows
    domains = list(dict.fromkeys(one.domain for one in laws))
    with panels_of(results, "Loss by context: (α/c)^β + γ", [*domains, "the paper's"], 2.5, file, kind) as panels:
        for domain, axes in zip(domains, panels, strict=False):
            mine = [one for one in laws if one.domain == domain]
            for one in mine:
                style = style_of(results, one.row)
                axes.plot(
                    one.lengths,
                    one.losses,
                    label=results.label(one.row),
                    **style | {"linestyle": "none", "marker": style.get("marker", "o")},
                )
                fine = [
                    2 ** (k / 8) for k in range(round(8 * math.log2(one.lengths[0])), round(8 * math.log2(one.lengths[-1])) + 1)
                ]
                axes.plot(fine, [one.law.loss(c) for c in fine], **style | {"marker": ""})
            log2_axis(axes, mine[0].lengths, mine[0].lengths, panels)
        contexts = [2**k for k in range(5, 16)]
        for index, (name, law) in enumerate(published.items()):
            losses = [(law["alpha"] / c) ** law["beta"] + law["gamma"] for c in contexts]
            panels[-1].plot(contexts, losses, color=GREY, linewidth=0.8 + 0.5 * index)
            place = {"textcoords": "offset points", "ha": "right", "va": "bottom"}
            panels[-1].annotate(name, (contexts[-1], losses[-1]), (0, 1), fontsize=7, color=GREY, **place)
        log2_axis(panels[-1], contexts, contexts, panels)
        for axes in panels:
            axes.set(xlabel="context (tokens)")
        panels[0].set_ylabel("loss (nats per token)")


def _base_bound(results: Results, file: BinaryIO, kind: str) -> None:
    """Accuracy over the base, a line for each length; where a line of dots stands, the criterion begins to hold at that length."""
    from lit_long.positions.bounds import smallest_base

    found, domains = bases(results), results.domains(ACCURACY)
    with panels_of(results, f"{BOUND_TITLE}: teacher-forced token accuracy", domains, 2.5, file, kind) as panels:
        for domain, axes in zip(domains, panels, strict=True):
            for index, length in enumerate(results.lengths(ACCURACY, domain)):
                cells = [(base.base, results.get(row, ACCURACY, domain, length)) for row, base in found.items()]
                points = [(base, cell) for base, cell in cells if cell]
                colour = COLOURS[index % len(COLOURS)]
                x, means = [base for base, _ in points], [100 * cell.mean for _, cell in points]
                axes.fill_between(
                    x,
                    [100 * cell.low for _, cell in points],
                    [100 * cell.high for _, cell in points],
                    color=colour,
                    alpha=0.14,
                    linewidth=0,
                )
                axes.plot(x, means, color=colour, marker=MARKERS[index], markerfacecolor="white", label=f"{length:,} tokens")
                for head_dim in sorted({base.head_dim for base in found.values()}):
                    axes.axvline(smallest_base(length, head_dim), color=colour, linestyle=":", linewidth=1.2)
            axes.set_xscale("log")
            axes.set_xlim(min(base.base for base in found.values()) / 1.3, max(base.base for base in found.values()) * 1.3)
            axes.set(ylim=(-2, 102), yticks=range(0, 101, 20), xlabel="RoPE base; dotted: the smallest that the criterion allows")
        panels[0].set_ylabel("token accuracy (%)")


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
    cells = [results.get(row, BY_POSITION, domain, edge) for row in results.references for edge in edges]
    peak = max((cell.mean for cell in cells if cell and math.isfinite(cell.mean)), default=-math.inf)
    if not shown or peak <= (top := max(shown)) + 0.5 * max(top - min(shown), 0.1):
        return
    pad = 0.12 * max(top - min(shown), 0.1)
    axes.set_ylim(min(shown) - pad, top + 2.5 * pad)
    words = f"{display(results.reference or 'a reference')} rises to {peak:.1f}"
    place = {"textcoords": "offset points", "xycoords": "axes fraction", "ha": "right", "va": "top"}
    axes.annotate(words, (1.0, 1.0), (-2, -12), fontsize=7.5, color=GREY, **place)
