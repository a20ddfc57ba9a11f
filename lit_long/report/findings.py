"""Which of the paper's findings the measurements show: a table of claims, made from kept results (archive.py), not by hand.

A claim compares two variants of an experiment run for run: the same seed, and so the same base model and the same tokens; or one variant with a
level. It is

    shown            the mean difference has the claimed sign and size, and its 95 % interval (Student's t over the seeds, or the
                     held-out documents) excludes 0
    contradicted     the interval excludes 0 on the other side
    agrees here      as shown, by a design that does not test the paper's claim: it asks the question under other conditions
    opposite here    as contradicted, by such a design
    not shown        neither
    not run          no result is kept for it
    not testable here    says the file, with its reason

The file says of each experiment what its design is, and what would change our mind:

    designs:
      data_mix:
        design: what was trained on what, at which size and budget
        doubt: what would change our mind
        tests_paper: false                   an interval beyond 0 neither shows nor contradicts what the paper says (default: true)

Each claim of the file:

    - finding: ABF has a lower perplexity than RoPE
      paper: what the paper reports, in its own numbers and with its table
      experiment: position_ablation          results: every kept file of that experiment, by scale
      metric: perplexity                     perplexities are compared by the difference of their logarithms, in nats;
                                             law_beta: of the law L(c) = (α/c)^β + γ through those of all lengths
      domains: [code, docs]                  the mean over these
      length: 2k
      first: abf
      second: rope
      claim: less                            or more: first − second; or same
      at_least: 0.2                          how large the difference must be (default: any)
      level: 0.6                             in place of second: what each seed of the first is compared with
      by: documents                          perplexities of one seed, compared text by text (default: seeds, run by run)
      ours: true                             not from a paper, so shown or contradicted whatever the design says of the paper (default: false)
      within: 0.02                           of same: how large it may be. Shown where all of the interval is within, contradicted where none of it is

In ``paper``, {first.base:,.0f} and {first.supports:,} stand for the RoPE base of the first variant and the context that the base-bound criterion
(positions/bounds.py) allows it, {second.…} likewise.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import yaml

from lit_long.config import UserError, typed
from lit_long.config.ranges import Choice, CountOrNone, NotNegative
from lit_long.evaluation.measurement import PERPLEXITY, Measurement
from lit_long.report.differences import FEWEST
from lit_long.report.tables import base_of

RUNS = "Which runs each experiment's results come from, with the identities of their stages; written by the script that writes the findings."
SIGNS = {"less": -1, "more": 1}  # of first − second
SEEDS, DOCUMENTS = "seeds", "documents"
SAME = "same"


@dataclass
class Design:
    """How an experiment asks its question."""

    design: str = ""
    doubt: str = ""
    tests_paper: bool = True


@dataclass
class Claim:
    """One finding of the paper, and what would show it. ``why_not``: the reason that it cannot be tested here."""

    finding: str = ""
    paper: str = ""
    experiment: str = ""
    metric: str = "perplexity"
    domains: list[str] = field(default_factory=list)
    length: CountOrNone = 0
    first: str = ""
    second: str = ""
    claim: str = "less"
    at_least: NotNegative = 0.0
    level: NotNegative | None = None
    by: Annotated[str, Choice(SEEDS, DOCUMENTS)] = SEEDS
    within: NotNegative = 0.0
    ours: bool = False
    why_not: str = ""


def findings(claims_file: Path, results: Path, runs_page: str) -> str:
    """The page as Markdown; ``runs_page`` is the name of the page beside it that `runs` makes.

    Raises:
        UserError: a claim names what it should not, or a result file cannot be read.
    """
    content = read(claims_file, yaml.safe_load)
    if lacking := [key for key in ("title", "introduction", "claims") if not content.get(key)]:
        raise UserError(f"{claims_file}: {lacking[0]} is missing")
    claims = [typed(Claim, claim, f"{claims_file}: claims[{number}]") for number, claim in enumerate(content["claims"])]
    for number, claim in enumerate(claims):
        if claim.claim not in (*SIGNS, SAME):
            raise UserError(f"{claims_file}: claims[{number}].claim must be {', '.join(SIGNS)} or {SAME}, not {claim.claim!r}")
        if (claim.claim == SAME) != bool(claim.within):
            raise UserError(f"{claims_file}: claims[{number}]: claim: {SAME} and within belong together")
        if (claim.level is None) == (not claim.second) and not claim.why_not:
            raise UserError(f"{claims_file}: claims[{number}]: give either second, a variant, or level, a number")
    designs = {name: typed(Design, said, f"{claims_file}: designs.{name}") for name, said in content.get("designs", {}).items()}
    for name in designs.keys() - {claim.experiment for claim in claims}:
        raise UserError(f"{claims_file}: designs.{name}: no claim is about this experiment")
    kept = kept_results(results)
    lines = [f"# {content['title']}", "", content["introduction"].strip(), ""]
    for experiment in sorted(dict.fromkeys(claim.experiment for claim in claims), key=lambda name: not name):
        design = designs.get(experiment, Design())
        lines += [f"## {experiment or 'Not testable here'}", ""]
        lines += [f"**Design.** {design.design}", ""] if design.design else []
        lines += [f"**What would change our mind.** {design.doubt}", ""] if design.doubt else []
        lines += [
            "| finding | in the paper | here | difference | 95 % interval | seeds | verdict | from |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for claim in (one for one in claims if one.experiment == experiment):
            lines += [f"| {claim.finding} | {' | '.join(row)} |" for row in tested(claim, design, kept)]
        lines.append("")
    lines += [f"The runs behind these results, with their commands, machines and identities: [{runs_page}]({runs_page})."]
    return "\n".join(lines) + "\n"


def runs(claims_file: Path, results: Path) -> str:
    """The page of the runs behind the findings, as Markdown. Raises UserError as `findings` does."""
    lines = [f"# {read(claims_file, yaml.safe_load)['title']}: the runs behind them", "", RUNS, ""]
    lines += [
        "| experiment | scale | date | machine | command | rows measured | seeds | stages |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in kept_results(results):
        scale = f" scale={one['scale']}" if one["scale"] else ""
        command = f"`python -m lit_long.sweep experiment={one['experiment']}{scale}`"
        command += f" at commit `{one['commit']}`, before the experiment was changed" if "commit" in one else ""
        rows = ", ".join(dict.fromkeys(row for run in one["runs"] for row in run["rows"]))
        seeds = ", ".join(str(seed) for seed in sorted({seed for run in one["runs"] for seed in run["seeds"]}))
        identities = ", ".join(f"`{run['identity']}`" for run in one["runs"])
        cells = [
            f"{one['experiment']} `{one['key']}`{unfinished(one)}",
            one["scale"] or "–",
            one["date"],
            "; ".join(one["machine"]),
            command,
            rows,
            seeds,
        ]
        lines.append(f"| {' | '.join([*cells, identities])} |")
    return "\n".join(lines) + "\n"


def kept_results(results: Path) -> list[dict[str, Any]]:
    return [read(file, json.loads) for file in sorted(results.glob("*.json"))]


def read(file: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """A file that must hold a mapping."""
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: must hold key: value lines, not {type(content).__name__}")
    return content


def tested(claim: Claim, design: Design, kept: list[dict[str, Any]]) -> list[list[str]]:
    """Cells of the claim's rows: one for every scale at which it was run."""
    if claim.why_not:
        return [[without_bases(claim), "–", "–", "–", "–", "not testable here", claim.why_not]]
    mine = [one for one in kept if one["experiment"] == claim.experiment]
    rows = [row for row in (compared(claim, design, one) for one in mine) if row]
    return rows or [[without_bases(claim), "–", "–", "–", "–", "not run", f"`experiment={claim.experiment}`"]]


