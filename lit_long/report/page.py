"""Writes report.md: what failed, what came out, the main table and the figure; below them what was run, the other tables and figures, the
notes, what is missing, and where every number came from.

There is no time stamp in it: the same results give the same bytes, so a report kept under version control changes only
when its numbers do.

report.html (`page_html`) is the same page in one file that can be sent around; figures are inside, nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lit_long.config.schema import PredictorConfig
from lit_long.evaluation.measurement import PERPLEXITY
from lit_long.report.differences import difference_tables, explained
from lit_long.report.headline import headline
from lit_long.report.predictors import is_measured, predictors_table
from lit_long.report.results import ACCURACY, CONTROL, PASSKEY, ROUGE, Results, StageResult, SweepResult, display
from lit_long.report.tables import (
    BOUND_EXPLAINED,
    Table,
    bound_table,
    data_table,
    law_table,
    length_of,
    perplexity_table,
    published_tables,
    retrieval_tables,
)

CAPTIONS = {
    "retrieval_rouge": "First-sentence retrieval by task length (the paper's Figure 5b and its measure): ROUGE-L of what the model writes.",
    "retrieval": "First-sentence retrieval by task length: the share of the sentence's tokens that the model ranks first, given the right ones before them.",
    "passkey": "Passkey retrieval by task length (the paper's footnote 4).",
    "loss_by_position": "Loss by position in the document: the mean of each bin of positions, drawn at the middle of the bin.",
    "base_bound": "Retrieval by RoPE base, a line a length. Dotted in the same colour: the smallest base that the base-bound criterion allows at that length.",
    "context_law": "Loss by context length with the fitted law (the form of the paper's Figure 1), and the paper's own curves.",
}


DATA = (
    "What training took from each domain: the share that was planned before the stage started, and the tokens that were counted. A document is "
    "cut where a sequence does not hold it whole; left out are tokens that no sequence holds."
)


PREDICTORS = (
    "R² is the share of the outcome's variance over all runs that a straight line through the predictor explains. The interval resamples the designs, each with "
    "all its seeds. With few designs it is wide: a description, which tests nothing."
)
NOT_MEASURED = "The settings of the report name these measurements, and no stage has made them:"
PUBLISHED = "Published numbers ({source}), and ours where we measure the same: other text, other models. Compare the order of the rows, not the levels."

LAW = "Least squares on the losses, mean over seeds, c in tokens and L in nats; in brackets 95 % intervals of the fit, which say nothing of seeds. The paper's constants: {source}."


def papers_curves(results: Results) -> dict[str, list[tuple[float, float]]]:
    """The paper's retrieval of the variants that we have, as (tokens, %): its own model's context is put where our base's is."""
    curve, context = results.sweep.report.curve, results.base_context()
    if not curve.context or not context:
        return {}
    rows = {row: points for row, points in curve.rows.items() if row in results.variants and points}
    return {row: [(tokens * context / curve.context, score) for tokens, score in points] for row, points in rows.items()}


def beside(results: Results, figure: str) -> str:
    """What the caption says of the paper's own curve."""
    if not figure.startswith("retrieval") or not papers_curves(results):
        return ""
    curve = results.sweep.report.curve
    return f" The broad and pale lines are the paper's, with its {curve.context:,} tokens put at {results.base_context():,}: {curve.source}."


