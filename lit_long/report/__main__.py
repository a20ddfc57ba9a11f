"""Make the report of an experiment again, from the results on disk.

    python -m lit_long.report experiment=position_tiny            its latest sweep
    python -m lit_long.report experiment=position_tiny root=DIR   below another root; key=… for an older sweep
    python -m lit_long.report experiment=position_tiny uri=http://HOST:PORT out=DIR   from MLflow alone, into DIR
    … keep=FILE.json        also writes what was measured to one small file, for findings, and archives every finished stage, of an unfinished
                            sweep too: sweeps that find the archive count it as done. archive=FOLDER (default: experiments/archive) also
                            without keep; weights that other stages start from up to weights_mb=4 each, archive_mb=60 in all
    python -m lit_long.report findings=experiments/results/claims.yaml results=experiments/results out=docs/findings.md
    python -m lit_long.report scores=OUT keep=experiments/results/scores/NAME.json      the out=… of lit_long.evaluate, kept
    python -m lit_long.report published=experiments/results/scores/published.yaml results=experiments/results/scores out=docs/scores.md

Writes report.md, report.html, tables.tex, table.csv and figures/ into the sweep's folder and prints the table; with findings=, the page that says
which of the paper's findings the kept results show; with published=, the page of scores beside published numbers. Exit codes: 0 written, 2 bad input.
"""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from lit_long.config import UserError, check_path, nearest, project_root
from lit_long.config.output_folder import check_writable
from lit_long.report import find_sweep, write_report
from lit_long.report.archive import archive_results, curves, starting_points
from lit_long.report.benchmarks import keep_scores, write_benchmarks
from lit_long.report.findings import write_findings
from lit_long.report.results import read_sweep
from lit_long.stages.archive import MB, PLACE, Limits, archive_stages
from lit_long.terminal import answer, run_command

PATHS = {"root", "out", "keep", "archive", "scores", "findings", "published", "results"}
LIMITS = ("weights_mb", "archive_mb")
KEYS = {  # by the key that says what is made; without any, the report of a sweep on disk
    "findings": ("results", "out"),
    "published": ("results", "out"),
    "scores": ("keep",),
    "uri": ("experiment", "out", "key", "keep", "archive", *LIMITS),
    "": ("experiment", "root", "key", "keep", "archive", *LIMITS),
}


def main(argv: list[str]) -> int:
    return answer(argv, __doc__, run)


def run(argv: list[str]) -> None:
    if odd := [word for word in argv if "=" not in word]:
        raise UserError(f"command line: {odd[0]!r} is not of the form key=value, such as experiment=position_tiny (see --help)")
    options = dict(word.partition("=")[::2] for word in argv)
    known = {key for kind, keys in KEYS.items() for key in (kind, *keys) if key}
    if unknown := set(options) - known:
        raise UserError(f"command line: unknown key {min(unknown)!r}{nearest(min(unknown), sorted(known))}")
    kind = next((kind for kind in KEYS if kind in options), "")
    if idle := options.keys() - {kind, *KEYS[kind]}:
        what = f"with {kind}=" if kind else "without uri=, findings=, published= or scores="
        raise UserError(f"command line: {min(idle)}= says nothing {what}; leave it out (see --help)")
    for key in PATHS & options.keys():
        check_path(options[key], "command line", key)
        options[key] = os.path.expanduser(options[key])
    limits = Limits(megabytes(options, "weights_mb", Limits.weights), megabytes(options, "archive_mb", Limits.archive))
    for key in ("out", "keep", "archive"):
        if options.get(key):
            place = Path(options[key])
            check_writable(place.parent if key == "keep" or options.keys() & {"findings", "published"} else place, key)
    if options.keys() & {"findings", "published"}:
        write_page(options)
        return
    if "scores" in options:
        if not options.get("keep"):
            raise UserError("command line: keep=FILE.json is missing (see --help)")
        keep_scores(Path(options["scores"]), Path(options["keep"]))
        print(f"written  {options['keep']}")
        return
    folder = folder_of(options)
    report = write_report(folder)
    if "keep" in options:
        archive_results(folder, Path(options["keep"]))
    archived = archive(folder, options, limits) if options.keys() & {"keep", "archive"} else ""
    console = Console()
    console.print(report.terminal)
    console.print(f"report   {report.report_md}", highlight=False, soft_wrap=True)
    if report.failures:
        console.print(report.failures, markup=False, highlight=False, soft_wrap=True)
    if archived:
        console.print(archived, markup=False, highlight=False, soft_wrap=True)


def megabytes(options: dict[str, str], key: str, default: float) -> float:
    try:
        if (value := float(options.get(key, default))) >= 0:  # not nan
            return value
    except ValueError:
        pass
    raise UserError(f"command line: {key}={options[key]}: must be a number of MB, 0 or more")


def archive(folder: Path, options: dict[str, str], limits: Limits) -> str:
    """Archive the finished stages of the sweep in ``folder``; what was done, in lines."""
    if "uri" in options:
        if "archive" in options:
            raise UserError("command line: archive=… needs the stages' folders, which uri=… does not have; leave one out")
        return ""
    into, sweep = Path(options.get("archive") or f"experiments/{PLACE}"), read_sweep(folder)
    done = archive_stages(curves(sweep), starting_points(sweep), into, limits)
    lines = [f"archive  {into}: {len(done.written)} stages added; {done.bytes / MB:.1f} MB in all"]
    lines += [f"         weights of {name}" for name in done.weights]
    return "\n".join(lines + [f"         {line}" for line in done.left_out])


def write_page(options: dict[str, str]) -> None:
    """docs/findings.md, from the claims and the kept results; or docs/scores.md, from published numbers and kept evaluations."""
    for key in ("results", "out"):
        if not options.get(key):
            raise UserError(f"command line: {key}=… is missing (see --help)")
    Path(options["out"]).parent.mkdir(parents=True, exist_ok=True)
    if "published" in options:
        write_benchmarks(Path(options["published"]), Path(options["results"]), Path(options["out"]))
        print(f"written  {options['out']}")
        return
    beside = write_findings(Path(options["findings"]), Path(options["results"]), Path(options["out"]))
    print(f"written  {options['out']}\n         {beside}")


def folder_of(options: dict[str, str]) -> Path:
    """The sweep's folder: here, or fetched from MLflow."""
    experiment = options.get("experiment", "position_tiny")
    if "uri" not in options:
        root = Path(options["root"]).resolve() if options.get("root") else project_root()
        return find_sweep(root, experiment, options.get("key", ""))
    if not options["uri"]:
        raise UserError("command line: uri=… is empty; name the record, such as uri=http://HOST:PORT (see --help)")
    if not options.get("out"):
        raise UserError("command line: out=FOLDER is missing: where the report goes that is made from uri=…")
    from lit_long.tracking.mlflow import fetch_sweep

    return fetch_sweep(options["uri"], experiment, Path(options["out"]).resolve(), options.get("key", ""))


if __name__ == "__main__":
    run_command(main)
