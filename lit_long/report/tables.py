"""The tables: Table 5's form for perplexity, first-sentence retrieval by length, the tidy CSV behind both, and what was trained on.

A `Table` is plain text cells with a set of bold ones, so that Markdown and the terminal show the same thing. Measured and
published numbers never share a column: the domains, models and lengths differ, so only the order of the rows compares.

Bold needs evidence. A variant is the best of a column only where it is clear of *every* other variant by more than the sum
of the two standard deviations; with one seed nothing is bold.

The other tables: a paper's numbers with ours beside them (`published_tables`; the paper's are data of the experiment, and a difference says
how far apart two numbers are, not that the smaller model did worse; a fitted constant has no mean over seeds, so that of each seed is told),
the context-length scaling law of every variant (`law_table`; fitted to the mean over seeds of the loss at each length,
evaluation/scaling_law.py), and retrieval by RoPE base beside what the base-bound criterion says of each base (`bound_table`; Men et al.
2024, "Base of RoPE bounds context length"; positions/bounds.py).
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lit_long.config import MeasuredConfig, PublishedConfig
from lit_long.evaluation.measurement import PERPLEXITY, Measurement
from lit_long.report.results import ACCURACY, NATS, QUERY_SCALE, TASKS, Cell, Results, StageResult, display

if TYPE_CHECKING:
    from lit_long.evaluation.scaling_law import Law


MISSING = "—"
COLUMNS_AT_ONCE = 4  # measured, in 80 columns of a terminal
LATEX_SIGNS = {"^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
LATEX_SIGNS |= {"±": r"$\pm$", "−": "$-$", "≤": r"$\le$", "—": "---", "–": "--"} | {
    letter: rf"$\{name}$" for letter, name in {"α": "alpha", "β": "beta", "γ": "gamma"}.items()
}
COLUMNS = ("variant", "metric", "domain", "length", "mean", "sd", "seeds", "paper")


@dataclass
class Table:
    """Rows of text; ``\\n`` in a header breaks its line; ``bold`` holds (row, column) indices."""

    title: str
    header: list[str]
    rows: list[list[str]]
    bold: set[tuple[int, int]] = field(default_factory=set)
    at_once: int = 0  # columns that 80 columns of a terminal hold; 0: an empty header parts them

    def markdown(self) -> str:
        lines = [self._line(self.header), "|" + "|".join([":--"] + ["--:"] * (len(self.header) - 1)) + "|"]
        for index, row in enumerate(self.rows):
            lines.append(self._line([f"**{c}**" if (index, j) in self.bold else c for j, c in enumerate(row)]))
        return "\n".join(lines)

    def latex(self) -> str:
        """A tabular in booktabs' style, under its title as a comment."""
        body = [
            [f"\\textbf{{{latex(c)}}}" if (i, j) in self.bold else latex(c) for j, c in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]
        head = [
            r"\shortstack{" + r"\\".join(map(latex, cell.split("\n"))) + "}" if "\n" in cell else latex(cell)
            for cell in self.header
        ]
        lines = [
            f"% {self.title}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
        ]
        lines += [" & ".join(row) + r" \\" for row in body]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])

    @staticmethod
    def _line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |"

    def terminal(self) -> list[Any]:
        """Tables of `rich`, one for each group of columns: 80 columns of a terminal hold one group."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        gaps = [(index, index) for index, head in enumerate(self.header) if not head]
        gaps += [(k - 1, k) for k in range(1 + self.at_once, len(self.header), self.at_once)] if self.at_once else []
        starts, ends = [0, *(start for start, _ in gaps)], [*(end for _, end in gaps), len(self.header)]
        tables = []
        for start, end in zip(starts, ends, strict=True):
            columns = [0, *range(start + 1, end)]
            title = None if start else Text(self.title, style="bold")
            table = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for column in columns:
                table.add_column(Text(self.header[column]), justify="right" if column else "left", overflow="fold")
            for i, row in enumerate(self.rows):  # Text, not str: rich would take "[32k]" in a variant's name for markup
                cells = ((row[j].replace(" ± ", "±"), "bold" if (i, j) in self.bold else "") for j in columns)
                table.add_row(*(Text(cell, style=style) for cell, style in cells))
            tables.append(table)
        return tables


def latex(text: str) -> str:
    """``text`` as LaTeX sets it."""
    escaped = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    for sign, command in LATEX_SIGNS.items():
        escaped = escaped.replace(sign, command)
    return escaped


def perplexity_table(results: Results) -> Table | None:
    """Table 5's form: the longest length, the shortest ("what was given up"), then the paper's own columns.

    All lengths are shown where they fit, that is, in one group of columns.
    """
    report = results.sweep.report
    lengths = results.lengths(PERPLEXITY)
    if not (lengths or report.paper):
        return None
    # Variants that only the paper has keep their row: the reader sees what was not run.
    variants = list(dict.fromkeys([*results.variants, *(v for v in report.paper if v not in results.references)]))
    table = _frame("Validation perplexity (lower is better)", results, variants)
    if not lengths:
        _text_column(table, "measured", [MISSING] * len(table.rows))
    for domain, length in perplexity_columns(results):
        cells = [results.get(row, PERPLEXITY, domain, length) for row in _order(results, variants)]
        _measured_column(table, f"{domain}\n@ {length:,}", cells, len(variants), min)
    if report.paper:
        _text_column(table, "", [""] * len(table.rows))
        for domain in dict.fromkeys(d for domains_ in report.paper.values() for d in domains_):
            values = [report.paper.get(row, {}).get(domain) for row in _order(results, variants)]
            places = max(len(repr(v).partition(".")[2]) for v in values if v is not None)
            _text_column(table, f"paper:\n{domain}", [MISSING if v is None else f"{v:.{places}f}" for v in values])
    return table


def perplexity_columns(results: Results) -> list[tuple[str, int]]:
    """Domain and length of the table's measured columns."""
    lengths, domains = results.lengths(PERPLEXITY), results.domains(PERPLEXITY)
    every = len(lengths) * len(domains) <= COLUMNS_AT_ONCE
    shown = lengths[::-1] if every else dict.fromkeys([*lengths[-1:], *lengths[:1]])
    return [(domain, length) for length in shown for domain in domains]


