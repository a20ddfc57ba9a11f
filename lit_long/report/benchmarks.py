"""Scores of published benchmarks beside published numbers: docs/scores.md, made from kept evaluations, not by hand.

A kept evaluation (`keep_scores`) is what `python -m lit_long.evaluate` left in its folder, in one small file: ``evaluation.json`` and the rows of ``scores.json``.
The file of published numbers says of each what it is, in %:

    title, introduction
    sources: {NAME: who published it, and how it was measured}
    published:
      - {task: piqa, metric: acc_norm, shots: 0, value: 66.92, source: NAME}
      - {task: [arc_easy, arc_challenge], …}      the plain mean of several
      - {…, other: lighteval's prompt}            what was done otherwise there: it is shown, and need not agree
      - {…, why: its reason}                      of a difference beyond two standard errors

The difference is ours − published, in standard errors of ours; one of more than two has its reason beside it, or is called unexplained. Where all
samples hit or missed, there is no error, and the 95 % interval decides.
"""

from __future__ import annotations

import datetime
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_long.config import UserError, typed
from lit_long.config.ranges import CountOrNone, Finite
from lit_long.evaluation.measurement import Measurement
from lit_long.files import write_atomically
from lit_long.report.findings import read

FAR = 2.0  # standard errors
DASH = "–"


@dataclass
class Published:
    """One published number of the model."""

    task: Any = ""  # a name, or several
    metric: str = ""
    shots: CountOrNone = 0
    value: Finite = 0.0
    source: str = ""
    other: str = ""
    why: str = ""


@dataclass
class Page:
    """The file of published numbers."""

    title: str = ""
    introduction: str = ""
    sources: dict[str, str] = field(default_factory=dict)
    published: list[Published] = field(default_factory=list)


def keep_scores(folder: Path, file: Path) -> None:
    """Keep what an evaluation of `python -m lit_long.evaluate` scored.

    Raises:
        UserError: it has not ended.
    """
    if not (scores := folder / "scores.json").is_file():
        raise UserError(f"{folder}: holds no scores.json; name the out=… of an evaluation that has ended")
    day = datetime.datetime.fromtimestamp(scores.stat().st_mtime, datetime.UTC).date().isoformat()
    kept = {"date": day, **read(folder / "evaluation.json", json.loads), "rows": json.loads(scores.read_text(encoding="utf-8"))}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def benchmarks(published_file: Path, results: Path) -> str:
    """The page as Markdown, of all kept evaluations in ``results``.

    Raises:
        UserError: a file cannot be read, or a published number names no source.
    """
    content = read(published_file, yaml.safe_load)
    page = typed(Page, content | {"published": []}, str(published_file))
    published = [
        typed(Published, each, f"{published_file}: published[{number}]")
        for number, each in enumerate(content.get("published") or [])
    ]
    for number, each in enumerate(published):
        if each.source not in page.sources:
            raise UserError(f"{published_file}: published[{number}].source={each.source}: is none of {', '.join(page.sources)}")
    kept = [read(file, json.loads) for file in sorted(results.glob("*.json"))]
    lines = [f"# {page.title}", "", page.introduction.strip(), ""]
    lines += ["| task | metric | shots | n | ours, % | published, % | difference | source |", "|---|---|---|---|---|---|---|---|"]
    found, reasons = score_lines(kept, published)
    lines += found or ["| " + " | ".join(["nothing kept yet", *[DASH] * 7]) + " |"]
    if reasons:
        lines += ["", "## Differences beyond two standard errors", "", *(f"* {line}" for line in reasons)]
    if remarks := dict.fromkeys(
        f"{task}: {line}" for one in kept for task, found in one.get("remarks", {}).items() for line in found
    ):
        lines += ["", "## Data that are not the published ones", "", *(f"* {line}" for line in remarks)]
    lines += ["", "## Sources", "", *(f"* **{name}**: {text.strip()}" for name, text in page.sources.items())]
    lines += ["", "## Evaluations", "", *(f"* {about(one)}" for one in kept)] if kept else []
    return "\n".join(lines) + "\n"