def page(results: Results, figures: list[str]) -> tuple[str, str]:
    """The report as Markdown: what a reader must see first, and the rest; ``figures`` are the file names found in figures/."""
    sweep, missing = results.sweep, results.missing
    top, below = [f"# {sweep.report.title or sweep.experiment}"], ["## What was run", setup(results)]
    if sweep.failed:
        top += [
            f"**{failed_count(results)}**",
            "\n".join(f"* {label}: {code(why)} (`{stage.folder.name}`)" for stage, label, why in failures(results)),
        ]
    elif missing:
        top.append(f"**Incomplete:** {len(missing)} of {len(sweep.stages)} stages have no result, see [Missing](#missing).")
    top += [f"**{warning}**" for warning in warnings(results)]
    top += headline(results)
    perplexity, retrieval = perplexity_table(results), retrieval_tables(results)
    pairs = [pair for pair in zip(published_tables(results), sweep.report.published, strict=True) if pair[0]]
    if not results.cells:  # the paper's numbers alone are no result
        perplexity, pairs = None, []
    if perplexity:
        top += [f"## {perplexity.title}", perplexity.markdown(), _perplexity_caption(results, perplexity)]
    elif retrieval:
        top += ["## Retrieval", f"**{retrieval[0].title}**", retrieval.pop(0).markdown(), _explained(results)]
    elif pairs:
        table, published = pairs.pop(0)
        top += [f"## {table.title}", table.markdown(), PUBLISHED.format(source=published.source or "the paper")]
    pictures = [f"![{CAPTIONS[name]}](figures/{name}.png)\n\n*{CAPTIONS[name]}{beside(results, name)}*" for name in figures]
    top += pictures[:1]
    if retrieval:
        below += [
            "## Retrieval" if perplexity else "## Retrieval by other measures",
            *([_explained(results)] if perplexity else []),
        ]
        below += [part for each in retrieval for part in (f"**{each.title}**", each.markdown())]
    for each, published in pairs:
        below += [f"## {each.title}", PUBLISHED.format(source=published.source or "the paper"), each.markdown()]
    if predictors := predictors_table(results):
        below += [f"## {predictors.title}", PREDICTORS, predictors.markdown()]
    if bound := bound_table(results):
        below += [f"## {bound.title}", BOUND_EXPLAINED, bound.markdown()]
    if law := law_table(results):
        source = sweep.report.law.source or "the paper"
        below += [f"## {law.title}", LAW.format(source=source), law.markdown()]
    if differences := difference_tables(results):
        below += ["## Differences", explained(results)]
        below += [part for each in differences for part in (f"### {each.title}", each.markdown())]
    if pictures[1:]:
        below += ["## Figures", *pictures[1:]]
    if taken := data_table(results):
        below += ["## Data", DATA, taken.markdown()]
    if sweep.report.notes:
        below += ["## Notes", "\n".join(f"* {note.strip()}" for note in sweep.report.notes)]
    if (lacking := not_measured(results)) and results.cells and not missing:
        below += ["## Not measured", NOT_MEASURED, "\n".join(f"* {each}" for each in lacking)]
    if missing:
        below += ["## Missing", _missing(results)]
    below += ["## Provenance", _provenance(results)]
    return "\n\n".join(top), "\n\n".join(below) + "\n"


def not_measured(results: Results) -> list[str]:
    """The keys of the report that name a measurement which no stage has made: of another metric, domain or length, or of none; a predictor's row of any design."""
    report = results.sweep.report
    lacking = {
        f"published[{i}].measured.{column}": one
        for i, each in enumerate(report.published)
        for column, one in each.measured.items()
        if length_of(results, one) not in results.lengths(one.metric, one.domain)
    }
    if report.predictors.designs:
        asked = {"outcome": report.predictors.outcome} | {f"by.{name}": one for name, one in report.predictors.by.items()}
        lacking |= {f"predictors.{key}": one for key, one in asked.items() if not is_measured(results, one)}
    return [
        f"`report.{key}`: "
        + (f"row={one.row}, " if isinstance(one, PredictorConfig) else "")
        + f"metric={one.metric}, domain={one.domain}"
        + (f", length={one.length:,}" if one.length else "")
        for key, one in lacking.items()
    ]


def failed_count(results: Results) -> str:
    """For example: 1 of 7 stages failed, and 1 more has no result."""
    failed, stages = len(results.sweep.failed), len(results.sweep.stages)
    others = len(results.missing) - failed
    rest = f", and {others} more {'has' if others == 1 else 'have'} no result" if others else ""
    return f"{failed} of {stages} stages failed{rest}:"