def retrieval_tables(results: Results) -> list[Table]:
    """Scores in % and nats, by task length; one table per task, measure and domain."""
    tables = []
    for metric, (title, best) in TASKS.items():
        scale, places = (1.0, None) if metric == NATS else (100.0, 1)
        for domain in results.domains(metric):
            table = _frame(title.format(domain=domain), results, results.variants)
            for length in results.lengths(metric, domain):
                cells = [results.get(row, metric, domain, length) for row in results.rows]
                _measured_column(table, f"{length:,}", cells, len(results.variants), best, scale, places)
            tables.append(table)
    return sorted(tables, key=lambda table: table.title.partition(":")[0])  # stable: a task's measures in their order


def csv_text(results: Results) -> str:
    """Tidy CSV. Paper rows stand alone, under the paper's own domains and length, with nothing measured in them."""
    report, buffer = results.sweep.report, io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    rows = {row: index for index, row in enumerate(results.rows)}
    metrics = [PERPLEXITY, *TASKS]  # what a reader looks for first; the rest by name

    def place(item: tuple[tuple[str, str, str, int], Cell]) -> tuple[Any, ...]:
        row, metric, *rest = item[0]
        return (metrics.index(metric) if metric in metrics else len(metrics), metric, rows[row], *rest)

    for (row, metric, domain, length), cell in sorted(results.cells.items(), key=place):
        writer.writerow([row, metric, domain, length, cell.mean, "" if cell.sd is None else cell.sd, cell.seeds, ""])
    for row, domains in report.paper.items():
        for domain, value in domains.items():
            writer.writerow([row, PERPLEXITY, domain, report.paper_length, "", "", 0, value])
    for table in report.published:
        for row, columns in table.rows.items():
            for column, value in columns.items():
                writer.writerow([row, table.title, column, "", "", "", 0, value])
    return buffer.getvalue()


