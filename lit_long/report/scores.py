"""The scores of one model as tables, a task a row and a length a column, for the terminal and for scores.md.

Shares and overlaps are in %; perplexity is as it is. Behind each value stands its standard error; where there is none (one sample, a
value that is no mean), nothing is claimed. Nothing is bold: one model has no best.
"""

from __future__ import annotations

from typing import Any

from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.registry import BUILT_IN
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
    return row.task not in ("scaling_law", "paper_average") and "main" not in row.settings and "depth" not in row.settings


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
            "\n".join(f"* {line}" for line in [*remarks(rows), *(f"left out: {why}" for why in about["left_out"].values())]),
            "\n".join(f"![{name}]({name})" for name in figures),
            f"Weights `{about['weights'][:16]}`, tokenizer `{about['tokenizer'][:16]}`, encoder `{about['position'].get('scheme')}`, "
            f"precision {about['precision']}, lit-long {about['lit_long']}. Prompt versions: "
            + ("; ".join(f"{task} {version}" for task, version in prompts.items()) or "none")
            + ".",
            "",
        ]
    )