def compared(claim: Claim, design: Design, kept: dict[str, Any]) -> list[str] | None:
    """The claim's cells from one sweep; None where it has not measured both variants at the same seeds, or on the same documents."""
    read_values = text_values if claim.by == DOCUMENTS else values
    first = read_values(claim, kept, claim.first)
    second = read_values(claim, kept, claim.second) if claim.level is None else dict.fromkeys(first, claim.level)
    pairs = sorted(first.keys() & second.keys())
    if not pairs:
        return None
    from lit_long.evaluation.statistics import paired  # which imports numpy

    difference = paired([first[pair] for pair in pairs], [second[pair] for pair in pairs])
    unit = "nats" if claim.metric == PERPLEXITY else ""
    sides = [mean(claim, [side[pair] for pair in pairs]) for side in (first, second)]
    measured = " against ".join(sides) if claim.level is None else f"{sides[0]} (level: {claim.level:g})"
    interval = "–" if difference["low"] is None else f"{difference['low']:+.3f} … {difference['high']:+.3f}"
    where = f"{kept['experiment']} `{kept['key']}`" + (f", {kept['scale']}" if kept["scale"] else "") + unfinished(kept)
    said = with_bases(claim, kept)
    return [
        said,
        measured,
        f"{difference['value']:+.3f} {unit}".strip(),
        interval,
        str(len(pairs)) if claim.by == SEEDS else f"1, {len(pairs)} {DOCUMENTS}",
        verdict(claim, design, difference),
        where,
    ]