def best_row(cells: Sequence[Cell | None], best: Callable[..., Any] | None) -> int | None:
    """Index of the cell that beats every other beyond the noise (see the top of this file), or None."""
    known = [(index, cell) for index, cell in enumerate(cells) if cell is not None]
    if best is None or len(known) < 2 or any(cell.sd is None or not math.isfinite(cell.mean + cell.sd) for _, cell in known):
        return None
    winner, top = best(known, key=lambda pair: pair[1].mean)
    clear = all(abs(cell.mean - top.mean) > cell.sd + top.sd for index, cell in known if index != winner)
    return winner if clear else None


def _order(results: Results, variants: list[str]) -> list[str]:
    return variants + results.references


def _frame(title: str, results: Results, variants: list[str]) -> Table:
    return Table(title, ["variant"], [[results.label(row)] for row in _order(results, variants)])


def _text_column(table: Table, header: str, cells: Sequence[str]) -> None:
    table.header.append(header)
    for row, cell in zip(table.rows, cells, strict=True):
        row.append(cell)


def _measured_column(
    table: Table,
    header: str,
    cells: Sequence[Cell | None],
    variants: int,
    best: Callable[..., Any] | None,
    scale: float = 1.0,
    places: int | None = None,
) -> None:
    """Appends a column; only the first ``variants`` cells compete: the reference is no competitor."""
    winner = best_row(cells[:variants], best)
    if winner is not None:
        table.bold.add((winner, len(table.header)))
    places = places_of(cells) if places is None else places
    _text_column(table, header, [format_cell(cell, scale, places) for cell in cells])


def places_of(cells: Sequence[Cell | None]) -> int:
    """One precision for a column, set by its smallest number: digits line up and none is invented."""
    means = [abs(cell.mean) for cell in cells if cell is not None and math.isfinite(cell.mean)]
    smallest = min(means, default=0.0)
    return 3 if smallest < 10 else 2 if smallest < 100 else 1


def format_cell(cell: Cell | None, scale: float, places: int) -> str:
    if cell is None:
        return MISSING
    mean = scale * cell.mean
    text = f"{mean:.{places}f}" if abs(mean) < 1e5 or not math.isfinite(mean) else f"{mean:.2e}"
    if cell.sd is None or not math.isfinite(cell.sd):
        return text
    sd = scale * cell.sd
    return f"{text} ± {sd:.{places}f}" if sd < 1e5 else f"{text} ± {sd:.1e}"


def data_table(results: Results) -> Table | None:
    """What the training stages took from each domain: planned before they started, and counted. None where no stage has told.

    Stages that took the same are one row a domain; the others carry their variants.
    """
    users: dict[str, dict[str, list[str]]] = {}  # stage's name → its account as JSON → variants
    for stage in results.sweep.stages:
        if stage.result and stage.result.get("kind") == "train" and stage.result.get("data"):
            account = json.dumps(stage.result["data"], sort_keys=True)
            found = users.setdefault(stage.name, {}).setdefault(account, [])
            found += [variant for variant, _ in stage.users if variant not in found]
    rows = []
    for name, accounts in users.items():
        for account, variants in accounts.items():
            label = name if len(accounts) == 1 else f"{name}, {', '.join(map(display, variants))}"
            domains = json.loads(account)
            total = sum(row["consumed"]["tokens"] for row in domains.values()) or 1
            for domain, row in domains.items():
                taken, epochs = row["consumed"], row["epochs"]
                passes = MISSING if epochs is None else f"{epochs * taken['tokens'] / row['tokens']:.2f}"
                shares = f"{row['share']:.1%}", f"{taken['tokens'] / total:.1%}"
                counts = [f"{taken[key]:,}" for key in ("tokens", "documents", "cut", "cropped")]
                rows.append([label, domain, *shares, counts[0], passes, *counts[1:]])
    header = [
        "stage",
        "domain",
        "planned share",
        "consumed",
        "tokens",
        "epochs",
        "documents begun",
        "of them cut",
        "tokens left out",
    ]
    return Table("What training took from each domain", header, rows) if rows else None


def published_tables(results: Results) -> list[Table | None]:
    """One for each published table, the variants of the sweep first, then rows that only the paper has; None where it has no number."""
    return [published_table(results, table) for table in results.sweep.report.published]