def failures(results: Results) -> list[tuple[StageResult, str, str]]:
    """Each stage that failed, its label and why, in one line."""
    return [(stage, results.sweep.label(stage), stage.why_failed) for stage in results.sweep.failed]


def code(text: str) -> str:
    """``text`` as it is, in Markdown."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def warnings(results: Results) -> list[str]:
    """What a reader of the numbers must know."""
    return [warning for warning in (unlike(results), *run_again(results), left_out(results)) if warning]


def run_again(results: Results) -> list[str]:
    """A warning for each stage from whose different runs others started: it was run again, and what an archive kept started from the run before."""
    starts: dict[Path, dict[str, dict[str, None]]] = {}
    stages: dict[Path, StageResult] = {}
    for trial in results.sweep.trials:
        for stage in trial.stages.values():
            parent, run = results.sweep.parent(trial, stage), (stage.result or {}).get("parent_run")
            if parent and run:
                stages[parent.folder] = parent
                starts.setdefault(parent.folder, {}).setdefault(run, {})[results.sweep.label(stage)] = None
    return [
        f"Not all from one run: {results.sweep.label(stages[folder])} was run more than once, and {' / '.join(', '.join(those) for those in runs.values())} "
        "started from different runs of it. What differs between them is also what another run changes, as another machine's rounding. Where their "
        "archives are deleted, all start from one run."
        for folder, runs in starts.items()
        if len(runs) > 1
    ]


def left_out(results: Results) -> str:
    """A warning where updates were left out of the training (training/spike_guard.py); "" otherwise."""
    counted = [(stage, stage.result.get("skipped_updates")) for stage in results.sweep.stages if stage.result]
    found = [f"{results.sweep.label(stage)} {count:,} of {stage.result['updates']:,}" for stage, count in counted if count]
    why = "since their loss or gradient was bad (trainer.on_bad_step=skip)"
    return f"Updates were left out, {why}: {'; '.join(found)}." if found else ""


def unlike(results: Results) -> str:
    """A warning where the variants' texts were not cut into the same tokens; "" otherwise."""
    users: dict[str, dict[str, None]] = {}
    for trial in results.sweep.trials:
        for stage in trial.stages.values():
            if stage.result and (tokenizer := stage.result.get("tokenizer")):
                users.setdefault(tokenizer, {})[display(trial.variant)] = None
    alike = all(len(variants) == len(results.variants) for variants in users.values())  # each seed may have one of its own
    if len(users) < 2 or alike:
        return ""
    return (
        f"Not comparable: {len(users)} tokenizers ({'; '.join(', '.join(variants) for variants in users.values())}). What is counted by token, "
        "such as perplexity, is of other tokens in each. All get one by data.corpus.tokenizer=FOLDER, or base=train where a base was shipped."
    )


_EXPLAINED = {
    ROUGE: "ROUGE-L is of the text that the model writes, token by token the likeliest, as in the paper's Figure 5b, whose prompt is not "
    "published.",
    ACCURACY: "Accuracy is the share of the sentence's tokens which the model ranks first when it is given the right tokens before them "
    "(teacher forcing).",
    CONTROL: "After another text, which does not begin with the sentence, a model scores what one that cannot look back does.",
    PASSKEY: "PASSKEY asks for five digits hidden in the same texts, at a depth of its own in each; all five must be right.",
}


def _explained(results: Results) -> str:
    """What was asked, and how it was scored."""
    measured = [metric for metric in _EXPLAINED if results.domains(metric)]
    sentences = [_EXPLAINED[metric] for metric in measured]
    if ROUGE in measured or ACCURACY in measured:
        sentences.insert(0, "FIRST-SENTENCE-RETRIEVAL asks for the first sentence of a text of the given length.")
    if ACCURACY in measured and ROUGE not in measured:
        sentences.append("The paper reports the ROUGE-L of generated text instead, so the levels are not those of its Figure 5b.")
    return " ".join(sentences)