def score_lines(kept: list[dict[str, Any]], published: list[Published]) -> tuple[list[str], list[str]]:
    """The table's lines, in the order of the kept evaluations, and the reasons of those that are far from what was published."""
    measured: dict[tuple[str, str, int, int], Measurement] = {}
    main: dict[tuple[str, int, int], Measurement] = {}
    for one in kept:
        for row in map(Measurement.from_row, one["rows"]):
            if row.domain == "all" and "shots" in row.settings:
                key = row.task, row.settings["shots"], row.length
                measured[row.task, row.metric, row.settings["shots"], row.length] = row
                if row.settings.get("main"):
                    main[key] = row
    lines, reasons, used = [], [], []
    for (task, shots, length), row in main.items():
        longest = max(other for name, number, other in main if (name, number) == (task, shots))
        mine = [each for each in published if length == longest and each.task == task and each.shots == shots]
        mine.sort(key=lambda each: each.metric != row.metric)
        rows = [(measured.get((task, each.metric, shots, length)), each) for each in mine] or [(row, None)]
        if mine and all(each.metric != row.metric for each in mine):
            rows = [(row, None), *rows]
        several = sum(1 for name, number, _ in main if (name, number) == (task, shots)) > 1
        for found, each in rows:
            if found is not None:
                used.append(each)
                lines.append(line(f"{task}, {length:,} tokens" if several else task, found, shots, each, reasons))
    for each in published:
        if isinstance(each.task, list):
            parts = [
                row
                for (task, metric, shots, _), row in measured.items()
                if task in each.task and (metric, shots) == (each.metric, each.shots)
            ]
            if len(parts) == len(each.task):
                used.append(each)
                lines.append(line(f"mean of {', '.join(each.task)}", mean_of(parts), each.shots, each, reasons))
    lines += [
        f"| {each.task if isinstance(each.task, str) else 'mean of ' + ', '.join(each.task)} | {each.metric} | {each.shots} | {DASH} | not run | {each.value:g} | {DASH} | {sourced(each)} |"
        for each in published
        if each not in used
    ]
    return lines, reasons


def mean_of(rows: list[Measurement]) -> Measurement:
    """The plain mean of independent scores."""
    error = math.sqrt(sum((row.stderr or 0.0) ** 2 for row in rows)) / len(rows)
    return Measurement(rows[0].metric, "all", 0, sum(row.value for row in rows) / len(rows), error, n=sum(row.n for row in rows))


def sourced(published: Published) -> str:
    """Who published a number, and what was other there."""
    return published.source + (f" ({published.other})" if published.other else "")


def line(task: str, row: Measurement, shots: int, published: Published | None, reasons: list[str]) -> str:
    """One line of the table; what is far from the published number is told in ``reasons``."""
    error = 100 * row.stderr if row.stderr else None
    ours = f"{100 * row.value:.1f}" + (f" ± {error:.1f}" if error else "")
    within = None  # of all hits or all misses, which have no error: whether the published number lies in the 95 % interval
    if not error and row.low is not None and row.high is not None:
        ours += f" ({100 * row.low:.0f} to {100 * row.high:.0f})"
        within = published is not None and row.low <= published.value / 100 <= row.high
    cells = [task, row.metric, str(shots), f"{row.n:,}", ours, DASH, DASH, DASH]
    if published:
        difference = (100 * row.value - published.value) / error if error else math.nan
        far = not abs(difference) <= FAR if within is None else not within
        shown = f"{difference:+.1f}" if error else DASH
        cells[5:] = [f"{published.value:g}", f"**{shown}**" if far and not published.other else shown, sourced(published)]
        if far:
            why = published.why or published.other or "**unexplained**"
            reasons.append(f"{task}, {row.metric}, beside {published.source}: {why}")
    return f"| {' | '.join(cells)} |"


def about(one: dict[str, Any]) -> str:
    """Of which model, when and where."""
    tasks = ", ".join(one["tasks"])
    return (
        f"{one['date']}, {one.get('machine', 'machine not told')}: {one['model']} (weights `{one['weights'][:16]}`), {one['precision']}, lit-long {one['lit_long']}; "
        f"prompts of at most {max(one['lengths']):,} tokens: {tasks}"
    )


def write_benchmarks(published_file: Path, results: Path, out: Path) -> None:
    """Write the page to ``out``. Raises UserError as `benchmarks` does."""
    out.write_text(benchmarks(published_file, results), encoding="utf-8")