def published_table(results: Results, published: PublishedConfig) -> Table | None:
    """The paper's columns, each with ours of its name; then ours of other names. No column is empty."""
    rows = list(dict.fromkeys([*results.rows, *published.rows]))
    table = Table(published.title, ["variant"], [[display(row)] for row in rows])
    columns = dict.fromkeys([column for values in published.rows.values() for column in values] + list(published.measured))
    for column in columns:
        paper = [published.rows.get(row, {}).get(column) for row in rows]
        if any(value is not None for value in paper):
            _text_column(table, f"{column}\npaper", [MISSING if value is None else f"{value:g}" for value in paper])
        wanted = published.measured.get(column)
        ours = [measured(results, row, wanted) for row in rows] if wanted else []
        if any(ours) and wanted.metric == QUERY_SCALE:
            _text_column(table, *of_each_seed(results, rows, column, wanted))
        elif any(ours):
            _text_column(table, f"{column}\nours", [format_cell(cell, wanted.scale, 2) for cell in ours])
            pairs = list(zip(ours, paper, strict=True))
            if any(cell is not None and value is not None for cell, value in pairs):
                differences = [difference(cell, value, wanted.scale) for cell, value in pairs]
                _text_column(table, f"{column}\nours − paper", differences)
    return table if len(table.header) > 1 else None


def of_each_seed(results: Results, rows: Sequence[str], column: str, wanted: MeasuredConfig) -> tuple[str, list[str]]:
    """Header and cells of a fitted constant: its values under the seeds, which may differ by powers of ten and so have no mean."""
    about = wanted.metric, wanted.domain, length_of(results, wanted)
    cells = []
    for row in rows:
        found = [each for stage in results.folders.get(row, ()) for each in stage.measurements or []]
        found = [each for each in found if (each.metric, each.domain, each.length) == about]
        values = [f"{each.value * wanted.scale:g}{' (end)' if is_at_end(each) else ''}" for each in found]
        cells.append(" · ".join(values) or MISSING)
    header = f"{column}\nours" + (", of each seed" if any("·" in cell for cell in cells) else "")
    return header + ("\n(end): at the end of\nthe values tried" if any("(end)" in cell for cell in cells) else ""), cells


def is_at_end(fitted: Measurement) -> bool:
    """Whether the constant is the smallest or the largest of several that were tried: another one beyond may be better."""
    tried = sorted(fitted.settings.get("perplexity") or (), key=float)  # as text (evaluation/query_scale.py)
    return len(tried) > 1 and f"{fitted.value:g}" in (tried[0], tried[-1])


def measured(results: Results, row: str, wanted: MeasuredConfig) -> Cell | None:
    """Our cell."""
    return results.get(row, wanted.metric, wanted.domain, length_of(results, wanted))


def length_of(results: Results, wanted: MeasuredConfig) -> int:
    """Tokens: the length that is named, else the longest that was measured; 0 where none was."""
    return wanted.length or max(results.lengths(wanted.metric, wanted.domain), default=0)


def difference(ours: Cell | None, paper: float | None, scale: float) -> str:
    return MISSING if ours is None or paper is None else f"{ours.mean * scale - paper:+.2f}"


SIGNS = {"alpha": "α", "beta": "β", "gamma": "γ"}


@dataclass(frozen=True)
class Fitted:
    """Of one variant on one domain: the lengths in tokens and losses in nats, means over its runs, that the law goes through; and the law of each run."""

    row: str
    domain: str
    lengths: list[int]
    losses: list[float]
    law: Law
    of_runs: list[Law]


def fitted_laws(results: Results) -> list[Fitted]:
    """In the order of variants and domains; none if the experiment does not ask for it."""
    if not results.sweep.report.law.rows:
        return []
    from lit_long.evaluation.scaling_law import LEAST_POINTS, fit  # which imports numpy and scipy

    found = []
    for row in results.rows:
        for domain in results.domains(PERPLEXITY):
            runs = [losses_by_length(stage, domain) for stage in results.folders[row]]
            runs = [losses for losses in runs if losses]
            common = sorted(set.intersection(*map(set, runs))) if runs else []
            lengths = [length for length in common if all(math.isfinite(losses[length]) for losses in runs)]
            if len(lengths) >= LEAST_POINTS:
                means = [sum(losses[length] for losses in runs) / len(runs) for length in lengths]
                each = [fit(lengths, [losses[length] for length in lengths]) for losses in runs]
                found.append(Fitted(row, domain, lengths, means, fit(lengths, means), each))
    return found