def model_size(results: Results) -> str:
    """For example ``2.4M-parameter model``; ``model`` while no stage has told."""
    trained = [result for found in results.train().values() for result in found]
    measured = [stage.result for stages in results.folders.values() for stage in stages if stage.result]
    sizes = _spread((result.get("parameters") for result in trained or measured), compact)
    return f"{sizes}-parameter model" if sizes else "model"


def compact(count: int) -> str:
    """2400000 → ``2.4M`` (decimal)."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{letter}"
    return str(count)


def seed_words(results: Results) -> str:
    seeds = results.sweep.seeds
    return "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"


def setup(results: Results) -> str:
    """One paragraph in plain words, as far as the finished stages tell."""
    sweep, train = results.sweep, results.train()
    sentences = [sweep.description + ("" if sweep.description.endswith((".", "!", "?")) else ".")] if sweep.description else []
    steps = []
    for name, runs in train.items():
        tokens = _spread((r.get("tokens") for r in runs), "{:,}".format)
        contexts = _spread((r.get("context") for r in runs), "{:,}".format)
        steps.append(f"`{name}` on {tokens or 'an unknown number of'} tokens in contexts of {contexts or 'unknown length'}")
    if steps:
        sentences.append(f"A {model_size(results)} is trained: {', then '.join(steps)}.")
    variants = "1 variant" if len(results.variants) == 1 else f"{len(results.variants)} variants"
    seeds = sweep.seeds
    sentences.append(f"{variants}, {seed_words(results)} ({', '.join(map(str, seeds))}).")
    tokens = [cell.tokens for (_, metric, _, _), cell in results.cells.items() if metric == PERPLEXITY and cell.tokens]
    if tokens:
        sentences.append(f"Perplexity is over {_range(tokens)} held-out tokens per domain, length and seed.")
    runs = [run for group in train.values() for run in group]
    machine = _spread((r.get("machine") for r in runs), str)
    if machine:
        precision = _spread((r.get("precision") for r in runs), str)
        sentences.append(f"Machine: {machine}" + (f" ({precision})." if precision else "."))
    seconds = sum(r.get("seconds") or 0 for r in runs)
    if seconds:
        took = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
        sentences.append(f"Training took {took} in all ({len(runs)} stages).")
    return " ".join(sentences)


def _perplexity_caption(results: Results, table: Table) -> str:
    report, lengths = results.sweep.report, results.lengths(PERPLEXITY)
    sentences = []
    if lengths:
        sentences.append(f"Measured here at {lengths[-1]:,} tokens" + (", the longest length" if len(lengths) > 1 else ""))
        if len(lengths) > 1:
            sentences[-1] += f", and at {lengths[0]:,}, the shortest, to show what was given up"
        sentences[-1] += "."
        sentences.append(_bold_rule(results, table))
    if report.paper:
        at = f" at {report.paper_length:,} tokens" if report.paper_length else ""
        sentences.append(
            f"The columns marked *paper* are the published numbers{at}"
            + (f" ({report.paper_source})" if report.paper_source else "")
            + ": other text, other models. Compare the order of the rows, not the levels."
        )
    return " ".join(sentences)


def _bold_rule(results: Results, table: Table) -> str:
    counts = [cell.seeds for (row, *_), cell in results.cells.items() if row in results.variants]
    if max(counts, default=0) < 2:
        return "One seed cannot rank close variants, so nothing is bold."
    rule = (
        "Cells are mean ± sample standard deviation over seeds. Bold is the best variant of a column where it is clear of "
        "every other by more than the sum of their standard deviations"
    )
    if not table.bold:
        rule += "; no variant is, in this table"
    return rule + (". Cells without ± have one seed, and a column with such a variant has no bold." if min(counts) < 2 else ".")


def _missing(results: Results) -> str:
    command = f"python -m lit_long.sweep experiment={results.sweep.experiment}"
    resume = f"Finished stages are never run again: `{command}` resumes at these; then write the report again."
    lines = [f"A dash (—) stands for a number that is not there. {resume}", ""]
    for stage in results.missing:
        users = ", ".join(f"{display(variant)} seed {seed}" for variant, seed in dict.fromkeys(stage.users))
        lines.append(f"* `{stage.name}` of {users}: {stage.state} (`{stage.folder.name}`)")
    return "\n".join(lines)


def _provenance(results: Results) -> str:
    sweep = results.sweep
    data = [stage.result for stage in sweep.stages if stage.result and stage.result.get("kind") == "data"]
    digests = list(dict.fromkeys(str(result["digest"]) for result in data if result.get("digest")))
    lines = [
        f"* experiment `{sweep.experiment}`, sweep `{sweep.key}`",
        f"* data digest {', '.join(f'`{digest}`' for digest in digests) or 'unknown (no finished data stage)'}",
        "* every number of this page, unrounded: `table.csv`",
        *_archived(sweep),
        "* stage folders, each with the config, log and `result.json` of what it ran:",
        "",
    ]
    names = list(dict.fromkeys(name for trial in sweep.trials for name in trial.stages))
    body = []
    for trial in sweep.trials:
        stages = [trial.stages.get(name) for name in names]
        folders = [f"`{stage.folder.name}`" if stage else "—" for stage in stages]
        body.append([display(trial.variant), str(trial.seed), *folders])
    return "\n".join(lines) + "\n" + Table("", ["variant", "seed", *names], body).markdown()


def _archived(sweep: SweepResult) -> list[str]:
    """Which stages are from an archive, and which started from weights that were rounded for one."""
    groups = {
        "from the archive, where they have no log": [stage for stage in sweep.stages if stage.archived],
        "started from weights archived in bf16": [s for s in sweep.stages if s.result and s.result.get("parent_weights")],
    }
    return [f"* {title}: {', '.join(map(sweep.label, stages))}" for title, stages in groups.items() if stages]


def _spread(values: Iterable[Any], show: Any) -> str:
    """The distinct values, in order of appearance, joined by a slash; None is left out."""
    return " / ".join(dict.fromkeys(show(value) for value in values if value is not None))


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e4e4e4; vertical-align: bottom; }
th { border-bottom: 2px solid #999; text-align: left; } td { font-variant-numeric: tabular-nums; white-space: nowrap; }
summary { font-size: 1.15rem; font-weight: 600; margin-top: 1rem; padding: .3rem 0; border-bottom: 1px solid #ddd; cursor: pointer; }
img { max-width: 100%; } code { background: #f4f4f4; padding: 0 .2rem; } em { color: #555; }
""".strip()


def page_html(title: str, top: str, below: str, figures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        top, below: the two parts of report.md; each section of the second is folded.
        figures: the PNG behind each of its links.
    """
    from markdown_it import MarkdownIt

    # Of HTML in the text only a table head's line breaks are meant.
    first, rest = (
        MarkdownIt("commonmark", {"html": False}).enable("table").render(part).replace("&lt;br&gt;", "<br>")
        for part in (top, below)
    )
    folded = r"<details>\n<summary>\1</summary>\n\2</details>\n"
    body = first + re.sub(r"<h2>(.*?)</h2>\n(.*?)(?=<h2>|\Z)", folded, rest, flags=re.S)
    body = re.sub(r'src="([^"]*)"', lambda found: f'src="{inside(found[1], figures)}"', body)
    head = f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n<title>{html.escape(title)}</title>'
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n{body}</body>\n</html>\n'


def inside(link: str, figures: Mapping[str, bytes]) -> str:
    """A link to a figure as the figure itself."""
    return f"data:image/png;base64,{base64.b64encode(figures[link]).decode()}" if link in figures else link
