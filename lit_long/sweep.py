"""Run an experiment: all its variants, tracked in MLflow, with the paper's table at the end.

    python -m lit_long.sweep                                     the default, experiment=position_tiny
    python -m lit_long.sweep model.n_layers=6 optim.lr=1e-3      change settings, pick option files of configs/
    python -m lit_long.sweep grid.position=[rope,abf] grid.seed=[0,1,2]   choose variants; several seeds: mean and deviation
    python -m lit_long.sweep dry_run=true                        which stages would run, and which are done
    python -m lit_long.sweep only_failed=true                    again what failed (its folder holds error.txt), and what needs it
    python -m lit_long.sweep show=config                         every setting, resolved
    python -m lit_long.sweep experiment=curriculum scale=paper   another experiment, at one of its scales (docs/experiments.md)

Counts may be written 32k (= 32,768), 4M, 1e9. Finished stages never run again and interrupted ones resume: run the same command
again. Exit codes: 0 all stages done (of those that only_failed=true chose), 1 some failed or are not recorded, 2 bad input, 130 interrupted.
docs/sweeps.md
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from lit_long.config import UserError, read_command
from lit_long.files import is_disk_full
from lit_long.stages.costs import find_misfits
from lit_long.stages.plan import Plan, make_plan, nothing_failed, only_failed
from lit_long.stages.sweep_folder import outline, resolved_yaml, write_sweep
from lit_long.terminal import hang_up, run_command

ALL_DONE, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str]) -> int:
    if {"--help", "-h"} & set(argv):
        print(__doc__)
        return ALL_DONE
    console, plan = Console(), None
    try:
        plan = only_failed(make_plan(read_command(argv)))
        if plan.sweep.show not in ("", "config"):
            raise UserError(f"command line: show={plan.sweep.show}: only show=config is known")
        if plan.sweep.show:
            print(resolved_yaml(plan), end="")
        elif plan.sweep.dry_run:
            print(outline(plan), end="")
            for line in find_misfits(plan):
                print(f"will be refused: {line}")
        elif nothing := nothing_failed(plan):
            print(nothing)
        else:
            return run(plan, console)
        return ALL_DONE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint")
        return INTERRUPTED
    except OSError as error:
        if not is_disk_full(error):
            raise
        disk = f"the disk of {plan.root}" if plan else "a disk"
        print(f"error: no space left on {disk}: free some, then run the same command again", file=sys.stderr)
        return SOME_FAILED


def run(plan: Plan, console: Console) -> int:
    """Run what is not done, then report."""
    from lit_long.launch.display import Display
    from lit_long.launch.launcher import make_launcher
    from lit_long.launch.runner import check_disk, run_plan
    from lit_long.report import write_report
    from lit_long.tracking import TrackingError
    from lit_long.tracking.record import Record, open_sweep

    if misfits := find_misfits(plan):
        raise UserError("\n".join(misfits))
    launcher = make_launcher(plan.sweep.launcher, plan.root)
    launcher.check([stage.config for stage in plan.chosen if not stage.done])
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell that put us in the background ignores Ctrl-C
        signal.signal(number, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]  # a log goes on
        signal.signal(signal.SIGHUP, lambda *_: hang_up(*terminals))  # the terminal is gone, or the connection to it
    check_disk(plan)
    for note in plan.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    tracker = open_sweep(plan)
    write_sweep(plan)
    record = Record(tracker, plan)
    try:
        with Display(console, plan) as display:
            outcome = run_plan(plan, record, display, launcher)
        report, unrecorded = write_report(plan.folder), ""
        try:
            record.close(outcome.status, report.files, report.figures)
        except TrackingError as error:
            unrecorded = f"{error}\nThe record is not whole. The stages' folders have all of it, and the same command writes it"
    except BaseException as error:
        with suppress(Exception):  # what went wrong first is what the user must hear of
            record.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    finally:
        launcher.close()
    console.print(report.terminal)
    console.print(f"report   {folder_name(report.report_md)}", highlight=False, soft_wrap=True)
    if record.where:
        console.print(f"runs     {record.where}", markup=False, highlight=False, soft_wrap=True)
    if report.failures:  # last, where they are seen
        console.print(report.failures, markup=False, highlight=False, soft_wrap=True)
    if unrecorded:
        print(f"error: {unrecorded}", file=sys.stderr)
    return SOME_FAILED if outcome.status == "FAILED" or unrecorded else ALL_DONE


def folder_name(path: Path) -> str:
    """``path`` as a user would type it: relative to the working directory when it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    run_command(main)