def losses_by_length(stage: StageResult, domain: str) -> dict[int, float]:
    """Nats a token, by length in tokens; of a run that diverged they are infinite, and stay: without it the mean would hide that."""
    found = [each for each in stage.measurements or [] if (each.metric, each.domain) == (PERPLEXITY, domain)]
    return {each.length: math.log(each.value) for each in found}


def law_table(results: Results) -> Table | None:
    """α, β, γ with 95 % intervals and R² of ours, then the paper's."""
    ours = fitted_laws(results)
    if not ours:
        return None
    names = [f"{display(one.row)}, {one.domain}" for one in ours] + [f"{row} (paper)" for row in results.sweep.report.law.rows]
    table = Table("Loss by context: L(c) = (α/c)^β + γ", ["model"], [[name] for name in names])
    published = list(results.sweep.report.law.rows.values())
    for name, sign in SIGNS.items():
        cells = [with_interval(getattr(one.law, name), one.law.intervals[name]) for one in ours]
        cells += [f"{row[name]:g}" if name in row else MISSING for row in published]
        _text_column(table, sign, cells)
    if any(len(one.of_runs) > 1 for one in ours):
        cells = [" · ".join(f"{law.beta:.3g}" for law in one.of_runs) for one in ours] + [MISSING] * len(published)
        _text_column(table, "β of each seed", cells)
    _text_column(table, "R²", [f"{one.law.r2:.4f}" for one in ours] + [MISSING] * len(published))
    _text_column(
        table,
        "a doubling leaves\n2^−β",
        [f"{2**-one.law.beta:.3f}" for one in ours] + [f"{2 ** -row['beta']:.3f}" for row in published],
    )
    return table


def with_interval(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.3g}" + (f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else "")


BOUND_TITLE = "Retrieval by RoPE base"
BOUND_EXPLAINED = (
    "The criterion asks that a similar token be told from a random one at every distance up to the length: Σ cos(m·θ_j) ≥ 0. Scores are token accuracy in %, mean "
    "over seeds; in brackets those at lengths that the base does not support by the criterion. A larger base does not always support more."
)


@dataclass(frozen=True)
class Base:
    """The RoPE base of a variant, and the dimension of its heads: what the criterion depends on."""

    base: float
    head_dim: int

    @property
    def supports(self) -> int:
        """The longest context in tokens that the criterion allows."""
        from lit_long.positions.bounds import context_bound  # which imports numpy

        return context_bound(self.base, self.head_dim)


def base_of(settings: Mapping[str, Any]) -> Base | None:
    """Of a stage's settings; None where its encoder has none."""
    position, model = settings.get("position") or {}, settings.get("model") or {}
    return Base(float(position["base"]), int(model["head_dim"])) if "base" in position and "head_dim" in model else None


def bases(results: Results) -> dict[str, Base]:
    """Of every measured variant, ascending, from the settings of its evaluate stages; none if the experiment does not ask for it."""
    if not results.sweep.report.shows_bases:
        return {}
    found = {row: base for row in results.variants for stage in results.folders[row] if (base := base_of(stage.settings))}
    return dict(sorted(found.items(), key=lambda item: item[1].base))


def bound_table(results: Results) -> Table | None:
    """Base, the longest context that it supports, and accuracy by task length; one row a base."""
    found, domains = bases(results), results.domains(ACCURACY)
    if not found or not domains:
        return None
    domain = domains[0]
    lengths = results.lengths(ACCURACY, domain)
    table = Table(f"{BOUND_TITLE} ({domain})", ["", "base", "supports\n(tokens)", *(f"{length:,}" for length in lengths)], [])
    for row, base in found.items():
        cells = [results.get(row, ACCURACY, domain, length) for length in lengths]
        scores = [MISSING if cell is None else f"{100 * cell.mean:.1f}" for cell in cells]
        marked = [score if length <= base.supports else f"[{score}]" for score, length in zip(scores, lengths, strict=True)]
        table.rows.append([display(row), f"{base.base:,.0f}", f"{base.supports:,}", *marked])
    return table