def with_bases(claim: Claim, kept: dict[str, Any]) -> str:
    """What the paper says, with the settings of the two variants that it names."""
    if "{" not in claim.paper:
        return claim.paper
    sides = {
        side: next((base_of(settings) for run in kept["runs"] if variant in run["rows"] and (settings := settings_of(run))), None)
        for side, variant in (("first", claim.first), ("second", claim.second))
    }
    try:
        return claim.paper.format(**sides)
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(f"claim {claim.finding!r}: paper: {error}; {kept['experiment']} {kept['key']} has {sides}") from None


def without_bases(claim: Claim) -> str:
    """What the paper says, where nothing was run that would tell the settings."""
    return re.sub(r"\{[^}]*\}", "…", claim.paper)


def settings_of(run: dict[str, Any]) -> dict[str, Any]:
    return {"position": run.get("position"), "model": {"head_dim": run["head_dim"]}} if "head_dim" in run else {}


def unfinished(kept: dict[str, Any]) -> str:
    """Said of a sweep that was kept before it was complete."""
    missing = len(kept.get("unfinished", ()))
    return f" ({missing} {'stage' if missing == 1 else 'stages'} to go)" if missing else ""


def mean(claim: Claim, many: list[float]) -> str:
    """What one side measured, the mean over seeds: of perplexities the geometric one, as nats are what is averaged."""
    average = sum(many) / len(many)
    return f"{math.exp(average):.2f}" if claim.metric == PERPLEXITY else f"{average:.3f}"


def verdict(claim: Claim, design: Design, difference: dict[str, Any]) -> str:
    if difference["n"] < FEWEST:
        return f"not shown (fewer than {FEWEST} {claim.by})"
    direct = design.tests_paper or claim.ours
    shown, opposite = ("**shown**", "**contradicted**") if direct else ("**agrees here**", "**opposite here**")
    if claim.by == DOCUMENTS:  # the interval has no variance of training
        shown, opposite = f"{shown} for this run", f"{opposite} for this run"
    # Without width it is no interval, as in Difference.clear.
    if math.isclose(difference["low"], difference["high"], rel_tol=1e-9):
        return "not shown"
    if claim.claim == SAME:
        if max(-difference["low"], difference["high"]) <= claim.within:
            return shown
        return opposite if max(difference["low"], -difference["high"]) > claim.within else "not shown"
    sign = SIGNS[claim.claim]
    low, high = sorted((sign * difference["low"], sign * difference["high"]))
    if low > 0:
        return shown if sign * difference["value"] >= claim.at_least else f"right sign, less than {claim.at_least:g}"
    return opposite if high < 0 else "not shown"


def values(claim: Claim, kept: dict[str, Any], variant: str) -> dict[int, float]:
    """seed → the claim's metric, the mean over its domains."""
    found: dict[int, list[float]] = {}
    for run in kept["runs"]:
        if variant not in run["rows"]:
            continue
        for each in measured(run, claim.metric):
            if (each.metric, each.length) == (claim.metric, claim.length) and each.domain in (claim.domains or [each.domain]):
                value = math.log(each.value) if each.metric == PERPLEXITY else each.value
                for seed in run["seeds"]:
                    found.setdefault(seed, []).append(value)
    whole = max(1, len(claim.domains))
    return {seed: sum(many) / len(many) for seed, many in found.items() if len(many) == whole or not claim.domains}


def text_values(claim: Claim, kept: dict[str, Any], variant: str) -> dict[tuple[str, int], float]:
    """(domain, document) → nats per token, at the claim's length; {} where several seeds measured it."""
    found: dict[tuple[str, int], float] = {}
    for run in kept["runs"] if claim.metric == PERPLEXITY else ():
        if variant in run["rows"]:
            for domain, length, nats in run.get(DOCUMENTS, ()):
                if length == claim.length and domain in (claim.domains or [domain]):
                    found |= {(domain, number): value for number, value in enumerate(nats)}
    return found


def measured(run: dict[str, Any], metric: str) -> list[Measurement]:
    """What one stage measured; ``law_…`` are fitted to its perplexities, at their longest length."""
    found = [Measurement(*row) for row in run["measurements"]]
    if not metric.startswith("law_"):
        return found
    from lit_long.evaluation.scaling_law import law_measurements  # which imports numpy and scipy

    nats = [replace(each, metric="nats", value=math.log(each.value)) for each in found if each.metric == PERPLEXITY]
    return law_measurements(nats)


def write_findings(claims_file: Path, results: Path, out: Path) -> Path:
    """Write the page to ``out``, and that of the runs beside it, whose path is returned. Raises UserError as `findings` does."""
    beside = out.with_name(f"{out.stem}-runs{out.suffix}")
    pages = {out: findings(claims_file, results, beside.name), beside: runs(claims_file, results)}
    for file, text in pages.items():
        file.write_text(text, encoding="utf-8")
    return beside
